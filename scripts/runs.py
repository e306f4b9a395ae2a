"""List runs side by side: what differs in their settings, how long they took, what they came to.

python scripts/runs.py                                    # all below logs/, the best validation top-1 first
python scripts/runs.py logs/alexnet results --csv runs.csv --curves curves.png

A run is a folder with the ``summary.json`` that ``fit.py`` wrote, and its settings the ``config.yaml`` beside it, where
there is one. Places and names, which differ from run to run anyway, are not listed.
"""

from __future__ import annotations

from running.start import script

# isort: split
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.table import Column, Table
from running.errors import ScriptParser, printable, refuse
from running.figures import duration, percent, read_summary
from running.flags import leaves
from running.outputs import check_output, check_place, csv_text, png_mark, png_of
from running.settings import PLACES

from callbacks.checkpoints.files import write_whole

NEEDED = ("data", "epochs", "seed", "seconds")
FIGURES = ("data", "images", "epochs", "seconds", "train_top1", "val_top1", "test_top1", "test_top5")
NAMES = PLACES | {"name", "version", "config"}  # settings that say where and what a run is called
SOFTWARE = "runs.py"  # by which the picture is known, as the list is by how it begins
CSV_MARK = ",".join(("run", *FIGURES))
WIDE = 160  # characters of a table that goes to a file
REMEDY = "Delete it, or put a finished run's in its place"


class Run(NamedTuple):
    """A run by its folder's path, its settings by their flags' names, and its figures as ``summary.json`` has them."""

    folder: str
    settings: dict[str, str]
    figures: dict[str, Any]


def read_run(path: Path) -> Run:
    """The run whose summary is at ``path``; what can't be read is a ValueError or OSError of one line."""
    figures, config = read_summary(path, NEEDED, REMEDY), path.with_name("config.yaml")
    measured = {name: value for name, value in figures.items() if value is not None}  # without validation, some is
    try:
        said = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ValueError(f"{config}: can't be read. {REMEDY}.") from None
    named = leaves(said) if isinstance(said, Mapping) else ()
    settings = {printable(key): printable(value) for key, value in named if key.rpartition(".")[2] not in NAMES}
    return Run(printable(path.parent), settings | {"seed_everything": str(figures["seed"])}, measured)


def read_runs(places: Sequence[Path]) -> list[Run]:
    """All runs below the places, the best validation top-1 first; one that can't be read is told of and left out."""
    runs = []
    for path in sorted({path.resolve(): path for place in places for path in place.rglob("summary.json")}.values()):
        try:
            runs.append(read_run(path))
        except (OSError, ValueError) as error:
            print(printable(f"left out: {error}"), file=sys.stderr)
    return sorted(runs, key=lambda run: (-run.figures.get("val_top1", 0), run.folder))


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings that are not the same in all runs; of a run without it, a setting says nothing."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({run.settings[name] for run in runs if name in run.settings}) > 1]


def as_csv(runs: Sequence[Run]) -> str:
    """A line for each run: the folder, the figures, and what differs; shares in ``[0, 1]`` and times in seconds."""
    names = differing(runs)
    rows = ([run.folder, *map(run.figures.get, FIGURES), *map(run.settings.get, names)] for run in runs)
    return csv_text([["run", *FIGURES, *names], *rows])


def as_table(runs: Sequence[Run]) -> Table:
    """The same for a screen; what differs in one column."""
    table = Table(*(Column(name, overflow="fold") for name in ("run", "settings that differ")))
    for name in ("images", "epochs", "time", "val top-1", "test top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    names = differing(runs)
    for run in runs:
        found = run.figures
        settings = " ".join(f"{name.split('.')[-1]}={run.settings[name]}" for name in names if name in run.settings)
        top1 = (percent([found[key]] if key in found else []) for key in ("val_top1", "test_top1"))
        images = f"{found['images']:,}" if "images" in found else "-"  # those it was trained on, not only tested
        counts = images, str(found["epochs"]), duration([found["seconds"]])
        table.add_row(run.folder, settings, *counts, *top1)
    return table


def curves_figure(runs: Sequence[Run]) -> Figure:
    """Validation top-1 over epochs, a line for each run that has kept it."""
    figure = Figure(figsize=(10, max(5, 0.15 * len(runs))), dpi=120, layout="constrained")  # room for the legend
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["turbo"].resampled(len(runs) + 1)(range(len(runs) + 1)))
    for run in runs:
        points = [(e["epoch"], e["val_top1"]) for e in run.figures.get("history", []) if "val_top1" in e]
        if points:
            axes.plot(*zip(*points, strict=True), label=run.folder, marker="." if len(points) < 30 else None)
    axes.set(xlabel="epoch", ylabel="validation top-1")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.9")
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    """Read, list, write what was asked for."""
    parser = ScriptParser("runs.py", __doc__)
    parser.add_argument("places", nargs="*", type=Path, default=[Path("logs")], metavar="FOLDER", help="default: logs")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="write the list there too, every setting a column")
    parser.add_argument("--curves", type=Path, metavar="PATH", help="draw validation over epochs there: a PNG")
    options = parser.parse_args(words)
    for place in options.places:
        if not place.is_dir():
            refuse(f"{place}: no such folder. Name one that fit.py wrote runs to.")
    for flag, path, ending, mark in (
        ("--csv", options.csv, ".csv", CSV_MARK),
        ("--curves", options.curves, ".png", png_mark(SOFTWARE)),
    ):
        if path:
            check_place(parser, flag, path, ending)
            check_output(flag, path, mark)
    runs = read_runs(options.places)
    if not runs:
        refuse(f"{' '.join(map(str, options.places))}: no summary.json below. Name a folder with a finished run.")
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width, markup=False, emoji=False).print(as_table(runs))  # a folder may be called [red]
    for path, contents in ((options.csv, as_csv), (options.curves, lambda runs: png_of(curves_figure(runs), SOFTWARE))):
        if path:
            try:
                write_whole(path, contents(runs))
            except OSError as error:
                refuse(f"{path}: {error.strerror}. Name another file.")


if __name__ == "__main__":
    with script():
        main()
