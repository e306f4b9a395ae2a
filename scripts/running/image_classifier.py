"""ImageClassifier: a trained network with its preprocessing and class names, to be taken elsewhere.

Here, because it joins what two packages have that must not import each other; hubconf.py and export.py need it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from datamodules.preprocessing import Preprocessing
from lightning_modules import AlexNet
from running.checkpoint import Checkpoint


class ImageClassifier(nn.Module):
    """Pictures in, probabilities out. Plain PyTorch.

    Attributes:
        net: The network.
        preprocessing: What a picture goes through before it: that of a test image, after larger and smaller ones were
            brought to 32x32 pixels as ``predict.py`` reads photos.
        class_names: In the order of the outputs.
    """

    def __init__(self, net: nn.Module, preprocessing: Preprocessing, class_names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.preprocessing, self.class_names = net, preprocessing, tuple(class_names)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ImageClassifier:
        """A checkpoint's, on the CPU and in evaluation mode; refused in one line where it does not say enough."""
        checkpoint.check_complete()
        checkpoint.check_settings()
        settings, values = checkpoint.settings, checkpoint.statistics or {}
        model = checkpoint.network()
        how = {key: settings["data"][key] for key in ("crop_size", "input_scale") if key in settings["data"]}
        statistics = {key: values[key] for key in ("mean", "std")}
        preprocessing = Preprocessing(**statistics, **how, image_size=model.net.image_size)
        return cls(model.net, preprocessing, checkpoint.class_names).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities ``(B, C)`` of RGB images ``(B, 3, H, W)``, uint8 or float in ``[0, 1]``, of any size."""
        inputs = self.preprocessing(images).to(next(self.net.parameters()).dtype)  # float16 after .half()
        return self.net(inputs).softmax(1)


def network_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """What :class:`~lightning_modules.AlexNetClassifier` makes a network of that holds a checkpoint's weights."""
    named = {key: value for key, value in checkpoint.settings["model"].items() if key in signature(AlexNet).parameters}
    small = checkpoint.settings["model"].get("network", "alexnet")
    return named if small == "alexnet" else {**named, "network": small}
