"""Images over their most probable labels as bars: the paper's Figure 4, left. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from callbacks.pure.canvas import FRAME, INK, RIGHT, THUMB, Label, lettered, paste, shortened

OTHER = (141, 160, 203)  # a bar that is not the right label's: blue, which no pair of eyes takes for RIGHT's green
TRACK = (240, 240, 240)  # what a bar of probability 1 would fill
COLUMNS, LEFT, TOP = 4, 24, 62
BAR_HEIGHT, BAR_STEP, BAR_WIDTH, NAME_WIDTH = 15, 20, 84, 96  # pixels
CELL_WIDTH = NAME_WIDTH + BAR_WIDTH + 48
BARS_TOP = THUMB + 2 * FRAME + 30  # below the cell's upper edge: first the image and the name of what it shows


def prediction_panel(
    images: Tensor, probabilities: Tensor, targets: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Tensor:
    """Draw images, each over its most probable labels as bars; the right label's bar is green.

    Args:
        images: ``(N, 3, h, w)`` float RGB in ``[0, 1]``.
        probabilities: ``(N, C)`` float in ``[0, 1]``.
        targets: N right labels.
        class_names: C names.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8. Cell ``i`` begins at column ``LEFT + (i % COLUMNS) * CELL_WIDTH``; in it bar ``b``, for
        the ``b``-th most probable of at most five labels, at row ``BARS_TOP + b * BAR_STEP`` and ``NAME_WIDTH`` pixels
        in; it is ``probability * BAR_WIDTH`` pixels long, at least 1.

    Raises:
        ValueError: If the shapes don't fit or a probability is NaN.

    Source:
        Krizhevsky et al. 2012, Figure 4, left: eight test images, the five labels most probable under the model.
    """
    count, classes = len(images), len(class_names)
    if images.ndim != 4 or images.shape[1] != 3 or not count:
        raise ValueError(f"images must be (N, 3, h, w), got {tuple(images.shape)}")
    if probabilities.shape != (count, classes) or len(targets) != count:
        raise ValueError(
            f"probabilities must be ({count}, {classes}) and targets {count} labels, got "
            f"{tuple(probabilities.shape)} and {len(targets)}"
        )
    if bool(probabilities.isnan().any()):
        raise ValueError("probabilities hold NaN")
    shown = min(5, classes)
    top = probabilities.float().cpu().sort(dim=1, descending=True, stable=True)
    cell_height = BARS_TOP + shown * BAR_STEP + 22
    rows, columns = -(-count // COLUMNS), min(COLUMNS, count)
    canvas = torch.full((3, TOP + rows * cell_height, max(LEFT + columns * CELL_WIDTH, 620)), 255, dtype=torch.uint8)
    labels = [
        Label(LEFT, 19, title, size=11, weight="bold"),
        Label(LEFT, 40, "the five most probable labels; green: the right one" if shown == 5 else "green: right"),
    ]
    for i in range(count):
        y, x = TOP + i // COLUMNS * cell_height, LEFT + i % COLUMNS * CELL_WIDTH
        middle = x + (NAME_WIDTH + BAR_WIDTH) / 2
        paste(canvas, images[i], y, int(middle) - THUMB // 2 - FRAME, frame=None)
        name = shortened(class_names[targets[i]])
        labels.append(Label(middle, y + THUMB + 2 * FRAME + 10, name, size=9.5, align="center", weight="bold"))
        for bar in range(shown):
            label, probability = int(top.indices[i, bar]), float(top.values[i, bar])
            right = label == targets[i]
            row, column = y + BARS_TOP + bar * BAR_STEP, x + NAME_WIDTH
            _fill(canvas, row, column, BAR_WIDTH, TRACK)
            _fill(canvas, row, column, max(1, round(probability * BAR_WIDTH)), RIGHT if right else OTHER)
            style = {"colour": RIGHT if right else INK, "weight": "bold" if right else "normal"}
            name, line = shortened(class_names[label]), row + BAR_HEIGHT / 2
            labels.append(Label(column - 6, line, name, align="right", **style))  # type: ignore[arg-type]
            labels.append(Label(column + BAR_WIDTH + 5, line, f"{100 * probability:.0f} %", size=7.5))
    return lettered(canvas, labels)


def _fill(canvas: Tensor, top: int, left: int, width: int, colour: tuple[int, int, int]) -> None:
    canvas[:, top : top + BAR_HEIGHT, left : left + width] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
