from __future__ import annotations

import csv
import io

import pytest
import torch

from callbacks.pure.canvas import CELL
from callbacks.pure.loss_panel import (
    CELL_HEIGHT,
    CELL_WIDTH,
    COLUMNS,
    HEADER,
    LEFT,
    TOP,
    Scored,
    highest_losses,
    loss_panel,
    predictions_csv,
)

NAMES = ["cat", 'a "b", c', "ship"]


def scored(*losses: float) -> Scored:
    count = len(losses)
    targets, predicted = torch.arange(count) % 3, torch.arange(1, count + 1) % 3
    return Scored(100 + torch.arange(count), targets, predicted, torch.full((count,), 0.75), torch.tensor(losses))


def test_the_highest_losses() -> None:
    inf = float("inf")
    assert highest_losses(scored(1.0, 3.0, inf, 0.0, 3.0), 3).places.tolist() == [102, 101, 104]
    assert len(highest_losses(scored(1.0), 3).places) == 1


def test_the_table() -> None:
    header, *rows = csv.reader(io.StringIO(predictions_csv(scored(0.0, 0.5), NAMES)))
    assert tuple(header) == HEADER
    assert rows == [
        ["100", "cat", 'a "b", c', "0.75", "0", "1"],
        ["101", 'a "b", c', "ship", "0.75", "0.5", "0.606531"],
    ]


def test_the_panel(written: list[str]) -> None:
    images = torch.zeros(COLUMNS + 1, 3, 4, 4)
    images[COLUMNS, 0] = 1  # the first of the second row is red
    some = scored(*range(COLUMNS + 1))._replace(predicted=torch.zeros(COLUMNS + 1, dtype=torch.int64))
    panel = loss_panel(images, some, NAMES, "a title")
    assert panel.shape[1:] == (TOP + 2 * CELL_HEIGHT, LEFT + COLUMNS * CELL_WIDTH)
    middle = LEFT + (CELL_WIDTH - LEFT) // 2
    assert panel[:, TOP + CELL // 2, middle].tolist() == [0, 0, 0]
    assert panel[:, TOP + CELL_HEIGHT + CELL // 2, middle].tolist() == [255, 0, 0]
    assert panel[:, TOP + CELL_HEIGHT + CELL // 2, middle + CELL_WIDTH].tolist() == [255, 255, 255]
    assert written[2:6] == ["cat", "✓ cat", "75.0 % sure, loss 0.00", "image 100"]
    assert written[6:10] == ['a "b", c', "✗ cat", "75.0 % sure, loss 1.00", "image 101"]


@pytest.mark.parametrize("images", [torch.rand(2, 1, 4, 4), torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4)])
def test_bad_images(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"images: \(.*\), expected \(2, 3, h, w\)"):
        loss_panel(images, scored(1.0, 2.0), NAMES)
    with pytest.raises(ValueError, match="Give at least one"):
        loss_panel(images[:0], scored(), NAMES)
