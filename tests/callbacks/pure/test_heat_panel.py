from __future__ import annotations

import torch

from callbacks.pure.canvas import CELL, FRAME, THUMB
from callbacks.pure.heat_panel import CELL_HEIGHT, COLUMNS, GAP, LEFT, TOP, heat_panel, overlay


def test_overlay_is_grey_without_heat_and_coloured_with_it() -> None:
    image = torch.rand(3, 8, 8)
    assert torch.allclose(overlay(image, torch.zeros(8, 8)), image.mean(0).expand(3, -1, -1))
    assert torch.allclose(overlay(image, -torch.ones(8, 8)), image.mean(0).expand(3, -1, -1))
    heat = torch.zeros(8, 8)
    heat[2, 3], heat[5, 5] = 4.0, 1.0
    shown = overlay(image, heat)
    change = (shown - image.mean(0)).abs().sum(0)
    assert torch.equal(change > 1e-6, heat > 0)
    assert torch.equal(shown, overlay(image, 10 * heat))  # the largest is the brightest, whatever its size


def test_each_image_stands_beside_its_maps() -> None:
    images = torch.linspace(0.1, 0.9, 3)[:, None, None, None].expand(3, 3, 8, 8)
    heats = {"one": torch.zeros(3, 8, 8), "two": torch.ones(3, 8, 8)}
    panel = heat_panel(images, heats, [(0, 0.5), (1, 0.6), (0, 1.0)], [0, 0, 1], ["cat", "dog"], "title")
    assert panel.dtype == torch.uint8
    width = 3 * CELL
    assert panel.shape == (3, TOP + 2 * CELL_HEIGHT, LEFT + COLUMNS * (width + GAP))
    for i in range(3):
        left, top = LEFT + i % COLUMNS * (width + GAP), TOP + i // COLUMNS * CELL_HEIGHT
        middle = FRAME + THUMB // 2
        image, grey, hot = (panel[:, top + middle, left + place * CELL + middle] for place in range(3))
        assert (image.int() - round(255 * (0.1 + 0.4 * i))).abs().max() <= 1
        assert torch.equal(grey, image)
        assert not torch.equal(hot, image)
