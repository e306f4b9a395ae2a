import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.ft2font import FT2Font

from callbacks.pure.canvas import CELL, FRAME, INK, MARKS, PAGE_WIDTH, RIGHT, THUMB, WRONG, Canvas, font, shortened


def test_a_page_is_white_and_as_large_as_it_should_be():
    for width, height, page in ((700, 50, (3, 50, 700)), (10, 3, (3, 3, PAGE_WIDTH))):
        pixels = Canvas(width, height).pixels()
        assert pixels.dtype == torch.uint8
        assert pixels.shape == page
        assert int(pixels.min()) == 255


def test_bars_and_blocks_fill_their_pixels_and_no_other():
    canvas = Canvas(PAGE_WIDTH, 40)
    block = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    canvas.bar(30, 10, 20, 5, RIGHT)
    canvas.bar(100, 10, 0, 5, WRONG)
    canvas.paste(48, 12, block)
    want = np.full((40, PAGE_WIDTH, 3), 255)
    want[10:15, 30:50] = RIGHT
    want[12:16, 48:53] = block.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(canvas.pixels().permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("size", [(32, 32), (10, 40), (300, 20), (1, 400)])
def test_an_image_lies_in_the_middle_of_its_frame(size: tuple[int, int]):
    canvas = Canvas(PAGE_WIDTH, 200)
    canvas.image(50, 20, torch.zeros(3, *size), frame=WRONG)
    height, width = (max(1, round(THUMB * n / max(size))) for n in size)
    want = np.full((200, PAGE_WIDTH, 3), 255)
    want[20 : 20 + CELL, 50 : 50 + CELL] = WRONG
    top, left = 20 + FRAME + (THUMB - height) // 2, 50 + FRAME + (THUMB - width) // 2
    want[top : top + height, left : left + width] = 0
    np.testing.assert_array_equal(canvas.pixels().permute(1, 2, 0).numpy(), want)


def test_letters_lie_where_they_should_and_above_what_is_drawn_later():
    for align, low, high in (("left", 300, 400), ("middle", 250, 350), ("right", 200, 300)):
        canvas = Canvas(PAGE_WIDTH, 60)
        canvas.text(300, 30, "HHHH", align=align)
        canvas.bar(0, 0, PAGE_WIDTH, 60, (255, 255, 0))
        rows, columns = torch.nonzero((canvas.pixels() != torch.tensor([255, 255, 0])[:, None, None]).any(0)).unbind(1)
        assert low <= int(columns.min()) < int(columns.max()) <= high
        assert abs(int(rows.min()) + int(rows.max()) - 2 * 30) <= 4
        assert (canvas.pixels() == torch.tensor(INK)[:, None, None]).all(0).any()


def test_names_are_shortened_to_what_fits():
    assert shortened("sixteen_letters_") == "sixteen_letters_"
    assert shortened("seventeen_letters") == "seventeen_lette…"
    assert shortened("automobiles", 5) == "auto…"


def test_the_font_has_the_marks_and_the_page_does_not_depend_on_settings():
    assert MARKS[True] != MARKS[False]
    for bold in (False, True):
        glyphs = FT2Font(str(font(8.5, bold).path)).get_charmap()
        assert all(ord(mark) in glyphs for mark in (*MARKS.values(), "±", "…"))

    def page() -> torch.Tensor:
        font.cache_clear()
        canvas = Canvas(PAGE_WIDTH, 40)
        canvas.text(10, 20, "✓ airplane", bold=True)
        return canvas.pixels()

    plain = page()
    with matplotlib.rc_context({"font.family": "serif", "figure.facecolor": "black", "savefig.dpi": 300}):
        assert torch.equal(page(), plain)
