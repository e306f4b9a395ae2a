"""What ``torch.hub.load("<this folder>", ..., source="local")`` finds: the network, bare or trained."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from torch import nn

dependencies = ["torch", "lightning", "torchmetrics", "numpy", "matplotlib", "PIL", "yaml", "tqdm"]


def alexnet(**arguments: Any) -> nn.Module:
    """AlexNet as the paper has it, untrained: normalised ``(B, 3, image_size, image_size)`` to logits ``(B, C)``.

    Args:
        arguments: ``num_classes``, ``image_size``, ``conv1_stride``, ``groups``, ``lrn``, ``init``, ... The defaults
            are the paper's, with 10 classes.
    """
    from lightning_modules import AlexNet

    return AlexNet(**arguments)


def alexnet_cifar10(checkpoint: str | Path) -> nn.Module:
    """A trained network with its preprocessing, in evaluation mode; ``class_names`` has the outputs' names.

    Takes RGB images ``(B, 3, H, W)`` of any size, uint8 or float32 in [0, 1], and gives probabilities ``(B, C)`` of one
    centre crop, in float32.

    Args:
        checkpoint: What ``scripts/fit.py`` wrote, such as ``logs/alexnet/version_0/checkpoints/best.ckpt``.

    Raises:
        ValueError: If it can't be used; one line that says why.
    """
    scripts = str(Path(__file__).resolve().parent / "scripts")
    sys.path.insert(0, scripts)
    said = io.StringIO()
    try:
        from running.checkpoint import Checkpoint
        from running.image_classifier import ImageClassifier

        with redirect_stderr(said):
            model = ImageClassifier.of(Checkpoint.read(Path(checkpoint), "checkpoint"))
    except SystemExit:  # a script's way to refuse
        raise ValueError(said.getvalue().strip().removeprefix("error: ")) from None
    finally:
        sys.path.remove(scripts)
    sys.stderr.write(said.getvalue())  # such as: taken from the file before
    return model
