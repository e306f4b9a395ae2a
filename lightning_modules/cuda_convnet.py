"""The networks of the paper's own experiments on CIFAR-10, as in cuda-convnet's layer files. Pure PyTorch.

Figure 1 and section 3.3's "13 % error rate without normalization and 11 % with normalization" are not AlexNet's.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.alexnet import Activation, checked
from lightning_modules.arguments import check, check_choice
from lightning_modules.lrn import LocalResponseNorm

Layers = Literal["19pct", "conv-local-13pct", "conv-local-11pct", "conv-local-11pct-first"]

# What the layer files leave no choice about, of AlexNet's arguments.
FIXED: dict[str, object] = {
    "conv1_stride": 1,
    "groups": 1,
    "half_kernels": False,
    "lrn_constants": "code",
    "overlap_pooling": True,
    "dropout": 0.0,
    "init": "code",
    "bias": 0.0,
}
# initW in the layer files.
STD = {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
# wc in the layer files, as multiples of 0.004: fc10's are 3, 0.004 and 0.01.
DECAYS = {
    "19pct": {"conv1": 1.0, "conv2": 1.0, "conv3": 1.0, "fc10": 750.0},
    "conv-local-13pct": {"local3": 1.0, "local4": 1.0, "fc10": 1.0},
    "conv-local-11pct": {"local3": 1.0, "local4": 1.0, "fc10": 2.5},
    "conv-local-11pct-first": {"local3": 1.0, "local4": 1.0, "fc10": 1.0},
}


class LocallyConnected2d(nn.Module):
    """A convolution whose weights are not shared: every position has kernels and biases of its own.

    Args:
        in_channels: Of the images.
        out_channels: Kernels at each position.
        kernel_size: Height and width of a kernel.
        size: Height and width of the images, which decide how many positions there are.
        padding: Zeros around the images.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, size: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size, self.padding = kernel_size, padding
        n = size + 2 * padding - kernel_size + 1  # positions in a row
        self.weight = nn.Parameter(torch.zeros(n, n, kernel_size, kernel_size, in_channels, out_channels))
        self.bias = nn.Parameter(torch.zeros(n, n, out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_channels, size, size)`` to ``(B, out_channels, n, n)`` of ``n`` x ``n`` positions."""
        k, pad = self.kernel_size, self.padding
        # Positions first and channels last, so that whole rows are copied: F.unfold makes the layer 3.5 times as slow.
        rows = F.pad(images.permute(2, 3, 0, 1), (0, 0, 0, 0, pad, pad, pad, pad))  # (H, W, B, in_channels)
        high, wide = rows.shape[0] + 1 - k, rows.shape[1] + 1 - k
        patches = torch.cat([rows[i : i + high, j : j + wide] for i in range(k) for j in range(k)], dim=3)
        weight = self.weight.flatten(2, 4).flatten(0, 1)  # (positions, k * k * in_channels, out_channels)
        outputs = torch.baddbmm(self.bias.flatten(0, 1)[:, None], patches.flatten(0, 1), weight)
        return outputs.unflatten(0, (high, wide)).permute(2, 3, 0, 1)

    def extra_repr(self) -> str:
        n = len(self.weight)
        return f"{n}x{n} positions, kernel_size={self.kernel_size}, padding={self.padding}"


class CudaConvnet(nn.Module):
    """Four or five layers with weights, by the layer file; parameters are those at 32 pixels and, below, at 24.

    ==========================  ========================================================================  ==========
    layers                      network                                                                   parameters
    ==========================  ========================================================================  ==========
    ``19pct``                   conv 32, max pool, conv 32, average pool, conv 64, average pool, fc           89,578
    ``conv-local-13pct``        conv 64, max pool, conv 64, max pool, local 32, local 32, fc               1,116,490
    ``conv-local-11pct``        conv 64, max pool, LRN, conv 64, LRN, max pool, local 64, local 32, fc     2,112,970
    ``conv-local-11pct-first``  conv 64, LRN, max pool, conv 64, LRN, max pool, local 32, local 32, fc     1,116,490
    ==========================  ========================================================================  ==========

    The last is the file of ``conv-local-11pct`` as it was first published: the 13 % network with normalization.
    Convolutions are 5x5 and padded by 2, local layers 3x3 and padded by 1, pools 3x3 with stride 2. Weights begin as
    N(0, 1e-4) in conv1, which is for inputs from 0 to 255, N(0, 0.01) in the others and N(0, 0.04) in local layers;
    biases at 0. LRN is over ``n`` = 9 channels, first 5: ``x / (1 + 0.001 / n * sum(x**2))**0.75``.

    Args:
        layers: The layer file, by its name.
        num_classes: Outputs of fc10.
        image_size: Height and width of the images in pixels: 24, which is cuda-convnet's crop, or 32.
        lrn: The normalization of the two ``conv-local-11pct``, which can be left out; the others have none.
        activation: ``relu``, or the ``tanh`` of Figure 1.
        fixed: AlexNet's other arguments, which must be as the layer files have them: :data:`FIXED`.

    Raises:
        ValueError: If an argument is out of its range, or is another than the layer files leave.
        TypeError: If an argument is none of AlexNet's either.

    Source:
        Krizhevsky et al. 2012, section 3.3 and Figure 1; ``layers-*.cfg`` and ``layer-params-*.cfg`` of cuda-convnet's
        ``example-layers``. Figure 1 names no file: ``19pct`` is the one with four layers and no normalization.
    """

    def __init__(
        self,
        layers: Layers,
        num_classes: int = 10,
        image_size: int = 24,
        lrn: bool | None = None,
        activation: Activation = "relu",
        **fixed: Any,
    ) -> None:
        super().__init__()
        check_choice("network", layers, get_args(Layers))
        check_choice("activation", activation, get_args(Activation))
        check(num_classes >= 1, "num_classes", num_classes, "1 or more", "Choose 10 for CIFAR-10")
        check(image_size >= 8, "image_size", image_size, "8 pixels or more", "Choose 24 or 32")
        for name, value in fixed.items():
            if name not in FIXED:
                raise TypeError(f"{name}: no argument of {layers}, expected {', '.join(FIXED)}. Leave it out.")
            check(value == FIXED[name], name, value, f"{FIXED[name]}, which {layers} has", "Set it so")
        wide, first = layers == "conv-local-11pct", layers == "conv-local-11pct-first"
        normalised = wide or first
        lrn = normalised if lrn is None else lrn
        check(normalised or not lrn, "lrn", lrn, f"false, for {layers} has none", "Set it so")
        self.layers, self.image_size = layers, image_size

        def act() -> nn.Module:
            return nn.ReLU() if activation == "relu" else nn.Tanh()

        def norm() -> nn.Module:
            size = 5 if first else 9
            return LocalResponseNorm(size, 0.001 / size, 0.75, k=1.0) if lrn else nn.Identity()

        kernels = 32 if layers == "19pct" else 64
        self.conv1 = nn.Conv2d(3, kernels, 5, padding=2)
        self.relu1, self.pool1, self.norm1 = act(), nn.MaxPool2d(3, 2, ceil_mode=True), norm()
        self.conv2 = nn.Conv2d(kernels, kernels, 5, padding=2)
        self.relu2, self.norm2 = act(), norm()
        size = image_size // 2 // 2  # pools round up: see AlexNet's
        if layers == "19pct":
            self.pool2: nn.Module = nn.AvgPool2d(3, 2, ceil_mode=True)
            self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
            self.relu3, self.pool3 = act(), nn.AvgPool2d(3, 2, ceil_mode=True)
            self.fc10 = nn.Linear(64 * (size // 2) ** 2, num_classes)
        else:
            self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.local3 = LocallyConnected2d(64, 64 if wide else 32, 3, size, padding=1)
            self.relu3 = act()
            self.local4 = LocallyConnected2d(64 if wide else 32, 32, 3, size, padding=1)
            self.relu4 = act()
            self.fc10 = nn.Linear(32 * size**2, num_classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for name, layer in self.named_children():
            if name in STD:
                nn.init.normal_(layer.weight, std=STD[name])  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """For the optimiser, in the proportions of the layer files: biases learn twice as fast and do not decay.

        With 0.001 and 0.004 they are the files' own epsW, epsB and wc.
        """
        groups = []
        for name, parameter in self.named_parameters():
            layer, _, kind = name.partition(".")
            rate, decay = (1, DECAYS[self.layers].get(layer, 0.0)) if kind == "weight" else (2, 0.0)
            groups.append({"params": [parameter], "lr": rate * lr, "weight_decay": decay * weight_decay})
        return groups

    def embed(self, images: Tensor) -> Tensor:
        """What fc10 sees: ``(B, 3, image_size, image_size)`` float to ``(B, D)``. In the margin: conv-local-11pct."""
        x = checked(images, self.image_size)
        x = self.relu1(self.conv1(x))  # (B, 64, 24, 24)
        x = self.pool1(self.norm1(x)) if self.layers == "conv-local-11pct-first" else self.norm1(self.pool1(x))
        x = self.pool2(self.norm2(self.relu2(self.conv2(x))))  # (B, 64, 6, 6)
        if self.layers == "19pct":
            return self.pool3(self.relu3(self.conv3(x))).flatten(1)  # (B, 1024)
        x = self.relu3(self.local3(x))  # (B, 64, 6, 6)
        return self.relu4(self.local4(x)).flatten(1)  # (B, 1152)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of ``(B, 3, image_size, image_size)`` float images."""
        return self.fc10(self.embed(images))
