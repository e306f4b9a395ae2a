"""Tables in Markdown, and where they stand in a page that people write the rest of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, one line for each row, with a newline at its end; a cell may hold ``|``."""
    lines = [_line(headings), f"|{'---|' * len(headings)}", *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in escaped)}|"


def rounded(number: float | None, digits: int = 3) -> str:
    """A number to so many digits, such as ``3.80`` and ``55,900``; nothing for None and nan."""
    if number is None or math.isnan(number):
        return ""
    value = float(f"{number:.{digits}g}")
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


COMPARED = ("what", "ours", "instead", "ratio")


def compared(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The cells under :data:`COMPARED` of a row that ``benchmark.py`` wrote."""
    ours, peer = (f"{rounded(row[whose])} {row['unit']}".strip() for whose in ("ours", "peer"))
    return row["what"], ours, f"{peer}, {row['against']}" if row["against"] else "", rounded(row["ratio"], 2)


def between(text: str, name: str, contents: str) -> str:
    """Put contents between the markers ``<!-- name -->`` and ``<!-- /name -->``: one of each, in this order."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(opening) > text.index(closing):
        raise ValueError(f"needs one {opening} and after it one {closing}. Put them around the table")
    head, rest = text.split(opening)
    return f"{head}{opening}\n{contents}{closing}{rest.split(closing)[1]}"
