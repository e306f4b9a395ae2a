"""The paper's Figure 3: 96 filters, the upper 48 learned on GPU 1, the lower 48 on GPU 2 (Krizhevsky et al. 2012)."""

from __future__ import annotations

from torch import Tensor

from callbacks.pure.canvas import Canvas, to_uint8

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
        ``zoom * w + FILTER_GAP`` pixels. A ValueError where weights are no RGB filters, or a number is out of range.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or not weights.numel():
        raise ValueError(f"weights: {tuple(weights.shape)}, expected RGB filters (N, 3, h, w). Take conv1's.")
    if groups < 1 or len(weights) % groups:
        raise ValueError(f"groups: {groups}, expected a divisor of {len(weights)} filters. Choose 1, which always is.")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: {scale}, expected a finite number above 0. Choose the largest weight, for example.")
    if columns < 1 or zoom < 1:
        raise ValueError(f"columns, zoom: {columns}, {zoom}, expected 1 or more. Choose 12 and 5, for example.")
    pixels = to_uint8(0.5 + weights.detach().float().cpu() / (2 * scale))
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)  # (N, 3, zoom*h, zoom*w)
    height, width = pixels.shape[2:]
    corners = _corners(len(pixels), groups, columns, height, width)
    right, bottom = (max(places) for places in zip(*corners, strict=True))
    mosaic = pixels.new_full((3, bottom + height, right + width), 255)
    for picture, (x, y) in zip(pixels, corners, strict=True):
        mosaic[:, y : y + height, x : x + width] = picture
    return mosaic


def _corners(count: int, groups: int, columns: int, height: int, width: int) -> list[tuple[int, int]]:
    """Column and row in the mosaic at which each filter, of ``height`` by ``width`` pixels, begins."""
    size = count // groups
    row_step, column_step = height + FILTER_GAP, width + FILTER_GAP
    group_step = -(-size // columns) * row_step - FILTER_GAP + GROUP_GAP
    places = [(i // size, *divmod(i % size, columns)) for i in range(count)]
    return [(column * column_step, group * group_step + row * row_step) for group, row, column in places]


def full_colour(weights: Tensor) -> float:
    """The absolute weight that 99.5 % do not exceed: a few large ones would leave all others grey. Above 0."""
    return weights.detach().float().abs().flatten().quantile(0.995).item() or weights.abs().max().item() or 1.0


def filter_grid(weights: Tensor, groups: int = 1, scale: float | None = None, title: str = "") -> Tensor:
    """Draw a convolution's filters like the paper's Figure 3, with a title above, filter numbers and the scale.

    The arguments are :func:`filter_mosaic`'s, and so are the errors; a weight must not be NaN or infinite either.
    2 groups are called GPU 1 and GPU 2. The scale is :func:`full_colour`'s where none is given.

    Returns:
        ``(3, H, W)`` uint8: :func:`filter_mosaic` at ``FILTER_TOP``, ``FILTER_LEFT``, and its letters.
    """
    if not bool(weights.isfinite().all()):
        raise ValueError("weights: NaN or infinite, expected finite numbers. Draw those of an earlier step.")
    scale = full_colour(weights) if scale is None else scale
    columns, zoom = 12, 55 // max(1, *weights.shape[-2:]) or 1
    mosaic = filter_mosaic(weights, scale, groups, columns, zoom)
    canvas = Canvas(FILTER_LEFT + mosaic.shape[2] + FILTER_RIGHT, FILTER_TOP + mosaic.shape[1] + FILTER_BOTTOM)
    canvas.text(FILTER_LEFT, 19, title, size=11, bold=True)
    canvas.paste(FILTER_LEFT, FILTER_TOP, mosaic)
    count, (height, width) = len(weights), (zoom * n for n in weights.shape[2:])
    size = count // groups
    for i, (x, y) in enumerate(_corners(count, groups, columns, height, width)):
        if i % size == 0:
            owner = f"GPU {i // size + 1}: " if groups > 1 else ""
            canvas.text(FILTER_LEFT, FILTER_TOP + y - 12, f"{owner}filters {i} to {i + size - 1}")
        if x == 0:
            canvas.text(FILTER_LEFT - 8, FILTER_TOP + y + height / 2, str(i), align="right")
    largest = weights.abs().max().item()
    cut = f" and beyond (largest: {largest:.3g})" if largest > scale else ""
    scale_text = f"grey = 0, full colour = ±{scale:.3g}{cut}; one scale for all filters"
    canvas.text(FILTER_LEFT, FILTER_TOP + mosaic.shape[1] + 18, scale_text)
    return canvas.pixels()
