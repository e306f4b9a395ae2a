"""fit.py itself, with the small network, a quarter of a second a step, and shapes10."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]

import torch  # noqa: E402
from fit import main  # noqa: E402

from datamodules import shapes10  # noqa: E402
from helpers.small import SmallAlexNet  # noqa: E402
from lightning_modules import AlexNetClassifier, classifier  # noqa: E402


class Small(SmallAlexNet):
    """The small network with a choice of activation."""

    def __init__(self, *args: Any, activation: str = "relu", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()


training_step = AlexNetClassifier.training_step


def slow(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
    time.sleep(0.25)
    return training_step(self, batch, batch_idx)


torch.set_num_threads(1)
classifier.AlexNet = Small  # type: ignore[misc, assignment]
shapes10._DEFAULT_PER_CLASS = {"train": 16, "test": 6}
AlexNetClassifier.training_step = slow  # type: ignore[method-assign]
if __name__ == "__main__":
    main()
