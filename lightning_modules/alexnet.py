"""AlexNet as section 3 of the paper describes it (Krizhevsky, Sutskever, Hinton 2012). Pure PyTorch.

This is the network of 2012 with its two groups, local response normalization and overlapping pooling, not
torchvision's ``alexnet``, which is the 2014 single-column network with other widths and no normalization.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.arguments import check, check_choice
from lightning_modules.lrn import LocalResponseNorm

Activation = Literal["relu", "tanh"]
Init = Literal["paper", "code", "he", "fast", "torch"]
LRNConstants = Literal["text", "code"]

KERNEL = 11  # conv1's, whatever the image's size
BIAS_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")  # section 5: "provides the ReLUs with positive inputs"


def conv1_size(image_size: int, stride: int) -> int:
    """Height and width of conv1's output: the released code rounds up, with zeros on the right and at the bottom.

    55 for 224 pixels and stride 4, which is why others say that the paper's 224 must have been 227.
    """
    return math.ceil((image_size - KERNEL) / stride) + 1


def smallest_image_size(stride: int) -> int:
    """The least image size that leaves one pixel after conv5's pool: three poolings halve 8 pixels to 1."""
    return KERNEL + 6 * stride + 1


@torch.fx.wrap  # one operation of a traced network, which so keeps the check
def checked(images: Tensor, size: int) -> Tensor:
    """``images``, if their shape is ``(B, 3, size, size)``; else a ValueError."""
    if images.shape[1:] != (3, size, size):
        got = tuple(images.shape)
        raise ValueError(f"images: {got}, expected (B, 3, {size}, {size}). Resize them, or choose that image_size.")
    return images


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers; 56,909,194 parameters at 224 pixels and 10 classes.

    Each step is a module of its own, used once: ``conv1``, ``relu1`` (with ``activation="tanh"`` a Tanh), ``norm1``,
    ``pool1``, ... ``fc7``, ``relu7``, ``drop7``, ``fc8``.

    Args:
        num_classes: Outputs of fc8.
        image_size: Height and width of the images in pixels. 224 in the paper; fc6 grows with it.
        conv1_stride: 4 in the paper. With 2, images of 64 pixels keep enough positions for a run on a laptop.
        groups: 2 is the paper's pair of GPUs: conv2, conv4 and conv5 see the half of the channels on their own
            GPU (section 3.2). 1 connects everything.
        half_kernels: Half as many kernels in conv1 to conv4, on one GPU: what section 3.2 compares its pair with. conv5
            keeps its 256, and fc6 and fc7 theirs (its footnote), so that the two have about as many parameters.
        lrn: Local response normalization after conv1's and conv2's ReLU (section 3.3).
        lrn_constants: ``text`` has alpha = 1e-4 on the sum of squares, ``code`` divides it by the window's 5 channels.
        overlap_pooling: Max pooling 3x3 with stride 2 (section 3.4); otherwise 2x2, to the same sizes.
        dropout: Probability with which fc6's and fc7's outputs are zeroed in training (section 4.2). PyTorch
            scales up in training where the paper halves the outputs at test time: the same expectation.
        activation: ``relu`` (section 3.1) or the ``tanh`` that it is compared with in Figure 1.
        init: ``paper``: weights N(0, 0.01), biases 1 in conv2, conv4, conv5, fc6, fc7 and 0 elsewhere (section 5).
            ``code``: the same with N(0, 0.03) in conv3-conv5, as in the released layers-145.cfg. ``he``: weights
            N(0, gain**2 / fan_in), biases 0 (He et al. 2015), which keeps the signal's size from layer to layer and
            so trains from the first step; the paper's starves it and can sit at ln(classes) for many epochs.
            ``fast``: ``he`` with the paper's N(0, 0.01) in conv1, where He's noise would hide what its filters learn.
            ``torch``: what PyTorch's layers start with if nothing is said, weights and biases uniform within
            ``1 / sqrt(fan_in)``: a signal falls to 1 / sqrt(6) of its size with every layer and its ReLU.
        bias: What ``paper`` and ``code`` set the biases of conv2, conv4, conv5, fc6 and fc7 to. 1 in the paper; Caffe
            used 0.1, because 1 drowns the signal.

    Raises:
        ValueError: If an argument is out of its range, or the image leaves no pixel after conv5's pool.

    Source:
        Krizhevsky et al. 2012, sections 3.1 to 3.5, 4.2 and 5.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 224,
        conv1_stride: int = 4,
        groups: int = 2,
        half_kernels: bool = False,
        lrn: bool = True,
        lrn_constants: LRNConstants = "text",
        overlap_pooling: bool = True,
        dropout: float = 0.5,
        activation: Activation = "relu",
        init: Init = "paper",
        bias: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, get_args(Activation))
        check_choice("init", init, get_args(Init))
        check_choice("groups", groups, (1, 2))
        alone = groups == 1 or not half_kernels
        check(alone, "half_kernels", half_kernels, f"false with groups {groups}", "Set groups to 1, which has one GPU")
        check(num_classes >= 1, "num_classes", num_classes, "1 or more", "Choose 10 for CIFAR-10")
        check(conv1_stride >= 1, "conv1_stride", conv1_stride, "1 or more", "Choose 4, the paper's, or 2")
        check(0 <= dropout < 1, "dropout", dropout, "a probability in [0, 1)", "Choose one, such as 0.5")
        check(math.isfinite(bias), "bias", bias, "a finite number", "Choose one, such as 1")
        least = smallest_image_size(conv1_stride)
        expected = f"{least} pixels or more with conv1_stride {conv1_stride}, so that conv5's pool leaves one"
        check(image_size >= least, "image_size", image_size, expected, "Choose a larger size, or a smaller stride")
        self.image_size, self.activation, self.init, self.bias = image_size, activation, init, bias
        size = conv1_size(image_size, conv1_stride)
        self.padding = (size - 1) * conv1_stride + KERNEL - image_size  # 3 at 224; never below 0

        def act() -> nn.Module:  # a module for each place, and none in place: what a hook or an attribution has, stays
            return nn.ReLU() if activation == "relu" else nn.Tanh()

        def norm() -> nn.Module:
            return LocalResponseNorm.of(lrn_constants) if lrn else nn.Identity()

        def pool() -> nn.Module:
            # Rounded up like cuda-convnet's, 3/2 pooling turns n pixels into n // 2, just as 2/2 does at every size:
            # "the non-overlapping scheme s = 2, z = 2, which produces output of equivalent dimensions" (section 3.4).
            return nn.MaxPool2d(3, 2, ceil_mode=True) if overlap_pooling else nn.MaxPool2d(2, 2)

        n1, n2, n3, n4 = (n // (2 if half_kernels else 1) for n in (96, 256, 384, 384))
        self.conv1 = nn.Conv2d(3, n1, KERNEL, stride=conv1_stride)
        self.relu1, self.norm1, self.pool1 = act(), norm(), pool()
        self.conv2 = nn.Conv2d(n1, n2, 5, padding=2, groups=groups)
        self.relu2, self.norm2, self.pool2 = act(), norm(), pool()
        self.conv3 = nn.Conv2d(n2, n3, 3, padding=1)  # the one layer in which the two GPUs talk
        self.relu3 = act()
        self.conv4 = nn.Conv2d(n3, n4, 3, padding=1, groups=groups)
        self.relu4 = act()
        self.conv5 = nn.Conv2d(n4, 256, 3, padding=1, groups=groups)
        self.relu5, self.pool5 = act(), pool()
        self.fc6 = nn.Linear(256 * (size // 2 // 2 // 2) ** 2, 4096)
        self.relu6, self.drop6 = act(), nn.Dropout(dropout)
        self.fc7 = nn.Linear(4096, 4096)
        self.relu7, self.drop7 = act(), nn.Dropout(dropout)
        self.fc8 = nn.Linear(4096, num_classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew by ``init``'s preset."""
        for name, layer in self.named_children():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            if self.init == "torch":
                layer.reset_parameters()
            elif self.init == "he" or (self.init == "fast" and name != "conv1"):
                nn.init.kaiming_normal_(layer.weight, nonlinearity=self.activation)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            else:
                wide = self.init == "code" and name in ("conv3", "conv4", "conv5")
                nn.init.normal_(layer.weight, std=0.03 if wide else 0.01)
                nn.init.constant_(layer.bias, self.bias if name in BIAS_ONE else 0.0)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """``(B, 3, image_size, image_size)`` to ``(B, 256, n, n)``. In the margin: the shapes at 224."""
        x = checked(images, self.image_size)
        x = F.pad(x, (0, self.padding, 0, self.padding)) if self.padding else x  # (B, 3, 227, 227)
        x = self.norm1(self.relu1(self.conv1(x)))  # (B, 96, 55, 55)
        x = self.norm2(self.relu2(self.conv2(self.pool1(x))))  # (B, 256, 27, 27)
        x = self.relu3(self.conv3(self.pool2(x)))  # (B, 384, 13, 13)
        x = self.relu4(self.conv4(x))  # (B, 384, 13, 13)
        x = self.relu5(self.conv5(x))  # (B, 256, 13, 13)
        x = self.pool5(x)  # (B, 256, 6, 6)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """The fc7 activations, with which section 6.1 compares images by their Euclidean distance.

        Args:
            images: ``(B, 3, image_size, image_size)`` float, normalised as in training.

        Returns:
            ``(B, 4096)`` float, after the ReLU and, in training mode, after dropout.
        """
        x = self.features(images).flatten(1)  # (B, 9216)
        x = self.drop6(self.relu6(self.fc6(x)))  # (B, 4096)
        x = self.drop7(self.relu7(self.fc7(x)))  # (B, 4096)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of ``(B, 3, image_size, image_size)`` float images."""
        return self.fc8(self.embed(images))
