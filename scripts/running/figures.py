"""How figures are read from a run's ``summary.json``, and written for people."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_summary(path: Path, needed: Sequence[str], remedy: str) -> dict[str, Any]:
    """A ``summary.json`` with all that is needed of it; else a ValueError of one line that ends with ``remedy``."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read ({str(error).splitlines()[0]}). {remedy}.") from None
    missing = [key for key in needed if not isinstance(run, dict) or run.get(key) is None]
    if missing:
        raise ValueError(f"{path}: has no {missing[0]}. {remedy}.")
    return run


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
