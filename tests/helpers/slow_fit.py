"""fit.py itself, with the small network, a quarter of a second a step, and shapes10 with 63 test images.

``FAIL=1:3:raise`` in the environment has process 1 fail in its step 3, and ``FAIL=1:3:kill`` has it killed there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]

import torch  # noqa: E402

from datamodules import CIFAR10DataModule, shapes10  # noqa: E402
from helpers.small import SmallAlexNet  # noqa: E402
from lightning_modules import AlexNetClassifier, classifier  # noqa: E402


class Small(SmallAlexNet):
    """The small network with a choice of activation."""

    def __init__(self, *args: Any, activation: str = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()


training_step, images_in = AlexNetClassifier.training_step, CIFAR10DataModule.images_in


def slow(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
    rank, step, how = os.environ.get("FAIL", "9:0:").split(":")
    if (self.global_rank, self.trainer.global_step + 1) == (int(rank), int(step)):
        if how == "raise":
            raise RuntimeError("made to fail")
        os.kill(os.getpid(), 9)
    time.sleep(0.25)
    return training_step(self, batch, batch_idx)


def odd(self: CIFAR10DataModule, split: Any) -> Any:
    return tuple(tensor[:63] if split == "test" else tensor for tensor in images_in(self, split))


def shrink(put: Callable[[Any, str, Any], None] = setattr) -> None:
    put(classifier, "AlexNet", Small)
    put(shapes10, "_DEFAULT_PER_CLASS", {"train": 16, "test": 7})
    put(CIFAR10DataModule, "images_in", odd)


def main() -> None:
    """As one's own process."""
    from fit import main as fit

    torch.set_num_threads(1)
    AlexNetClassifier.training_step = slow  # type: ignore[method-assign]
    shrink()
    fit()


if __name__ == "__main__":
    main()
