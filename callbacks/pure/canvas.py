"""The canvas that pictures are drawn on: small images, bars, letters.

Pillow writes the letters: matplotlib itself takes ten times as long, which a picture an epoch would feel.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RGB = tuple[int, int, int]
INK = (34, 34, 34)
RIGHT = (26, 150, 65)  # green; told from red by its lightness too, and by the mark
WRONG = (202, 0, 32)
PALE = (150, 150, 150)
MARKS = {True: "✓", False: "✗"}
THUMB, FRAME = 108, 4  # pixels: longer side of an image; width of the frame around a neighbour
CELL = THUMB + 2 * FRAME  # an image with its frame, or with the room for one
PAGE_WIDTH = 620  # pixels, at least: the longest line of letters


class Canvas:
    """A white page, at least ``PAGE_WIDTH`` wide. ``x, y`` are pixels from its left and its top to what is drawn.

    What is drawn later covers the earlier; letters lie above all the rest, so that no neighbour cuts them off.
    """

    def __init__(self, width: int, height: int) -> None:
        self._page = torch.full((3, height, max(width, PAGE_WIDTH)), 255, dtype=torch.uint8)
        self._letters: list[dict[str, Any]] = []

    def paste(self, x: int, y: int, pixels: Tensor) -> None:
        """Lay down ``(3, h, w)`` uint8 pixels as they are."""
        self._page[:, y : y + pixels.shape[1], x : x + pixels.shape[2]] = pixels

    def bar(self, x: int, y: int, width: int, height: int, colour: RGB) -> None:
        """Fill a rectangle."""
        self._page[:, y : y + height, x : x + width] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]

    def image(self, x: int, y: int, image: Tensor, frame: RGB | None = None) -> None:
        """Draw ``(3, h, w)`` float RGB in ``[0, 1]``, enlarged smoothly, in the middle of a square of ``CELL``."""
        if frame is not None:
            self.bar(x, y, CELL, CELL, frame)
        factor = THUMB / max(image.shape[1:])
        height, width = (max(1, round(n * factor)) for n in image.shape[1:])
        image = image.detach().float().cpu()[None]
        large = F.interpolate(image, (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
        self.paste(x + FRAME + (THUMB - width) // 2, y + FRAME + (THUMB - height) // 2, to_uint8(large))

    def text(
        self, x: float, y: float, text: str, size: float = 8.5, ink: RGB = INK, align: str = "left", bold: bool = False
    ) -> None:
        """Write a line, ``size`` in points, half its height at ``y`` and its left end, middle or right end at ``x``."""
        anchor = align[0] + "m"  # Pillow's letters
        self._letters.append({"xy": (x, y), "text": text, "fill": ink, "font": font(size, bold), "anchor": anchor})

    def pixels(self) -> Tensor:
        """The finished picture: ``(3, H, W)`` uint8."""
        page = Image.fromarray(self._page.permute(1, 2, 0).contiguous().numpy())
        pen = ImageDraw.Draw(page)
        for letters in self._letters:
            pen.text(**letters)
        return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


def to_uint8(image: Tensor) -> Tensor:
    """Float in ``[0, 1]`` (what lies beyond is cut off) to uint8 on the CPU."""
    return image.detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)


def shortened(name: str, letters: int = 16) -> str:
    """A name of at most so many letters; 16 fit under a small image."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib and has both marks; ``size`` in points, of which 72 are 100 pixels."""
    file = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", file), size * 100 / 72)
