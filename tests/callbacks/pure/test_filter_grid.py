import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.pure.filter_grid import FILTER_GAP, FILTER_LEFT, FILTER_TOP, GROUP_GAP, filter_grid, filter_mosaic


def as_pixels(weights: Tensor, scale: float) -> np.ndarray:
    """The mapping, written again with numpy: -scale is black, 0 mid grey, +scale white. (N, h, w, 3) uint8."""
    shown = np.clip(0.5 + 0.5 * weights.numpy().astype(np.float64) / scale, 0, 1)
    return np.rint(255 * shown).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("count", "groups"), [(96, 1), (96, 2), (10, 1), (10, 2), (30, 2)])
def test_each_filter_is_in_its_place(count: int, groups: int):
    zoom, height, width, scale = 3, 5, 4, 0.7
    weights = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    mosaic = filter_mosaic(weights, scale, groups, zoom=zoom).permute(1, 2, 0).numpy()
    size = count // groups
    columns = min(12, size)
    rows = int(np.ceil(size / columns))
    cell_h, cell_w = zoom * height + FILTER_GAP, zoom * width + FILTER_GAP
    band = rows * cell_h - FILTER_GAP
    assert mosaic.shape == (groups * band + (groups - 1) * GROUP_GAP, columns * cell_w - FILTER_GAP, 3)
    rest = mosaic.copy()
    for i, want in enumerate(as_pixels(weights, scale)):
        group, place = divmod(i, size)
        row, column = divmod(place, columns)
        y, x = group * (band + GROUP_GAP) + row * cell_h, column * cell_w
        shown = mosaic[y : y + zoom * height, x : x + zoom * width]
        np.testing.assert_allclose(shown, want.repeat(zoom, 0).repeat(zoom, 1), atol=1)
        rest[y : y + zoom * height, x : x + zoom * width] = 255
    assert (rest == 255).all()


def test_zero_is_mid_grey_and_the_scale_is_symmetric():
    weights = torch.tensor([0.0, 0.5, -0.5, 9.0, -9.0, 0.25]).view(6, 1, 1, 1).expand(6, 3, 1, 1)
    mosaic = filter_mosaic(weights, 0.5, zoom=1)
    assert mosaic[0, 0, :: 1 + FILTER_GAP].tolist() == [128, 255, 0, 255, 0, 191]


@pytest.mark.parametrize(("count", "groups"), [(96, 2), (96, 1), (5, 1)])
def test_the_grid_holds_the_mosaic_and_only_adds_letters_around_it(count: int, groups: int):
    weights = torch.randn(count, 3, 11, 11, generator=torch.Generator().manual_seed(0))
    mosaic = filter_mosaic(weights, 2.0, groups)
    grid = filter_grid(weights, groups, 2.0, "conv1 after epoch 3")
    assert grid.dtype == torch.uint8
    height, width = mosaic.shape[1:]
    inside = grid[:, FILTER_TOP : FILTER_TOP + height, FILTER_LEFT : FILTER_LEFT + width]
    written = (inside != mosaic).any(0)
    band = (height - (groups - 1) * GROUP_GAP) // groups
    assert not written[:band].any()
    assert not written[band + GROUP_GAP :].any()
    assert bool(written[band : band + GROUP_GAP].any()) == (groups == 2)  # the second group's name
    title, heading = grid[:, :32], grid[:, 36 : FILTER_TOP - 2]
    numbers, below = grid[:, FILTER_TOP : FILTER_TOP + height, : FILTER_LEFT - 4], grid[:, FILTER_TOP + height + 4 :]
    assert all(int(part.min()) < 100 for part in (title, heading, numbers, below)), "something is not written"
    frame = (grid[:, :3], grid[:, -3:], grid[:, :, :3], grid[:, :, -3:])
    assert all(int(part.min()) == 255 for part in frame), "letters run off the page"


def test_the_scale_is_the_given_one_or_nearly_the_largest_weight(written: list[str]):
    weights = torch.linspace(-1, 0.999, 96 * 3 * 121).view(96, 3, 11, 11)
    grid = filter_grid(weights, 2)
    assert written[-1].startswith("grey = 0, full colour = ±0.995 and beyond (largest: 1)")
    assert {"GPU 1: filters 0 to 47", "GPU 2: filters 48 to 95", "0", "12", "36", "48", "84"} <= set(written)
    assert torch.equal(grid, filter_grid(weights, 2, scale=weights.abs().flatten().quantile(0.995).item()))
    written.clear()
    filter_grid(weights, 1, 3.0)
    assert written[-1].startswith("grey = 0, full colour = ±3;")
    assert not any("GPU" in text for text in written)


def test_all_zero_filters_are_grey():
    grid = filter_grid(torch.zeros(4, 3, 11, 11))
    assert bool((grid[:, FILTER_TOP : FILTER_TOP + 55, FILTER_LEFT : FILTER_LEFT + 55] == 128).all())


def test_bad_filters():
    good = torch.zeros(6, 3, 2, 2)
    for call, message in {
        lambda: filter_mosaic(torch.zeros(6, 4, 2, 2), 1.0): r"weights: \(6, 4, 2, 2\), expected RGB filters",
        lambda: filter_mosaic(torch.zeros(0, 3, 2, 2), 1.0): "RGB",
        lambda: filter_mosaic(good, 1.0, groups=4): "groups: 4, expected a divisor of 6",
        lambda: filter_mosaic(good, 1.0, groups=0): "groups: 0",
        lambda: filter_mosaic(good, 0.0): "scale: 0.0, expected",
        lambda: filter_mosaic(good, float("nan")): "scale: nan",
        lambda: filter_mosaic(good, 1.0, columns=0): "columns",
        lambda: filter_grid(good + float("nan")): "weights: NaN",
        lambda: filter_grid(good, scale=0.0): "scale: 0.0",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
