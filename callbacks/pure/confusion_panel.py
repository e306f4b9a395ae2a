"""A confusion matrix as a picture and as markdown.

``counts`` is ``(C, C)`` int64 throughout: how many images of a row's class are taken for a column's class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from callbacks.pure.canvas import CELL, INK, RGB, RIGHT, WRONG, Canvas, shortened

MATRIX_LEFT, MATRIX_TOP = 110, 84  # pixels, of cell (0, 0)
CELL_WIDTH, CELL_HEIGHT = 62, 30
BARS_GAP, BAR_WIDTH, BAR_HEIGHT = 26, 130, 16  # right of the matrix
PAIRS_GAP, PAIR_HEIGHT, PAIR_WIDTH, PAIR_LEFT = 64, CELL + 26, CELL + 8, 170  # below it


class Pair(NamedTuple):
    """A class and another one that the network takes it for."""

    target: int  # the right class
    predicted: int  # the other one
    times: int  # how many images


def most_confused(counts: Tensor, number: int) -> list[Pair]:
    """Find the pairs of classes that are confused most often: at most ``number``, of at least one image each.

    The largest count comes first; of equals, the first in reading order.
    """
    wrong = counts.clone().cpu().fill_diagonal_(0).flatten()
    times, places = (found.tolist() for found in wrong.sort(descending=True, stable=True))
    classes = len(counts)
    return [Pair(i // classes, i % classes, n) for n, i in zip(times[:number], places[:number], strict=True) if n > 0]


def class_accuracies(counts: Tensor) -> list[float | None]:
    """The fraction of each class's images that is predicted right: None for a class without images."""
    rights, totals = counts.diagonal().tolist(), counts.sum(1).tolist()
    return [right / total if total else None for right, total in zip(rights, totals, strict=True)]


def confusion_panel(
    counts: Tensor, class_names: Sequence[str], examples: Mapping[Pair, Sequence[Tensor]] | None = None, title: str = ""
) -> Tensor:
    """Draw a confusion matrix, each class's accuracy as a bar at the end of its row, and below confused images.

    ``examples`` has, for each pair to be shown, its images ``(3, h, w)``: float RGB in ``[0, 1]``. A ValueError where
    ``counts`` and the C ``class_names`` don't fit.

    Returns:
        ``(3, H, W)`` uint8. Cell ``(i, j)`` lies at row ``MATRIX_TOP + i * CELL_HEIGHT``, column
        ``MATRIX_LEFT + j * CELL_WIDTH``: the greener (diagonal) or redder, the larger the part of the row's images;
        red is full at half of them, so that common mistakes can be seen.
    """
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(f"counts: {tuple(counts.shape)}, expected {(classes, classes)}. Give each class one name.")
    counts, examples = counts.cpu(), examples or {}
    bars_left = MATRIX_LEFT + classes * CELL_WIDTH + BARS_GAP
    pairs_top = MATRIX_TOP + classes * CELL_HEIGHT + PAIRS_GAP
    most = max(map(len, examples.values()), default=0)
    width = max(bars_left + BAR_WIDTH + 70, PAIR_LEFT + most * PAIR_WIDTH)
    canvas = Canvas(width, pairs_top + len(examples) * PAIR_HEIGHT if examples else pairs_top - 24)
    canvas.text(16, 19, title, size=11, bold=True)
    canvas.text(16, 42, "rows: what it is, columns: what the network says; number of images")
    canvas.text(bars_left, 42, "accuracy of each class")
    _draw_matrix(canvas, counts, class_names, bars_left)
    if examples:
        heading = "most confused, and the images of whose wrong class the network was surest"
        canvas.text(16, pairs_top - 24, heading, bold=True)
    for number, (pair, images) in enumerate(examples.items()):
        y = pairs_top + number * PAIR_HEIGHT
        middle = y + CELL / 2
        canvas.text(16, middle - 18, shortened(class_names[pair.target]), size=9.5, bold=True)
        canvas.text(16, middle, f"taken for {shortened(class_names[pair.predicted])}", ink=WRONG)
        canvas.text(16, middle + 18, f"{pair.times} of {int(counts[pair.target].sum())}")
        for i, image in enumerate(images):
            canvas.image(PAIR_LEFT + i * PAIR_WIDTH, y, image)
    return canvas.pixels()


def _draw_matrix(canvas: Canvas, counts: Tensor, class_names: Sequence[str], bars_left: int) -> None:
    parts = counts / counts.sum(1, keepdim=True).clamp_min(1)  # of each class's images
    for i, (name, accuracy) in enumerate(zip(class_names, class_accuracies(counts), strict=True)):
        y, over = MATRIX_TOP + i * CELL_HEIGHT, MATRIX_LEFT + i * CELL_WIDTH + CELL_WIDTH / 2
        middle = y + CELL_HEIGHT / 2
        canvas.text(MATRIX_LEFT - 8, middle, shortened(name), align="right")
        canvas.text(over, MATRIX_TOP - 12, shortened(name, 11), size=7.5, align="middle")
        for j, (count, part) in enumerate(zip(counts[i].tolist(), parts[i].tolist(), strict=True)):
            x = MATRIX_LEFT + j * CELL_WIDTH
            strength = part if i == j else min(1.0, 2 * part)
            ink = (255, 255, 255) if strength > 0.6 else INK if count else (170, 170, 170)
            canvas.bar(x, y, CELL_WIDTH - 1, CELL_HEIGHT - 1, _tint(RIGHT if i == j else WRONG, strength))
            canvas.text(x + CELL_WIDTH / 2, middle, str(int(count)), ink=ink, align="middle")
        bar_top = y + (CELL_HEIGHT - BAR_HEIGHT) // 2
        canvas.bar(bars_left, bar_top, BAR_WIDTH, BAR_HEIGHT, (240, 240, 240))
        canvas.bar(bars_left, bar_top, round((accuracy or 0) * BAR_WIDTH), BAR_HEIGHT, RIGHT)
        canvas.text(bars_left + BAR_WIDTH + 8, middle, "no image" if accuracy is None else f"{100 * accuracy:.1f} %")


def _tint(colour: RGB, strength: float) -> RGB:
    """A colour mixed with white."""
    red, green, blue = (round(255 + strength * (channel - 255)) for channel in colour)
    return red, green, blue


def confusion_text(counts: Tensor, class_names: Sequence[str], pairs: Sequence[Pair], title: str = "") -> str:
    """Write the same down as markdown: below the title each class's accuracy, the confused pairs, the matrix."""
    names = [name.replace("|", "\\|") for name in class_names]  # a bar would end a table's cell
    totals, rights = counts.sum(1).tolist(), counts.diagonal().tolist()
    lines = [f"**{title}**", ""] if title else []
    lines += ["| class | images | right | accuracy |", "|---|--:|--:|--:|"]
    rows = list(zip(names, totals, rights, class_accuracies(counts), strict=True))
    if sum(totals):
        rows.append(("all", sum(totals), sum(rights), sum(rights) / sum(totals)))
    for name, total, right, accuracy in rows:
        lines.append(f"| {name} | {total} | {right} | {'-' if accuracy is None else f'{100 * accuracy:.1f} %'} |")
    if pairs:
        lines += ["", "Most confused:", ""]
        lines += [f"- {names[p.target]} taken for {names[p.predicted]}: {p.times} of {totals[p.target]}" for p in pairs]
    lines += ["", "| is \\ said | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    lines += [f"| {names[i]} | " + " | ".join(map(str, row)) + " |" for i, row in enumerate(counts.tolist())]
    return "\n".join(lines)
