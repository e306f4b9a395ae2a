from __future__ import annotations

import pytest
import torch

from callbacks.pure.canvas import RIGHT, WRONG
from callbacks.pure.confusion_panel import (
    CELL_HEIGHT,
    CELL_WIDTH,
    MATRIX_LEFT,
    MATRIX_TOP,
    PAIR_LEFT,
    PAIRS_GAP,
    Pair,
    class_accuracies,
    confusion_panel,
    confusion_text,
    most_confused,
)

COUNTS = torch.tensor([[4, 1, 0], [3, 2, 0], [3, 0, 7]])
NAMES = ["ant", "bee", "c|w"]


def test_most_confused_and_accuracies() -> None:
    assert most_confused(COUNTS, 2) == [Pair(1, 0, 3), Pair(2, 0, 3)]
    assert most_confused(COUNTS, 9) == [Pair(1, 0, 3), Pair(2, 0, 3), Pair(0, 1, 1)]
    assert most_confused(torch.eye(3, dtype=torch.int64), 3) == []
    assert COUNTS[0, 0] == 4  # untouched
    assert class_accuracies(COUNTS) == [0.8, 0.4, 0.7]
    assert class_accuracies(torch.tensor([[0, 0], [1, 3]])) == [None, 0.75]


def test_the_picture() -> None:
    white, red = torch.ones(3, 8, 8), torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8)
    panel = confusion_panel(COUNTS, NAMES, {Pair(1, 0, 3): [white, red]})

    def corner(i: int, j: int) -> list[int]:  # of a cell, away from its number
        return panel[:, MATRIX_TOP + i * CELL_HEIGHT + 2, MATRIX_LEFT + j * CELL_WIDTH + 2].tolist()

    for i in range(3):
        for j in range(3):
            part = float(COUNTS[i, j] / COUNTS[i].sum())
            part, colour = (part, RIGHT) if i == j else (min(1, 2 * part), WRONG)
            assert corner(i, j) == pytest.approx([255 + part * (c - 255) for c in colour], abs=0.51)
    y, x = MATRIX_TOP + 3 * CELL_HEIGHT + PAIRS_GAP + 50, PAIR_LEFT + 50
    assert panel[:, y, x].tolist() == [255, 255, 255]
    assert panel[:, y, x + 124].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match=r"counts: \(3, 3\), expected \(2, 2\)"):
        confusion_panel(COUNTS, NAMES[:2])


TEXT = r"""**title**

| class | images | right | accuracy |
|---|--:|--:|--:|
| ant | 5 | 4 | 80.0 % |
| bee | 5 | 2 | 40.0 % |
| c\|w | 10 | 7 | 70.0 % |
| all | 20 | 13 | 65.0 % |

Most confused:

- bee taken for ant: 3 of 5

| is \ said | ant | bee | c\|w |
|---|--:|--:|--:|
| ant | 4 | 1 | 0 |
| bee | 3 | 2 | 0 |
| c\|w | 3 | 0 | 7 |"""


def test_the_text() -> None:
    assert confusion_text(COUNTS, NAMES, most_confused(COUNTS, 1), "title") == TEXT
