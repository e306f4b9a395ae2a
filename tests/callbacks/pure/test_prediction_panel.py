from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from callbacks.pure.canvas import RIGHT
from callbacks.pure.prediction_panel import (
    BAR_HEIGHT,
    BAR_STEP,
    BAR_WIDTH,
    BARS_TOP,
    CELL_WIDTH,
    COLUMNS,
    LEFT,
    NAME_WIDTH,
    OTHER,
    TOP,
    TRACK,
    prediction_panel,
)

NAMES = [f"class {i}" for i in range(7)]


def bars(panel: torch.Tensor, cell: int, shown: int = 5) -> list[tuple[Any, int]]:
    """Colour and length in pixels of each bar of a cell, read off the picture."""
    cell_height = BARS_TOP + shown * BAR_STEP + 22
    top, left = TOP + cell // COLUMNS * cell_height + BARS_TOP, LEFT + cell % COLUMNS * CELL_WIDTH + NAME_WIDTH
    found = []
    for bar in range(shown):
        row = top + bar * BAR_STEP + BAR_HEIGHT // 2
        pixels = [tuple(p) for p in panel[:, row, left : left + BAR_WIDTH].T.tolist()]
        length = next((i for i, p in enumerate(pixels) if p == TRACK), BAR_WIDTH)
        assert len(set(pixels[:length])) == 1
        found.append((pixels[0], length))
    return found


def test_bars_are_the_five_most_probable_and_the_right_one_is_green() -> None:
    probabilities = torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    probabilities /= probabilities.sum(1, keepdim=True)
    targets = [0, 1, 2, 3, 4, 5]
    panel = prediction_panel(torch.rand(6, 3, 9, 9), probabilities, targets, NAMES)
    outside = 0
    for cell, row in enumerate(probabilities.numpy()):
        order = np.argsort(-row)[:5]
        want = [(RIGHT if c == targets[cell] else OTHER, max(1, round(float(row[c]) * BAR_WIDTH))) for c in order]
        assert bars(panel, cell) == want
        outside += targets[cell] not in order
    assert 0 < outside < 6  # both kinds were there


def test_a_sure_network_and_few_classes() -> None:
    panel = prediction_panel(torch.rand(1, 3, 9, 9), torch.tensor([[0.0, 1.0]]), [1], ["a", "b"])
    assert bars(panel, 0, shown=2) == [(RIGHT, BAR_WIDTH), (OTHER, 1)]


def test_images_are_where_they_belong() -> None:
    images = torch.zeros(5, 3, 4, 4)
    images[4, 0] = 1  # the first of the second row is red
    panel = prediction_panel(images, torch.full((5, 7), 1 / 7), [0] * 5, NAMES)
    cell_height = BARS_TOP + 5 * BAR_STEP + 22
    middle = LEFT + (NAME_WIDTH + BAR_WIDTH) // 2
    assert panel[:, TOP + 50, middle].tolist() == [0, 0, 0]
    assert panel[:, TOP + cell_height + 50, middle].tolist() == [255, 0, 0]
    assert panel[:, TOP + cell_height + 50, middle + CELL_WIDTH].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", torch.rand(2, 1, 4, 4), "images: "),
        ("images", torch.rand(0, 3, 4, 4), "images: "),
        ("probabilities", torch.rand(2, 6), "probabilities: "),
        ("probabilities", torch.full((2, 7), float("nan")), "probabilities: NaN"),
        ("targets", [0], "targets: "),
    ],
)
def test_bad_arguments(name: str, value: Any, message: str) -> None:
    good = {"images": torch.rand(2, 3, 4, 4), "probabilities": torch.full((2, 7), 1 / 7), "targets": [0, 1]}
    with pytest.raises(ValueError, match=message):
        prediction_panel(**{**good, "class_names": NAMES, name: value})
