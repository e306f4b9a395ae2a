"""How figures are read from a run's ``summary.json``, and written for people."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from callbacks.checkpoints.files import read_regular
from running.errors import printable, reason


class Kind(NamedTuple):
    """What a figure in a file is to be: in words, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000


TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a finite number", _number)
ANY_NUMBER = Kind("a number or null", lambda value: value is None or isinstance(value, float) or _number(value))
COUNT = Kind("a whole number from 0 up", lambda value: _number(value) and isinstance(value, int) and 0 <= value < 2**53)
SHARE = Kind("a number in [0, 1]", lambda value: _number(value) and 0 <= value <= 1)
SECONDS = Kind("a number from 0 up", lambda value: _number(value) and 0 <= value < 2**53)
MAPPING = Kind("values by name", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
# Of `benchmark.json`, what is read again.
ROW = {**dict.fromkeys(("what", "unit", "against"), TEXT), **dict.fromkeys(("ours", "peer", "ratio"), ANY_NUMBER)}
BENCHMARK = {"machine": {"processor": TEXT, "cores": COUNT, "versions": {"torch": TEXT}}, "rows": [ROW]}
LARGEST = 2**26  # bytes of a file of figures
# A figure's kind by its name, in a run's summary and in its history's entries.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("variant", "data", "command", "machine", "precision"), TEXT),
    **dict.fromkeys(("seed", "jobs", "resumed", "images", "val_images", "test_images", "epochs"), COUNT),
    **{f"{stage}_{metric}": SHARE for stage in ("train", "val", "test") for metric in ("top1", "top5")},
    **dict.fromkeys(("settings", "changes"), MAPPING),
    "flags": [TEXT],
    "seconds": SECONDS,
}


def read_figures(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file's values by name, its text printable; else a ValueError of one line that ends with ``remedy``."""
    try:
        figures = json.loads(read_regular(path, LARGEST).decode())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: can't be read ({reason(error)}). {remedy}.") from None
    check_figures(figures, MAPPING, f"{path}: what it holds", remedy)
    found: dict[str, Any] = _printable(figures)
    return found


def read_summary(path: Path, needed: Sequence[str], remedy: str) -> dict[str, Any]:
    """A ``summary.json`` with all that is needed of it; else a ValueError of one line that ends with ``remedy``."""
    run = read_figures(path, remedy)
    missing = [key for key in needed if run.get(key) is None]
    if missing:
        raise ValueError(f"{path}: has no {missing[0]}. {remedy}.")
    history = run.get("history", [])
    check_figures(history, [{"epoch": COUNT}], f"{path}: history", remedy)
    for key in [key for key in KINDS if run.get(key) is not None]:
        check_figures(run[key], KINDS[key], f"{path}: {key}", remedy)
    for entry in history:
        for key, value in entry.items():
            check_figures(value, KINDS.get(key, NUMBER), f"{path}: history.{key}", remedy)
    return run


def check_figures(value: Any, kind: Any, place: str, remedy: str) -> None:
    """Check a value by a :class:`Kind`, a list of one for all of a list, or a dict for what must be in one.

    Raises:
        ValueError: One line that names the place and ends with ``remedy``.
    """
    plain = MAPPING if isinstance(kind, dict) else LIST if isinstance(kind, list) else kind
    if not plain.fits(value):
        raise ValueError(f"{place}: {json.dumps(value)[:60]}, expected {plain.words}. {remedy}.")
    if plain is LIST:
        for item in value:
            check_figures(item, kind[0], place, remedy)
    for key, wanted in kind.items() if isinstance(kind, dict) else ():
        if key not in value:
            raise ValueError(f"{place}: has no {key}. {remedy}.")
        check_figures(value[key], wanted, f"{place}{'.' if ': ' in place else ': '}{key}", remedy)


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), which is nan for one value; ValueError for none."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent, such as ``50.70 ± 0.41 %``; ``-`` where there is nothing."""
    if not values:
        return "-"
    mean, std = mean_and_std(values)
    return f"{100 * mean:.2f} %" if math.isnan(std) else f"{100 * mean:.2f} ± {100 * std:.2f} %"


def duration(seconds: Sequence[float]) -> str:
    """The mean, such as ``10 min 20 s``; ``-`` where there is nothing."""
    if not seconds:
        return "-"
    minutes, rest = divmod(round(statistics.fmean(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
