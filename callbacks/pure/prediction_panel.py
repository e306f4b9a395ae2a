"""The paper's Figure 4, left: test images over the five labels most probable to the model (Krizhevsky et al. 2012)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from callbacks.pure.canvas import CELL, INK, RIGHT, Canvas, shortened

OTHER = (141, 160, 203)  # a bar that is not the right label's: blue, which no pair of eyes takes for RIGHT's green
TRACK = (240, 240, 240)  # what a bar of probability 1 would fill
COLUMNS, LEFT, TOP = 4, 24, 62
BAR_HEIGHT, BAR_STEP, BAR_WIDTH, NAME_WIDTH = 15, 20, 84, 96  # pixels
CELL_WIDTH = NAME_WIDTH + BAR_WIDTH + 48
BARS_TOP = CELL + 30  # below the cell's upper edge: first the image and the name of what it shows


def prediction_panel(
    images: Tensor, probabilities: Tensor, targets: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Tensor:
    """Draw images, each over its most probable labels as bars; the right label's bar is green.

    ``images`` are ``(N, 3, h, w)`` float RGB, ``probabilities`` ``(N, C)`` float, both in ``[0, 1]``; ``targets`` are N
    right labels. NaN is a ValueError, and so are shapes that don't fit.

    Returns:
        ``(3, H, W)`` uint8. Cell ``i`` begins at column ``LEFT + (i % COLUMNS) * CELL_WIDTH``; in it bar ``b``, for
        the ``b``-th most probable of at most five labels, at row ``BARS_TOP + b * BAR_STEP`` and ``NAME_WIDTH`` pixels
        in; it is ``probability * BAR_WIDTH`` pixels long, at least 1.
    """
    count, classes = len(images), len(class_names)
    if images.ndim != 4 or images.shape[1] != 3 or not count:
        raise ValueError(f"images: {tuple(images.shape)}, expected (N, 3, h, w). Give at least one RGB image.")
    if probabilities.shape != (count, classes):
        raise ValueError(f"probabilities: {tuple(probabilities.shape)}, expected {(count, classes)}. Give them all.")
    if len(targets) != count:
        raise ValueError(f"targets: {len(targets)} labels, expected {count}. Give one for each image.")
    if bool(probabilities.isnan().any()):
        raise ValueError("probabilities: NaN among them, expected numbers in [0, 1]. Leave such images out.")
    shown = min(5, classes)
    cell_height = BARS_TOP + shown * BAR_STEP + 22
    canvas = Canvas(LEFT + min(COLUMNS, count) * CELL_WIDTH, TOP + -(-count // COLUMNS) * cell_height)
    canvas.text(LEFT, 19, title, size=11, bold=True)
    canvas.text(LEFT, 40, "the five most probable labels; green: the right one" if shown == 5 else "green: right")
    for i, target in enumerate(targets):
        x, y = LEFT + i % COLUMNS * CELL_WIDTH, TOP + i // COLUMNS * cell_height
        middle = x + (NAME_WIDTH + BAR_WIDTH) // 2
        canvas.image(middle - CELL // 2, y, images[i])
        canvas.text(middle, y + CELL + 10, shortened(class_names[target]), size=9.5, align="middle", bold=True)
        draw_bars(canvas, x, y + BARS_TOP, probabilities[i], class_names, target)
    return canvas.pixels()


def draw_bars(
    canvas: Canvas, x: int, y: int, probabilities: Tensor, class_names: Sequence[str], target: int | None = None
) -> None:
    """Draw the most probable of ``(C,)`` labels, at most five, as bars; green if it is ``target``, the right one."""
    values, labels = probabilities.float().cpu().sort(descending=True, stable=True)
    for bar, (label, probability) in enumerate(zip(labels[:5].tolist(), values[:5].tolist(), strict=True)):
        left, top = x + NAME_WIDTH, y + bar * BAR_STEP
        line, right = top + BAR_HEIGHT / 2, label == target
        canvas.bar(left, top, BAR_WIDTH, BAR_HEIGHT, TRACK)
        canvas.bar(left, top, max(1, round(probability * BAR_WIDTH)), BAR_HEIGHT, RIGHT if right else OTHER)
        name = shortened(class_names[label])
        canvas.text(left - 6, line, name, ink=RIGHT if right else INK, align="right", bold=right)
        canvas.text(left + BAR_WIDTH + 5, line, f"{100 * probability:.0f} %", size=7.5)
