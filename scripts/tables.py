"""Write the README's tables from the figures under ``results/``, so that no number in them is typed.

python scripts/tables.py            # between <!-- results --> and <!-- /results -->; likewise the others
python scripts/tables.py --check    # change nothing; exit status 1 if the README says otherwise

A run's figures are ``results/<name>/summary.json``, as ``fit.py`` writes them; runs that differ in their seed alone
make one row. A sweep's are ``results/<sweep>/<variant>-seed<n>/summary.json``, as ``ablate.py`` writes them (ablations;
power weighs quick_baseline and ablations by how far seeds spread), the speed's ``results/benchmark.json``, as
``benchmark.py`` does; their tables go where there are markers, in the README or in the ``docs`` beside it.
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablation.claims import BASELINE
from ablation.plan import CONFIGS, choose
from ablation.table import (
    Run,
    by_variant,
    comparable,
    detectable,
    markdown,
    pooled_spread,
    read_runs,
    seeds_for,
    values_of,
)
from running.errors import ScriptParser, refuse
from running.figures import (
    BENCHMARK,
    check_figures,
    duration,
    percent,
    read_figures,
    read_summary,
)
from running.markdown import COMPARED, between, compared, table

from callbacks.checkpoints.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("data", "images", "epochs", "seed", "command", "machine", "seconds", "test_top1", "test_top5")
# The experiment this project started from: its figures as they were reported, see configs/origin.yaml. There is no log.
ORIGIN = ("the experiment this project started from", "CIFAR-10", "5,000", "10", "", "26.70 %", "81.30 %", "", "", "")
SIZES = ("size", "seeds", "train top-1", "test top-1", "spread", "seeds needed", "shows", "on", "its time", "hours")
POWER = ("quick_baseline", "ablations")  # sweeps whose sizes are weighed
HEADINGS = ("recipe", "data", "images", "epochs", "seeds", "test top-1", "test top-5", "time", "on", "command")


class Recipe(NamedTuple):
    """What runs have in common that differ in their seed alone, in the table's order; the command is without it."""

    stand_in: bool  # for CIFAR-10
    images: int
    epochs: int
    command: str
    data: str
    device: str


def split_off(command: str, *flags: str) -> tuple[list[str], list[str]]:
    """The values that a command gives a flag, as ``--flag value`` or ``--flag=value``, and its other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(*flags, dest="values", action="append", default=[])
    found, words = parser.parse_known_args(shlex.split(command))
    return found.values, words


def without_seed(command: str) -> str:
    """A command less the seed."""
    return shlex.join(split_off(command, "--seed_everything")[1])


def recipe_name(command: str) -> str:
    """The config that a command lays on top, with the flags that change it: ``configs/default.yaml`` without one."""
    configs, words = split_off(command, "-c", "--config")
    start = next((i for i, word in enumerate(words) if word.endswith("fit.py")), 0) + 1
    rest = [word for word in words[start:] if word != "fit"]
    name = " + ".join(f"`{config}`" for config in configs) or "`configs/default.yaml`"
    return f"{name}, `{shlex.join(rest)}`" if rest else name


def data_name(description: str) -> str:
    """The data's description, shortened."""
    if description.startswith("shapes10"):
        return "shapes10, not CIFAR-10"
    copy = re.fullmatch(r"CIFAR-10 \((.+) copy in class folders\)", description)
    return f"CIFAR-10, {copy[1]} copy" if copy else re.sub(r" \(.*\)$", "", description)


def device_name(machine: str) -> str:
    """What computed, of a summary's ``machine``: a GPU by its name, or how many of the processor's cores."""
    found = re.fullmatch(r".+, (\d+ cores), (\d+ x (.+))", machine)
    if not found:
        return machine
    cores, devices, one = found.groups()
    return cores if one == "cpu" else devices.removeprefix("1 x ")


def by_recipe(folder: Path) -> dict[Recipe, list[dict[str, Any]]]:
    """The runs one level below ``folder``: CIFAR-10 before other data, fewer images and epochs first, then by command.

    Two runs of one recipe and seed, which would pass for more, are a ValueError.
    """
    groups: dict[Recipe, list[dict[str, Any]]] = defaultdict(list)
    seeds: dict[tuple[Recipe, int], Path] = {}
    for path in sorted(folder.glob("*/summary.json")):
        run = read_summary(path, NEEDED, "Delete it, or put a finished run's in its place")
        stand_in, command = not run["data"].startswith("CIFAR-10"), without_seed(run["command"])
        recipe = Recipe(stand_in, run["images"], run["epochs"], command, run["data"], device_name(run["machine"]))
        other = seeds.setdefault((recipe, run["seed"]), path)
        if other != path:
            raise ValueError(f"{path}: of the same recipe and seed as {other}. Delete one.")
        groups[recipe].append(run)
    return {recipe: groups[recipe] for recipe in sorted(groups)}


def results_table(results: Path) -> str:
    """The origin's row, then one for each recipe; mean ± standard deviation over seeds."""
    rows = []
    for recipe, runs in by_recipe(results).items():
        what = (recipe_name(recipe.command), data_name(recipe.data), f"{recipe.images:,}", str(recipe.epochs))
        top1, top5, seconds = ([run[key] for run in runs] for key in ("test_top1", "test_top5", "seconds"))
        found = (str(len(runs)), percent(top1), percent(top5), duration(seconds), recipe.device)
        rows.append((*what, *found, f"`{recipe.command}`"))
    return table(HEADINGS, [ORIGIN, *rows])


def sweep_runs(folder: Path) -> list[Run]:
    """The runs of a sweep; one that can't be compared with the others is a ValueError."""
    runs, left_out = comparable(read_runs(folder))
    if left_out:
        raise ValueError(f"{folder}: {left_out[0]}. Delete that run, or keep it in another folder, by --out")
    return runs


def ablations_table(results: Path) -> str:
    """``ablate.py``'s table of the ablations, with its notes."""
    folder = results / "ablations"
    runs = sweep_runs(folder)
    if not runs:
        raise ValueError(f"{folder}: no runs. Take the markers out, or run scripts/ablate.py")
    return markdown(runs)


def benchmark_table(results: Path) -> str:
    """The comparisons in ``benchmark.json``, without their details, and the machine."""
    path = results / "benchmark.json"
    remedy = "Run scripts/benchmark.py --json again"
    figures = read_figures(path, remedy)
    check_figures(figures, BENCHMARK, str(path), remedy)
    if figures.get("quick"):
        raise ValueError(f"{path}: of toy sizes. Run scripts/benchmark.py without --quick")
    rows = [compared(row) for row in figures["rows"] if row["against"] and not row["what"].startswith(" ")]
    about = figures["machine"]
    note = f"Medians of turns on {about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}."
    return f"{table(COMPARED, rows)}\n{note} Where the ratio is above 1, ours is faster, or smaller.\n"


def power_table(results: Path) -> str:
    """How far seeds of a sweep's variants spread, so how many show how small a difference, at what cost."""
    rows = []
    variants = sum(not variant.test_only for variant in choose(None, CONFIGS / "ablations" / "baseline.yaml"))
    for folder in (results / name for name in POWER):
        everything = [run for run in sweep_runs(folder) if run["history"]]  # those that only test have others' weights
        trained = [run for run in everything if not run["resumed"]]
        groups = by_variant(everything)
        runs = groups.get(BASELINE, {})
        if len(runs) < 2 or not trained:
            continue
        one, spread = next(iter(runs.values())), pooled_spread(groups.values())
        wanted = seeds_for(spread)
        cells = [f"{one['images']:,} images, {one['epochs']} epochs, {one['test_images']:,} to test", str(len(runs))]
        cells += [percent([*values_of(runs, key).values()]) for key in ("train_top1", "test_top1")]
        cells += [f"{100 * spread:.2f} points", str(wanted), f"{100 * detectable(spread, wanted):.2f} points"]
        for machine in sorted({run["machine"] for run in trained}):
            took = [run["seconds"] / run["jobs"] for run in trained if run["machine"] == machine]
            seconds = statistics.median(took)  # some ran beside other work
            hours = f"{variants * wanted * seconds / 3600:.1f}"
            rows.append([*cells, machine, duration([seconds]), hours])
    if not rows:
        raise ValueError(f"{results / POWER[-1]}: no runs. Take the markers out, or run scripts/ablate.py")
    return table(SIZES, rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "results": results_table,
    "benchmark": benchmark_table,
    "power": power_table,
    "ablations": ablations_table,
}


def renewed(text: str, results: Path) -> str:
    """A page with its tables as the figures under ``results`` have them."""
    for name, written in TABLES.items():
        if f"<!-- {name} -->" in text or f"<!-- /{name} -->" in text:
            text = between(text, name, written(results))
    return text


def others(readme: Path) -> list[Path]:
    """The pages beside a README: its translations, and those under ``docs``."""
    return [*sorted(readme.parent.glob("README.*.md")), *sorted((readme.parent / "docs").glob("*.md"))]


def main(words: Sequence[str] | None = None) -> None:
    """Write the tables, or check them."""
    parser = ScriptParser("tables.py", __doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if the tables are wrong")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args(words)
    page, wrong = options.readme, list[Path]()
    try:
        for page in (options.readme, *others(options.readme)):
            text = page.read_text(encoding="utf-8")
            if page == options.readme:
                between(text, "results", "")  # must be there
            new = renewed(text, options.results)
            if new != text:
                wrong.append(page)
                if not options.check:
                    write_whole(page, new)
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}. Name another with --readme or --results.")
    except ValueError as error:
        where = "" if str(error).startswith(str(options.results)) else f"{page}: "
        refuse(f"{where}{str(error).rstrip('.')}.")
    if wrong and options.check:
        pages = ", ".join(map(str, wrong))
        refuse(f"{pages}: its tables are not those of {options.results}. Run `python scripts/tables.py`.", status=1)


if __name__ == "__main__":
    with script():
        main()
