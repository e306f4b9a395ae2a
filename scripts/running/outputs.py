"""Outputs never take the place of what is not a script's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from running.errors import ScriptParser, refuse

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_place(parser: ScriptParser, flag: str, path: Path, ending: str) -> None:
    """Refuse a file to be written whose name does not end so, or whose folder is not there."""
    if path.suffix.lower() != ending or path.is_dir():
        parser.error(f"{flag}: {path}, expected a file that ends in {ending}")
    if not path.resolve().parent.is_dir():
        parser.error(f"{flag}: {path}, expected a file in a folder that is there")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as a CSV file's contents, None as nothing."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def png_of(figure: Figure, software: str) -> bytes:
    """A figure as a PNG file that says which script drew it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": software})
    return picture.getvalue()


def png_mark(software: str) -> str:
    """How :func:`check_output` knows a script's PNG files."""
    return f"Software\0{software}"


def check_output(flag: str, path: Path, mark: str, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write over an input, or over a file without the mark that the script's own have at an end."""
    if not path.is_file():  # a device or a pipe is not written over
        return
    with path.open("rb") as file:
        start = file.read(1000)
        file.seek(max(0, path.stat().st_size - 10_000))
        end = file.read()
    if any(path.samefile(other) for other in inputs if other.exists()):
        refuse(f"{flag}: {path} is what is read, expected another file. Choose another.")
    if start and mark.encode() not in start + end:
        refuse(f"{flag}: {path} is there and not this script's own, expected a new file. Choose another, or move it.")
