"""A confusion matrix as a picture and as markdown. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from callbacks.pure.canvas import FRAME, INK, RIGHT, THUMB, WRONG, Label, lettered, paste, shortened

MATRIX_LEFT, MATRIX_TOP = 110, 84  # pixels, of cell (0, 0)
CELL_WIDTH, CELL_HEIGHT = 62, 30
BARS_GAP, BAR_WIDTH, BAR_HEIGHT = 26, 130, 16  # right of the matrix
PAIRS_GAP, PAIR_HEIGHT, PAIR_LEFT = 64, THUMB + 2 * FRAME + 26, 170  # below it


class Pair(NamedTuple):
    """A class and another one that the network takes it for.

    Attributes:
        target: The right class.
        predicted: The other one.
        times: How many images.
    """

    target: int
    predicted: int
    times: int


def most_confused(counts: Tensor, number: int) -> list[Pair]:
    """Find the pairs of classes that are confused most often.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        number: How many pairs at most.

    Returns:
        Pairs with at least one image, largest count first; of equals, the first in reading order.
    """
    wrong = counts.clone().cpu().fill_diagonal_(0)
    order = wrong.flatten().sort(descending=True, stable=True)
    classes = len(counts)
    found = zip(order.values.tolist(), order.indices.tolist(), strict=True)
    return [Pair(i // classes, i % classes, n) for n, i in list(found)[:number] if n > 0]


def class_accuracies(counts: Tensor) -> list[float | None]:
    """The fraction of each class's images that is predicted right: None for a class without images.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
    """
    return [
        right / total if total else None
        for right, total in zip(counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)
    ]


def confusion_panel(
    counts: Tensor, class_names: Sequence[str], examples: Mapping[Pair, Sequence[Tensor]] | None = None, title: str = ""
) -> Tensor:
    """Draw a confusion matrix, each class's accuracy as a bar at the end of its row, and below confused images.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        class_names: C names.
        examples: For each pair to be shown, its images ``(3, h, w)``: float RGB in ``[0, 1]``.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8. Cell ``(i, j)`` lies at row ``MATRIX_TOP + i * CELL_HEIGHT``, column
        ``MATRIX_LEFT + j * CELL_WIDTH``: the greener (diagonal) or redder, the larger the part of the row's images;
        red is full at half of them, so that common mistakes can be seen.

    Raises:
        ValueError: If the shapes don't fit.
    """
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(f"counts must be ({classes}, {classes}), got {tuple(counts.shape)}")
    counts, examples = counts.cpu(), examples or {}
    bars = MATRIX_LEFT + classes * CELL_WIDTH + BARS_GAP
    pairs_top = MATRIX_TOP + classes * CELL_HEIGHT + PAIRS_GAP
    most = max(map(len, examples.values()), default=0)
    width = max(bars + BAR_WIDTH + 70, PAIR_LEFT + most * (THUMB + 2 * FRAME + 8), 620)
    height = pairs_top + len(examples) * PAIR_HEIGHT if examples else pairs_top - 24
    canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
    labels = [
        Label(16, 19, title, size=11, weight="bold"),
        Label(16, 42, "rows: what it is, columns: what the network says; number of images"),
        Label(bars, 42, "accuracy of each class"),
    ]

    parts = counts / counts.sum(1, keepdim=True).clamp_min(1)  # of each class's images
    for i in range(classes):
        y, name = MATRIX_TOP + i * CELL_HEIGHT, class_names[i]
        labels.append(Label(MATRIX_LEFT - 8, y + CELL_HEIGHT / 2, shortened(name), align="right"))
        short = name if len(name) <= 11 else name[:10] + "…"
        over = MATRIX_LEFT + i * CELL_WIDTH + CELL_WIDTH / 2
        labels.append(Label(over, MATRIX_TOP - 12, short, size=7.5, align="center"))
        for j in range(classes):
            part = float(parts[i, j])
            strength = part if i == j else min(1.0, 2 * part)
            x = MATRIX_LEFT + j * CELL_WIDTH
            cell = canvas[:, y : y + CELL_HEIGHT - 1, x : x + CELL_WIDTH - 1]
            cell[:] = _tint(RIGHT if i == j else WRONG, strength)
            ink = (255, 255, 255) if strength > 0.6 else INK if counts[i, j] else (170, 170, 170)
            centre = (x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2)
            labels.append(Label(*centre, str(int(counts[i, j])), colour=ink, align="center"))
    for i, accuracy in enumerate(class_accuracies(counts)):
        y = MATRIX_TOP + i * CELL_HEIGHT + (CELL_HEIGHT - BAR_HEIGHT) // 2
        canvas[:, y : y + BAR_HEIGHT, bars : bars + BAR_WIDTH] = 240
        canvas[:, y : y + BAR_HEIGHT, bars : bars + round((accuracy or 0) * BAR_WIDTH)] = _tint(RIGHT, 1)
        text = "no image" if accuracy is None else f"{100 * accuracy:.1f} %"
        labels.append(Label(bars + BAR_WIDTH + 8, y + BAR_HEIGHT / 2, text))

    if examples:
        text = "most confused, and the images of whose wrong class the network was surest"
        labels.append(Label(16, pairs_top - 24, text, weight="bold"))
    for number, (pair, images) in enumerate(examples.items()):
        y = pairs_top + number * PAIR_HEIGHT
        middle = y + FRAME + THUMB / 2
        total = int(counts[pair.target].sum())
        labels.append(Label(16, middle - 18, shortened(class_names[pair.target]), size=9.5, weight="bold"))
        labels.append(Label(16, middle, f"taken for {shortened(class_names[pair.predicted])}", colour=WRONG))
        labels.append(Label(16, middle + 18, f"{pair.times} of {total}"))
        for i, image in enumerate(images):
            paste(canvas, image, y, PAIR_LEFT + i * (THUMB + 2 * FRAME + 8), frame=None)
    return lettered(canvas, labels)


def _tint(colour: tuple[int, int, int], strength: float) -> Tensor:
    """A colour mixed with white, ``(3, 1, 1)`` uint8."""
    mixed = 255 + strength * (torch.tensor(colour, dtype=torch.float32) - 255)
    return mixed.round().to(torch.uint8)[:, None, None]


def confusion_text(counts: Tensor, class_names: Sequence[str], pairs: Sequence[Pair], title: str = "") -> str:
    """Write the same down as markdown: each class's accuracy, the confused pairs, the matrix.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        class_names: C names.
        pairs: The most confused.
        title: A line above.
    """
    names = [name.replace("|", "\\|") for name in class_names]  # a bar would end a table's cell
    totals = counts.sum(1).tolist()
    lines = [f"**{title}**", ""] if title else []
    lines += ["| class | images | right | accuracy |", "|---|--:|--:|--:|"]
    for name, total, right, accuracy in zip(
        names, totals, counts.diagonal().tolist(), class_accuracies(counts), strict=True
    ):
        lines.append(f"| {name} | {total} | {right} | {'-' if accuracy is None else f'{100 * accuracy:.1f} %'} |")
    if sum(totals):
        right = int(counts.diagonal().sum())
        lines.append(f"| all | {sum(totals)} | {right} | {100 * right / sum(totals):.1f} % |")
    if pairs:
        lines += ["", "Most confused:", ""]
        lines += [f"- {names[p.target]} taken for {names[p.predicted]}: {p.times} of {totals[p.target]}" for p in pairs]
    lines += ["", "| is \\ said | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    lines += [f"| {names[i]} | " + " | ".join(map(str, row)) + " |" for i, row in enumerate(counts.tolist())]
    return "\n".join(lines)
