"""Tables in Markdown: their cells, their figures."""

from __future__ import annotations

import math

import pytest
from running.markdown import rounded, table


def test_a_table_has_a_line_for_each_row() -> None:
    assert table(("a", "b"), [("1", ""), ("x|y", "2")]) == "| a | b |\n|---|---|\n| 1 | |\n| x\\|y | 2 |\n"


@pytest.mark.parametrize(
    ("number", "digits", "written"),
    [
        (3.7999, 3, "3.80"),
        (55920.3, 3, "55,900"),
        (999.7, 3, "1,000"),
        (0.9748, 2, "0.97"),
        (10.15, 2, "10"),
        (2.886e-7, 3, "2.89e-07"),
        (math.nan, 3, ""),
        (None, 3, ""),
    ],
)
def test_three_digits(number: float | None, digits: int, written: str) -> None:
    assert rounded(number, digits) == written
