import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from callbacks.pure import canvas as canvas_module
from callbacks.pure import filter_grid as filter_grid_module
from callbacks.pure import retrieval_panel as retrieval_panel_module
from callbacks.pure.canvas import FRAME, MARKS, RIGHT, THUMB, WRONG
from callbacks.pure.filter_grid import FILTER_GAP, FILTER_LEFT, FILTER_TOP, GROUP_GAP, filter_grid, filter_mosaic
from callbacks.pure.retrieval_panel import CELL_HEIGHT, CELL_WIDTH, PANEL_GAP, PANEL_LEFT, PANEL_TOP, retrieval_panel

NAMES = ("airplane", "automobile", "bird", "cat")


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
        # The middle of each enlarged weight, and then all of them.
        np.testing.assert_allclose(shown[1::zoom, 1::zoom], want, atol=1)
        np.testing.assert_array_equal(shown, shown[1::zoom, 1::zoom].repeat(zoom, 0).repeat(zoom, 1))
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
    for name, part in {
        "title": grid[:, :32],
        "first heading": grid[:, 36 : FILTER_TOP - 2],
        "row numbers": grid[:, FILTER_TOP : FILTER_TOP + height, : FILTER_LEFT - 4],
        "scale": grid[:, FILTER_TOP + height + 4 :],
    }.items():
        assert int(part.min()) < 100, f"no {name}"
    frame = torch.cat(
        [grid[:, :3].flatten(), grid[:, -3:].flatten(), grid[:, :, :3].flatten(), grid[:, :, -3:].flatten()]
    )
    assert int(frame.min()) == 255, "letters run off the page"


def test_the_scale_is_the_given_one_or_nearly_the_largest_weight(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    real = filter_grid_module.lettered

    def listening(canvas: Tensor, labels: list[canvas_module.Label]) -> Tensor:
        written.extend(label.text for label in labels)
        return real(canvas, labels)

    monkeypatch.setattr(filter_grid_module, "lettered", listening)
    weights = torch.linspace(-1, 0.999, 96 * 3 * 121).view(96, 3, 11, 11)
    grid = filter_grid(weights, 2)
    assert written[-1].startswith("grey = 0, full colour = ±0.995 and beyond (largest: 1)")
    assert "GPU 1: filters 0 to 47" in written
    assert "GPU 2: filters 48 to 95" in written
    assert {"0", "12", "36", "48", "84"} <= set(written)
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
        lambda: filter_mosaic(torch.zeros(6, 4, 2, 2), 1.0): "RGB",
        lambda: filter_mosaic(torch.zeros(0, 3, 2, 2), 1.0): "RGB",
        lambda: filter_mosaic(good, 1.0, groups=4): "divide",
        lambda: filter_mosaic(good, 1.0, groups=0): "divide",
        lambda: filter_mosaic(good, 0.0): "scale",
        lambda: filter_mosaic(good, float("nan")): "scale",
        lambda: filter_mosaic(good, 1.0, columns=0): "columns",
        lambda: filter_grid(good + float("nan")): "NaN",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def corner(r: int, c: int) -> tuple[int, int]:
    """Where a cell's frame begins; column 0 is the query."""
    return PANEL_TOP + r * CELL_HEIGHT, PANEL_LEFT + c * CELL_WIDTH + (PANEL_GAP if c else 0)


def panel(
    rows: int = 3, k: int = 6, size: tuple[int, int] = (32, 32)
) -> tuple[Tensor, list[int], list[list[int]], Tensor]:
    """A panel of plain images, each of its own grey, with its classes and greys."""
    greys = (20 + 10 * torch.arange(rows * (k + 1))).view(rows, k + 1)  # of 255
    plain = greys[:, :, None, None, None].div(255).expand(rows, k + 1, 3, *size)
    targets = [i % 4 for i in range(rows)]
    others = [[(i * j) % 4 for j in range(k)] for i in range(rows)]
    distances = [[10.0 + j for j in range(k)] for _ in range(rows)]
    drawn = retrieval_panel(plain[:, 0], plain[:, 1:], targets, others, distances, NAMES, "val images after epoch 3")
    return drawn, targets, others, greys


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (227, 227), (20, 40)])
def test_each_image_is_in_its_cell_framed_by_its_class(size: tuple[int, int]):
    drawn, targets, others, greys = panel(size=size)
    assert drawn.dtype == torch.uint8
    seen = set()
    for r in range(3):
        for c in range(7):
            y, x = corner(r, c)
            middle = drawn[:, y + FRAME + THUMB // 2, x + FRAME + THUMB // 2]
            assert middle.tolist() == [int(greys[r, c])] * 3
            edges = [(y, x), (y, x + THUMB + 2 * FRAME - 1), (y + THUMB + 2 * FRAME - 1, x), (y + 2, x + THUMB // 2)]
            colours = {tuple(drawn[:, a, b].tolist()) for a, b in edges}
            if c == 0:
                assert colours == {(255, 255, 255)}  # the query has no frame
                continue
            right = others[r][c - 1] == targets[r]
            assert colours == {RIGHT if right else WRONG}
            seen.add(right)
            under = drawn[:, y + THUMB + 2 * FRAME + 4 : y + THUMB + 2 * FRAME + 20, x : x + THUMB].int()
            greener = under[1] - under[0]  # thin letters are blended with the white around them
            reddest, greenest = -int(greener.min()), int(greener.max())
            assert greenest > 60 > reddest if right else reddest > 60 > greenest, "the name is in the frame's colour"
    assert seen == {True, False}
    assert corner(0, 1)[1] - corner(0, 0)[1] > corner(0, 2)[1] - corner(0, 1)[1]  # set apart
    assert int(drawn[:, :, -3:].min()) == 255


def test_what_is_written(monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    real = retrieval_panel_module.lettered

    def listening(canvas: Tensor, labels: list[canvas_module.Label]) -> Tensor:
        written.extend(label.text for label in labels)
        return real(canvas, labels)

    monkeypatch.setattr(retrieval_panel_module, "lettered", listening)
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["cat", "a $name$ that is rather long"]
    retrieval_panel(one, one[None].expand(1, 2, 3, 8, 8), [0], [[0, 1]], [[0.5, 12.3456]], names, "title")
    assert {"title", "query", "cat", "✓ cat", "✗ a $name$ that i…", "0.5000", "12.35"} <= set(written)


def test_the_font_has_the_marks_and_the_page_does_not_depend_on_settings():
    glyphs = get_font(findfont(FontProperties(family=canvas_module._FONT), fallback_to_default=False)).get_charmap()
    assert MARKS[True] != MARKS[False]
    assert all(ord(mark) in glyphs for mark in (*MARKS.values(), "±", "…"))
    plain = panel()[0]
    with matplotlib.rc_context({"font.family": "serif", "figure.facecolor": "black", "savefig.dpi": 300}):
        assert torch.equal(panel()[0], plain)


def test_a_photo_is_neither_turned_nor_mirrored_and_is_cut_to_its_range():
    photo = torch.zeros(3, 32, 32)
    photo[0, :16, :16] = 1.0  # red above left
    photo[2, 16:, 16:] = 1.5  # blue below right
    drawn = retrieval_panel(photo[None], photo[None, None], [0], [[0]], [[1.0]], NAMES)
    for c in range(2):
        y, x = corner(0, c)
        thumb = drawn[:, y + FRAME : y + FRAME + THUMB, x + FRAME : x + FRAME + THUMB]
        assert thumb[:, 20, 20].tolist() == [255, 0, 0]
        assert thumb[:, 88, 88].tolist() == [0, 0, 255]
        assert thumb[:, 20, 88].tolist() == thumb[:, 88, 20].tolist() == [0, 0, 0]


def test_bad_panels():
    one, many = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 3, 8, 8)
    with pytest.raises(ValueError, match="queries must be"):
        retrieval_panel(torch.zeros(1, 3, 9, 8), many, [0], [[0, 0]], [[0, 0]], NAMES)
    with pytest.raises(ValueError, match="neighbour_targets must be 1 rows of 2"):
        retrieval_panel(one, many, [0], [[0]], [[0, 0]], NAMES)
    with pytest.raises(ValueError, match="distances must be 1 rows of 2"):
        retrieval_panel(one, many, [0], [[0, 0]], [], NAMES)
    with pytest.raises(ValueError, match="query_targets"):
        retrieval_panel(one, many, [0, 1], [[0, 0]], [[0, 0]], NAMES)
