"""The paper's Figure 4, right: test images and the six training images nearest to each (Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from callbacks.pure.canvas import CELL, FRAME, MARKS, RIGHT, THUMB, WRONG, Canvas, shortened

CELL_WIDTH, CELL_HEIGHT = CELL + 12, CELL + 46
PANEL_LEFT, PANEL_TOP, PANEL_GAP = 16, 70, 28  # PANEL_GAP sets the query apart from its neighbours


def retrieval_panel(
    queries: Tensor,
    neighbours: Tensor,
    query_targets: Sequence[int],
    neighbour_targets: Sequence[Sequence[int]],
    distances: Sequence[Sequence[float]],
    class_names: Sequence[str],
    title: str = "",
) -> Tensor:
    """Draw queries, one a row at the left, and their nearest neighbours, framed by whether they share its class.

    Args:
        queries: ``(R, 3, h, w)`` float RGB in ``[0, 1]``.
        neighbours: ``(R, K, 3, h, w)`` float RGB in ``[0, 1]``, nearest first.
        query_targets: R classes.
        neighbour_targets: R times K classes.
        distances: R times K distances, printed as they are.
        class_names: Name of each class.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8. Cell ``(r, c)``, with the query as ``c = 0``, has the corner of its frame at row
        ``PANEL_TOP + r * CELL_HEIGHT``, column ``PANEL_LEFT + c * CELL_WIDTH``, plus ``PANEL_GAP`` where ``c > 0``.
        A ValueError where shapes don't fit.
    """
    if neighbours.ndim != 5 or neighbours.shape[2] != 3 or not neighbours.numel():
        raise ValueError(f"neighbours: {tuple(neighbours.shape)}, expected (R, K, 3, h, w). Give each query K images.")
    rows, k, *size = neighbours.shape
    if queries.shape != (rows, *size):
        raise ValueError(f"queries: {tuple(queries.shape)}, expected {(rows, *size)}. Give all images in one size.")
    for name, lists in {"neighbour_targets": neighbour_targets, "distances": distances}.items():
        if [len(row) for row in lists] != [k] * rows:
            raise ValueError(f"{name}: other lengths than neighbours, expected {rows} rows of {k}. Give one for each.")
    if len(query_targets) != rows:
        raise ValueError(f"query_targets: {len(query_targets)} classes, expected {rows}. Give one for each query.")

    first = PANEL_LEFT + CELL_WIDTH + PANEL_GAP  # where the neighbours begin
    canvas = Canvas(first + k * CELL_WIDTH + PANEL_LEFT - 12, PANEL_TOP + rows * CELL_HEIGHT + 8)
    canvas.text(PANEL_LEFT + FRAME, 21, title, size=11, bold=True)
    canvas.text(PANEL_LEFT + FRAME, PANEL_TOP - 15, "query")
    canvas.text(first, PANEL_TOP - 15, "nearest training images, nearest first, with their distances in fc7")
    canvas.bar(first - PANEL_GAP // 2 - 6, PANEL_TOP, 1, rows * CELL_HEIGHT - 12, (190, 190, 190))
    for r, target in enumerate(query_targets):
        y = PANEL_TOP + r * CELL_HEIGHT
        under = y + THUMB + 22
        canvas.image(PANEL_LEFT, y, queries[r])
        canvas.text(PANEL_LEFT + CELL / 2, under, shortened(class_names[target]), align="middle", bold=True)
        for c, (other, distance) in enumerate(zip(neighbour_targets[r], distances[r], strict=True)):
            x, right = first + c * CELL_WIDTH, other == target
            colour = RIGHT if right else WRONG
            canvas.image(x, y, neighbours[r, c], frame=colour)
            name = f"{MARKS[right]} {shortened(class_names[other])}"
            canvas.text(x + CELL / 2, under, name, ink=colour, align="middle")
            canvas.text(x + CELL / 2, under + 15, f"{distance:#.4g}", size=7, align="middle")
    return canvas.pixels()
