"""What a trained network makes of pictures: both halves of the paper's Figure 4 in a row (Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from callbacks.pure.canvas import CELL, FRAME, THUMB, Canvas, shortened
from callbacks.pure.heat_panel import overlay
from callbacks.pure.prediction_panel import CELL_WIDTH as BARS_WIDTH
from callbacks.pure.prediction_panel import draw_bars

LEFT, TOP, GAP = 16, 70, 20
STEP, ROW_HEIGHT = CELL + 12, CELL + 46  # from one neighbour, or one picture, to the next


def photo_panel(
    photos: Tensor,
    names: Sequence[str],
    probabilities: Tensor,
    class_names: Sequence[str],
    seen: Tensor | None = None,
    heat: Tensor | None = None,
    neighbours: Tensor | None = None,
    neighbour_names: Sequence[Sequence[str]] = (),
    distances: Sequence[Sequence[float]] = (),
    title: str = "",
) -> Tensor:
    """Draw pictures, a row each: its most probable labels as bars, where the evidence lies, its nearest neighbours.

    Args:
        photos: ``(R, 3, h, w)`` float RGB in ``[0, 1]``.
        names: What is written under the R pictures.
        probabilities: ``(R, C)`` float.
        class_names: By label.
        seen: ``(R, 3, H, W)`` float RGB in ``[0, 1]``: what the network saw, under the heat.
        heat: ``(R, H, W)`` float, which goes with ``seen``; None leaves both out.
        neighbours: ``(R, K, 3, h, w)`` float RGB in ``[0, 1]``, nearest first; None leaves them out.
        neighbour_names: R times K, written under them.
        distances: R times K, written under those.
        title: Above all.

    Returns:
        ``(3, H, W)`` uint8.
    """
    shows_heat = heat is not None and seen is not None
    bars = LEFT + STEP
    maps = bars + BARS_WIDTH
    first = maps + (STEP + GAP if shows_heat else 0)
    k = 0 if neighbours is None else neighbours.shape[1]
    canvas = Canvas(first + k * STEP + LEFT, TOP + len(photos) * ROW_HEIGHT)
    canvas.text(LEFT + FRAME, 21, title, size=11, bold=True)
    headings = {bars + 24: "the most probable labels", maps: "the evidence" if shows_heat else ""}
    headings[first] = headings.get(first, "") if not k else "nearest training images, by the last hidden layer (fc7)"
    for x, words in headings.items():
        canvas.text(x, TOP - 15, words)
    for row, photo in enumerate(photos):
        y = TOP + row * ROW_HEIGHT
        canvas.image(LEFT, y, photo)
        canvas.text(LEFT + CELL / 2, y + THUMB + 22, shortened(names[row]), align="middle", bold=True)
        draw_bars(canvas, bars, y + 8, probabilities[row], class_names)
        if heat is not None and seen is not None:
            canvas.image(maps, y, overlay(seen[row], heat[row]))
        for column, neighbour in enumerate(() if neighbours is None else neighbours[row]):
            x, under = first + column * STEP, y + THUMB + 22
            canvas.image(x, y, neighbour)
            canvas.text(x + CELL / 2, under, shortened(neighbour_names[row][column]), align="middle")
            canvas.text(x + CELL / 2, under + 15, f"{distances[row][column]:#.4g}", size=7, align="middle")
    return canvas.pixels()
