"""Convolution filters as a picture: the paper's Figure 3. Pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.pure.canvas import Label, lettered

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

    labels = [Label(FILTER_LEFT, 19, title, size=11, weight="bold")]
    size, cell = len(weights) // groups, zoom * weights.shape[2] + FILTER_GAP
    rows = -(-size // columns)
    for group in range(groups):
        top = FILTER_TOP + group * (rows * cell - FILTER_GAP + GROUP_GAP)
        first = group * size
        owner = f"GPU {group + 1}: " if groups > 1 else ""
        labels.append(Label(FILTER_LEFT, top - 12, f"{owner}filters {first} to {first + size - 1}"))
        for row in range(rows):
            y = top + row * cell + (cell - FILTER_GAP) / 2
            labels.append(Label(FILTER_LEFT - 8, y, f"{first + row * columns}", align="right"))
    cut = f" and beyond (largest: {largest:.3g})" if largest > scale else ""
    scale_text = f"grey = 0, full colour = ±{scale:.3g}{cut}; one scale for all filters"
    labels.append(Label(FILTER_LEFT, FILTER_TOP + height + 18, scale_text))
    return lettered(canvas, labels)
