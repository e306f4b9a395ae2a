from typing import Any

import pytest
import torch

from callbacks.pure.canvas import FRAME, RIGHT, THUMB, WRONG
from callbacks.pure.retrieval_panel import CELL_HEIGHT, CELL_WIDTH, PANEL_GAP, PANEL_LEFT, PANEL_TOP, retrieval_panel

NAMES = ("airplane", "automobile", "bird", "cat")


def corner(r: int, c: int) -> tuple[int, int]:
    """Where a cell's frame begins; column 0 is the query."""
    return PANEL_TOP + r * CELL_HEIGHT, PANEL_LEFT + c * CELL_WIDTH + (PANEL_GAP if c else 0)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (227, 227), (20, 40)])
def test_each_image_is_in_its_cell_framed_by_its_class(size: tuple[int, int]):
    greys = (20 + 10 * torch.arange(3 * 7)).view(3, 7)  # of 255, one an image
    plain = greys[:, :, None, None, None].div(255).expand(3, 7, 3, *size)
    targets, others = [0, 1, 2], [[(i * j) % 4 for j in range(6)] for i in range(3)]
    drawn = retrieval_panel(plain[:, 0], plain[:, 1:], targets, others, [[10.0] * 6] * 3, NAMES, "title")
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


def test_what_is_written(written: list[str]):
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names = ["cat", "a $name$ that is rather long"]
    retrieval_panel(one, one[None].expand(1, 2, 3, 8, 8), [0], [[0, 1]], [[0.5, 12.3456]], names, "title")
    assert {"title", "query", "cat", "✓ cat", "✗ a $name$ that i…", "0.5000", "12.35"} <= set(written)


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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("queries", torch.zeros(1, 3, 9, 8), r"queries: \(1, 3, 9, 8\), expected \(1, 3, 8, 8\)"),
        ("neighbour_targets", [[0]], "neighbour_targets: .* expected 1 rows of 2"),
        ("distances", [], "distances: .* expected 1 rows of 2"),
        ("query_targets", [0, 1], "query_targets: 2 classes, expected 1"),
        *(
            ("neighbours", torch.zeros(n), "neighbours: ")
            for n in ((1, 2, 1, 8, 8), (2, 3, 8, 8), (1, 0, 3, 8, 8), (3,))
        ),
    ],
)
def test_bad_panels(name: str, value: Any, message: str):
    good = {"queries": torch.zeros(1, 3, 8, 8), "neighbours": torch.zeros(1, 2, 3, 8, 8), "query_targets": [0]}
    good |= {"neighbour_targets": [[0, 0]], "distances": [[0, 0]], "class_names": NAMES}
    with pytest.raises(ValueError, match=message):
        retrieval_panel(**{**good, name: value})
