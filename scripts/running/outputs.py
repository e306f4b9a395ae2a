"""Outputs never take the place of what is not a script's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from running.errors import refuse


def check_output(flag: str, path: Path, mark: str, inputs: Iterable[Path] = ()) -> None:
    """Refuse to write over an input, or over a file without the mark that the script's own have at their start."""
    if not path.is_file():  # a device or a pipe is not written over
        return
    with path.open("rb") as file:
        start = file.read(1000)
    if any(path.samefile(other) for other in inputs if other.exists()):
        refuse(f"{flag}: {path} is what is read, expected another file. Choose another.")
    if start and mark.encode() not in start:
        refuse(f"{flag}: {path} is there and not this script's own, expected a new file. Choose another, or move it.")
