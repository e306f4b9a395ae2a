"""Draw what the callbacks show: conv1's filters (Figure 3) and retrieved images (Figure 4, right). Pure functions.

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
_FONT = "DejaVu Sans"  # comes with matplotlib and has the two marks
_DPI = 100


class _Label(NamedTuple):
    x: float  # pixels from the left
    y: float  # pixels from the top
    text: str
    size: float = 8.5  # points
    colour: tuple[int, int, int] = INK
    align: str = "left"
    weight: str = "normal"


# ---------------------------------------------------------------------------------------------------------- filters

FILTER_GAP, GROUP_GAP = 6, 34  # pixels between filters; between the groups, with room for the second group's name
FILTER_LEFT, FILTER_TOP, FILTER_BOTTOM, FILTER_RIGHT = 40, 62, 34, 16


def filter_mosaic(weights: Tensor, scale: float, groups: int = 1, columns: int = 12, zoom: int = 5) -> Tensor:
    """Lay convolution filters out as rows of small pictures, one below the other for each group.

    Mid grey is weight zero: a weight ``w`` becomes ``0.5 + w / (2 * scale)``, cut to ``[0, 1]``. One scale serves all
    filters, so a dead filter looks dead. Pixels are repeated, not smoothed.

    Args:
        weights: ``(N, 3, h, w)`` float, filter ``i`` in reading order.
        scale: The weight that is shown as full colour, above 0.
        groups: The filters fall into this many equal runs; each starts a new row, below a gap of ``GROUP_GAP``.
        columns: Filters in a row.
        zoom: Pixels along each side of a weight.

    Returns:
        ``(3, H, W)`` uint8 on the CPU, white between the filters. Filter ``i`` of its group has its upper left corner
        at row ``i // columns``, column ``i % columns`` of a lattice of ``zoom * h + FILTER_GAP`` by
        ``zoom * w + FILTER_GAP`` pixels.

    Raises:
        ValueError: If the weights are no RGB filters, or a number is out of range.

    Source:
        Krizhevsky et al. 2012, Figure 3: 96 filters in 8 rows, the upper 48 learned on GPU 1, the lower 48 on GPU 2.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or not weights.numel():
        raise ValueError(f"weights must be RGB filters (N, 3, h, w), got {tuple(weights.shape)}")
    if groups < 1 or len(weights) % groups:
        raise ValueError(f"groups must divide the {len(weights)} filters, got {groups}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be above 0 and finite, got {scale}")
    if columns < 1 or zoom < 1:
        raise ValueError(f"columns and zoom must be at least 1, got {columns} and {zoom}")
    pixels = (0.5 + weights.detach().float().cpu() / (2 * scale)).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)  # (N, 3, zoom*h, zoom*w)
    pixels = F.pad(pixels, (0, FILTER_GAP, 0, FILTER_GAP), value=255)
    size, (height, width) = len(pixels) // groups, pixels.shape[2:]
    columns = min(columns, size)
    rows = -(-size // columns)
    blank = pixels.new_full((rows * columns - size, 3, height, width), 255)
    bands: list[Tensor] = []
    for group in pixels.split(size):
        cells = torch.cat([group, blank]).view(rows, columns, 3, height, width)
        band = cells.permute(2, 0, 3, 1, 4).reshape(3, rows * height, columns * width)
        bands += [band[:, :-FILTER_GAP, :-FILTER_GAP], band.new_full((3, GROUP_GAP, band.shape[2] - FILTER_GAP), 255)]
    return torch.cat(bands[:-1], dim=1)


def full_colour(weights: Tensor) -> float:
    """The absolute weight that 99.5 % do not exceed: a few large ones would leave all others grey. Above 0."""
    largest = weights.abs().max().item() if weights.numel() else 0.0
    return weights.detach().float().abs().flatten().quantile(0.995).item() or largest or 1.0


def filter_grid(weights: Tensor, groups: int = 1, scale: float | None = None, title: str = "") -> Tensor:
    """Draw a convolution's filters like the paper's Figure 3, with a title, filter numbers and the scale.

    Args:
        weights: ``(N, 3, h, w)`` float.
        groups: 2 tells the filters of GPU 1 and GPU 2 apart.
        scale: The weight shown as full colour. None takes :func:`full_colour`'s.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8: :func:`filter_mosaic` at ``FILTER_TOP``, ``FILTER_LEFT``, and its letters.

    Raises:
        ValueError: As :func:`filter_mosaic`; also if a weight is NaN or infinite.

    Source:
        Krizhevsky et al. 2012, Figure 3.
    """
    if not bool(weights.isfinite().all()):
        raise ValueError("weights hold NaN or infinite values")
    largest = weights.abs().max().item() if weights.numel() else 0.0
    if scale is None:
        scale = full_colour(weights)
    columns, zoom = 12, max(1, 55 // max(weights.shape[-2:]))
    mosaic = filter_mosaic(weights, scale, groups, columns, zoom)
    height, width = mosaic.shape[1:]
    page_width = max(FILTER_LEFT + width + FILTER_RIGHT, 620)  # the longest line of letters
    canvas = torch.full((3, FILTER_TOP + height + FILTER_BOTTOM, page_width), 255, dtype=torch.uint8)
    canvas[:, FILTER_TOP : FILTER_TOP + height, FILTER_LEFT : FILTER_LEFT + width] = mosaic

    labels = [_Label(FILTER_LEFT, 19, title, size=11, weight="bold")]
    size, cell = len(weights) // groups, zoom * weights.shape[2] + FILTER_GAP
    rows = -(-size // columns)
    for group in range(groups):
        top = FILTER_TOP + group * (rows * cell - FILTER_GAP + GROUP_GAP)
        first = group * size
        owner = f"GPU {group + 1}: " if groups > 1 else ""
        labels.append(_Label(FILTER_LEFT, top - 12, f"{owner}filters {first} to {first + size - 1}"))
        for row in range(rows):
            y = top + row * cell + (cell - FILTER_GAP) / 2
            labels.append(_Label(FILTER_LEFT - 8, y, f"{first + row * columns}", align="right"))
    cut = f" and beyond (largest: {largest:.3g})" if largest > scale else ""
    scale_text = f"grey = 0, full colour = ±{scale:.3g}{cut}; one scale for all filters"
    labels.append(_Label(FILTER_LEFT, FILTER_TOP + height + 18, scale_text))
    return _lettered(canvas, labels)


# -------------------------------------------------------------------------------------------------------- retrieval

THUMB, FRAME = 108, 4  # pixels: longer side of an image; width of the frame around a neighbour
CELL_WIDTH, CELL_HEIGHT = THUMB + 2 * FRAME + 12, THUMB + 2 * FRAME + 46
PANEL_LEFT, PANEL_TOP, PANEL_GAP = 16, 70, 28  # PANEL_GAP sets the query apart from its neighbours


def retrieval_panel(
    queries: Tensor,
    neighbours: Tensor,
    query_targets: Sequence[int | None],
    neighbour_targets: Sequence[Sequence[int]],
    distances: Sequence[Sequence[float]],
    class_names: Sequence[str],
    title: str = "",
    query_names: Sequence[str] | None = None,
) -> Tensor:
    """Draw queries, one a row at the left, and their nearest neighbours, framed by whether they share its class.

    Args:
        queries: ``(R, 3, h, w)`` float RGB in ``[0, 1]``.
        neighbours: ``(R, K, 3, h, w)`` float RGB in ``[0, 1]``, nearest first.
        query_targets: R classes; None where it is not known, which leaves the frames grey.
        neighbour_targets: R times K classes.
        distances: R times K distances, printed as they are.
        class_names: Name of each class.
        title: Written above.
        query_names: What is written under the R queries in place of their classes.

    Returns:
        ``(3, H, W)`` uint8. Cell ``(r, c)``, with the query as ``c = 0``, has the corner of its frame at row
        ``PANEL_TOP + r * CELL_HEIGHT``, column ``PANEL_LEFT + c * CELL_WIDTH``, plus ``PANEL_GAP`` where ``c > 0``.

    Raises:
        ValueError: If the shapes don't fit.

    Source:
        Krizhevsky et al. 2012, Figure 4, right: five test images and the six training images nearest to each.
    """
    rows, k = neighbours.shape[:2]
    fits = queries.ndim == 4 and neighbours.ndim == 5 and queries.shape == (rows, *neighbours.shape[2:])
    if not fits or queries.shape[1] != 3 or not rows or not k:
        raise ValueError(
            "queries must be (R, 3, h, w) and neighbours (R, K, 3, h, w), got "
            f"{tuple(queries.shape)} and {tuple(neighbours.shape)}"
        )
    lists = {"neighbour_targets": neighbour_targets, "distances": distances}
    for name, values in lists.items():
        if len(values) != rows or any(len(row) != k for row in values):
            raise ValueError(f"{name} must be {rows} rows of {k}")
    if len(query_targets) != rows:
        raise ValueError(f"query_targets must be {rows} classes, got {len(query_targets)}")
    names = [None if t is None else class_names[t] for t in query_targets] if query_names is None else query_names
    if len(names) != rows or None in names:
        raise ValueError(f"query_names must be {rows} names, one for each query whose class is not known")

    height = PANEL_TOP + rows * CELL_HEIGHT + 8
    width = max(PANEL_LEFT + (k + 1) * CELL_WIDTH + PANEL_GAP + PANEL_LEFT - 12, 620)
    canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
    first = PANEL_LEFT + CELL_WIDTH + PANEL_GAP  # where the neighbours begin
    line = first - PANEL_GAP // 2 - 6
    canvas[:, PANEL_TOP : height - 20, line : line + 1] = 190
    labels = [
        _Label(PANEL_LEFT + FRAME, 21, title, size=11, weight="bold"),
        _Label(PANEL_LEFT + FRAME, PANEL_TOP - 15, "query"),
        _Label(first, PANEL_TOP - 15, "nearest training images, nearest first, with their distances in fc7"),
    ]
    for r in range(rows):
        top = PANEL_TOP + r * CELL_HEIGHT
        name = _shortened(str(names[r]))
        _paste(canvas, queries[r], top, PANEL_LEFT, frame=None)
        labels.append(_Label(PANEL_LEFT + FRAME + THUMB / 2, top + THUMB + 22, name, align="center", weight="bold"))
        for c in range(k):
            left = first + c * CELL_WIDTH
            right = neighbour_targets[r][c] == query_targets[r]
            known = query_targets[r] is not None
            colour = UNKNOWN if not known else RIGHT if right else WRONG
            _paste(canvas, neighbours[r, c], top, left, frame=colour)
            middle, under = left + FRAME + THUMB / 2, top + THUMB + 22
            mark = f"{MARKS[right]} " if known else ""
            name = f"{mark}{_shortened(class_names[neighbour_targets[r][c]])}"
            labels.append(_Label(middle, under, name, colour=colour if known else INK, align="center"))
            labels.append(_Label(middle, under + 15, f"{distances[r][c]:#.4g}", size=7, align="center"))
    return _lettered(canvas, labels)


def _shortened(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _paste(canvas: Tensor, image: Tensor, top: int, left: int, frame: tuple[int, int, int] | None) -> None:
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


def _lettered(canvas: Tensor, labels: Sequence[_Label]) -> Tensor:
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
