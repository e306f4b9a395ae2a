"""How the scripts refuse: one line that says what is wrong and what to do, and exit status 2. Light: no torch."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


def refuse(message: str, status: int = 2) -> NoReturn:
    """End the program with one line that says what is wrong and what to do; TRACEBACK=1 shows where it came from."""
    if os.environ.get("TRACEBACK"):
        traceback.print_exc() if sys.exc_info()[0] else traceback.print_stack()
    print("error:", printable(" ".join(message.split())), file=sys.stderr)
    raise SystemExit(status)


def printable(text: object) -> str:
    """Text on one line of any terminal: names of files, and what files hold, may have a terminal's escapes in them."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def reason(error: BaseException) -> str:
    """What went wrong, on one line: the system's words, the error's own, or where it has none its kind."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


def flagged(message: str, prefix: str) -> str:
    """A message about an argument, such as ``lr: -1.0, expected ...``, with the flag that set it: ``--model.lr: ...``.

    A message about something else, such as a file, stays as it is.
    """
    return f"{prefix}{message}" if message.partition(":")[0].isidentifier() else message


@contextmanager
def argument_errors(prefix: str) -> Iterator[None]:
    """Refuse in one line what is raised within; for use before work begins, never around it.

    Args:
        prefix: What makes an argument's name a flag, such as ``--data.``.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        refuse(flagged(str(error), prefix))


class ScriptParser(argparse.ArgumentParser):
    """argparse with its complaint on one line.

    Args:
        script: The file's name, for the remedy.
        doc: The script's docstring, whose first line describes it.
    """

    def __init__(self, script: str, doc: str | None) -> None:
        super().__init__(description=(doc or "").splitlines()[0], allow_abbrev=False)
        self.script = script

    def error(self, message: str) -> NoReturn:
        """Exit status 2."""
        refuse(f"{message}. See `python scripts/{self.script} --help` for what there is.")
