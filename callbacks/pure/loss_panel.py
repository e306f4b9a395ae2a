"""What a network says of images: the images that it is most wrong about as a picture, and all of them as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from callbacks.pure.canvas import CELL, MARKS, PALE, RIGHT, WRONG, Canvas, shortened

COLUMNS, LEFT, TOP = 5, 24, 62
CELL_WIDTH, CELL_HEIGHT = 164, CELL + 84  # pixels
HEADER = ("place", "true_class", "predicted_class", "confidence", "loss", "true_class_probability")


class Scored(NamedTuple):
    """What a network says of N images: five tensors ``(N,)`` on the CPU."""

    places: Tensor  # int64, which images of their split
    targets: Tensor  # int64, the right classes
    predicted: Tensor  # int64
    confidences: Tensor  # float, the predicted classes' probabilities
    losses: Tensor  # float, cross entropy: minus the logarithms of the right classes' probabilities


def highest_losses(scored: Scored, count: int) -> Scored:
    """The ``count`` images of the highest losses, the highest first; of equals, the first in ``scored``."""
    order = scored.losses.sort(descending=True, stable=True).indices[:count]
    return Scored(*(column[order] for column in scored))


def predictions_csv(scored: Scored, class_names: Sequence[str]) -> str:
    """A line for each image, with the columns of ``HEADER``; numbers have six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    columns = (column.tolist() for column in (*scored, (-scored.losses).exp()))
    for place, target, predicted, *numbers in zip(*columns, strict=True):
        writer.writerow([place, class_names[target], class_names[predicted], *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()


def loss_panel(images: Tensor, scored: Scored, class_names: Sequence[str], title: str = "") -> Tensor:
    """Draw images; below each what it is, what the network says, how sure it is, its loss and its place.

    ``images`` are ``(N, 3, h, w)`` float RGB in ``[0, 1]``, of the N ``scored``. A ValueError where they don't fit.

    Returns:
        ``(3, H, W)`` uint8. Image ``i`` lies in the upper middle of a cell that begins at column
        ``LEFT + (i % COLUMNS) * CELL_WIDTH`` and row ``TOP + (i // COLUMNS) * CELL_HEIGHT``.
    """
    count = len(scored.places)
    if images.ndim != 4 or images.shape[:2] != (count, 3) or not count:
        raise ValueError(f"images: {tuple(images.shape)}, expected ({count}, 3, h, w). Give at least one.")
    canvas = Canvas(LEFT + min(COLUMNS, count) * CELL_WIDTH, TOP + -(-count // COLUMNS) * CELL_HEIGHT)
    canvas.text(LEFT, 19, title, size=11, bold=True)
    canvas.text(LEFT, 40, "below each: what it is, what the network says, how sure it is, loss, place in the split")
    for i, (place, target, predicted, confidence, loss) in enumerate(zip(*(c.tolist() for c in scored), strict=True)):
        x, y = LEFT + i % COLUMNS * CELL_WIDTH, TOP + i // COLUMNS * CELL_HEIGHT
        middle, right = x + CELL_WIDTH // 2 - LEFT // 2, predicted == target
        canvas.image(middle - CELL // 2, y, images[i])
        canvas.text(middle, y + CELL + 8, shortened(class_names[target]), size=9.5, align="middle", bold=True)
        said = f"{MARKS[right]} {shortened(class_names[predicted])}"
        canvas.text(middle, y + CELL + 26, said, ink=RIGHT if right else WRONG, align="middle")
        canvas.text(middle, y + CELL + 44, f"{100 * confidence:.1f} % sure, loss {loss:.2f}", align="middle")
        canvas.text(middle, y + CELL + 60, f"image {place}", size=7.5, ink=PALE, align="middle")
    return canvas.pixels()
