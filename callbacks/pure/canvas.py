"""The canvas that pictures are drawn on: letters, small images, colours. Pure functions.

A picture is painted pixel by pixel into a tensor; Pillow then writes the letters on it, in the font that comes with
matplotlib and has the marks (matplotlib itself takes ten times as long, which a picture an epoch would feel). All
pictures are uint8 ``(3, H, W)``, for TensorBoard and PNG files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK = (34, 34, 34)
RIGHT = (26, 150, 65)  # green; told from red by its lightness too, and by the mark
WRONG = (202, 0, 32)
UNKNOWN = (150, 150, 150)  # a neighbour of a query whose class nobody knows
MARKS = {True: "✓", False: "✗"}
THUMB, FRAME = 108, 4  # pixels: longer side of an image; width of the frame around a neighbour
_FONT = "DejaVu Sans"  # comes with matplotlib and has the two marks
_DPI = 100


class Label(NamedTuple):
    """Letters on a picture."""

    x: float  # pixels from the left
    y: float  # pixels from the top
    text: str
    size: float = 8.5  # points
    colour: tuple[int, int, int] = INK
    align: str = "left"
    weight: str = "normal"


def shortened(name: str) -> str:
    """A name that fits under a small image: at most 16 letters."""
    return name if len(name) <= 16 else name[:15] + "…"


def paste(canvas: Tensor, image: Tensor, top: int, left: int, frame: tuple[int, int, int] | None) -> None:
    """Put an image into its cell, enlarged smoothly (32 pixels stay readable) and cut to ``[0, 1]``; frame it."""
    side = THUMB + 2 * FRAME
    if frame is not None:
        canvas[:, top : top + side, left : left + side] = torch.tensor(frame, dtype=torch.uint8)[:, None, None]
    factor = THUMB / max(image.shape[1:])
    height, width = (max(1, round(n * factor)) for n in image.shape[1:])
    large = F.interpolate(
        image.detach().float().cpu()[None], (height, width), mode="bicubic", align_corners=False, antialias=True
    )[0]
    y, x = top + FRAME + (THUMB - height) // 2, left + FRAME + (THUMB - width) // 2
    canvas[:, y : y + height, x : x + width] = large.clamp(0, 1).mul(255).round().to(torch.uint8)


def lettered(canvas: Tensor, labels: Sequence[Label]) -> Tensor:
    """Write labels on a picture; every other pixel stays as it is."""
    page = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(page)
    for label in labels:
        anchor = {"left": "l", "center": "m", "right": "r"}[label.align] + "m"
        pen.text((label.x, label.y), label.text, label.colour, _font(label.size, label.weight), anchor)
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


@cache
def _font(size: float, weight: str) -> ImageFont.FreeTypeFont:
    file = _FONT.replace(" ", "") + ("-Bold.ttf" if weight == "bold" else ".ttf")
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", file), size * _DPI / 72)
