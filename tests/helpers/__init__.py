"""What several tests share."""

from __future__ import annotations

from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]  # the project's folder

# The smallest network there is: 24 pixels with stride 2 leave conv5's pool one pixel.
TINY = {"image_size": 24, "conv1_stride": 2}


def load(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's weights."""
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def error_line(said: str) -> str:
    """The one line of an output that refuses something, among others that may be there."""
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    return line
