"""Images with their nearest neighbours as a picture: the paper's Figure 4, right. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.pure.canvas import FRAME, INK, MARKS, RIGHT, THUMB, UNKNOWN, WRONG, Label, lettered, paste, shortened

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
        Label(PANEL_LEFT + FRAME, 21, title, size=11, weight="bold"),
        Label(PANEL_LEFT + FRAME, PANEL_TOP - 15, "query"),
        Label(first, PANEL_TOP - 15, "nearest training images, nearest first, with their distances in fc7"),
    ]
    for r in range(rows):
        top = PANEL_TOP + r * CELL_HEIGHT
        name = shortened(str(names[r]))
        paste(canvas, queries[r], top, PANEL_LEFT, frame=None)
        labels.append(Label(PANEL_LEFT + FRAME + THUMB / 2, top + THUMB + 22, name, align="center", weight="bold"))
        for c in range(k):
            left = first + c * CELL_WIDTH
            right = neighbour_targets[r][c] == query_targets[r]
            known = query_targets[r] is not None
            colour = UNKNOWN if not known else RIGHT if right else WRONG
            paste(canvas, neighbours[r, c], top, left, frame=colour)
            middle, under = left + FRAME + THUMB / 2, top + THUMB + 22
            mark = f"{MARKS[right]} " if known else ""
            name = f"{mark}{shortened(class_names[neighbour_targets[r][c]])}"
            labels.append(Label(middle, under, name, colour=colour if known else INK, align="center"))
            labels.append(Label(middle, under + 15, f"{distances[r][c]:#.4g}", size=7, align="center"))
    return lettered(canvas, labels)
