"""Outputs never take the place of what is not a script's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from running.errors import refuse


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
