"""Write the README's tables from the figures under ``results/``, so that no number in them is typed.

python scripts/tables.py            # between <!-- results --> and <!-- /results -->, and likewise `ablations`
python scripts/tables.py --check    # change nothing; exit status 1 if the README says otherwise

A run's figures are ``results/<name>/summary.json``, as ``fit.py`` writes them; runs that differ in their seed alone
make one row. The ablations' are ``results/ablations/<variant>-seed<n>/summary.json``, as ``ablate.py`` writes them;
their table goes where the README has markers for it.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ablation.table import comparable, duration, markdown, percent, read_runs, read_summary
from running.errors import ScriptParser

from callbacks.checkpoints.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("data", "images", "epochs", "seed", "command", "seconds", "test_top1", "test_top5")
SEED = "--seed_everything"
# The experiment this project started from: its figures as they were reported, see configs/origin.yaml. There is no log.
ORIGIN = "| the experiment this project started from | CIFAR-10 | 5,000 | 10 | | 26.70 % | 81.30 % | | |"
HEADINGS = ("recipe", "data", "images", "epochs", "seeds", "test top-1", "test top-5", "time", "command")


class Recipe(NamedTuple):
    """What runs have in common that differ in their seed alone; the command is without it."""

    command: str
    data: str
    images: int
    epochs: int


def without_seed(command: str) -> str:
    """A command less the seed, which is given as ``--seed_everything N`` or ``--seed_everything=N``."""
    words, kept = iter(shlex.split(command)), []
    for word in words:
        if word == SEED:
            next(words, None)
        elif not word.startswith(f"{SEED}="):
            kept.append(word)
    return shlex.join(kept)


def recipe_name(command: str) -> str:
    """The config that a command lays on top, with the flags that change it: ``configs/default.yaml`` without one."""
    words = shlex.split(command)
    configs = [following for word, following in pairwise(words) if word in ("-c", "--config")]
    configs += [word.split("=", 1)[1] for word in words if word.startswith(("-c=", "--config="))]
    start = next((i for i, word in enumerate(words) if word.endswith("fit.py")), 0) + 1
    rest = [word for word in words[start:] if word not in ("fit", "-c", "--config", *configs)]
    rest = [word for word in rest if not word.startswith(("-c=", "--config="))]
    name = " + ".join(f"`{config}`" for config in configs) or "`configs/default.yaml`"
    return f"{name}, `{shlex.join(rest)}`" if rest else name


def data_name(description: str) -> str:
    """The data's description, shortened."""
    if description.startswith("shapes10"):
        return "shapes10, not CIFAR-10"
    copy = re.fullmatch(r"CIFAR-10 \((.+) copy in class folders\)", description)
    return f"CIFAR-10, {copy[1]} copy" if copy else re.sub(r" \(.*\)$", "", description)


def read_summaries(folder: Path) -> dict[Path, dict[str, Any]]:
    """The runs under ``folder``, one level down: path and figures.

    Raises:
        ValueError: If a file is no run's summary; one line that names it.
    """
    remedy = "Delete it, or put a finished run's in its place"
    return {path: read_summary(path, NEEDED, remedy) for path in sorted(folder.glob("*/summary.json"))}


def by_recipe(runs: Mapping[Path, Mapping[str, Any]]) -> dict[Recipe, list[Mapping[str, Any]]]:
    """Runs by recipe: CIFAR-10 before other data, fewer images and epochs first, then by command.

    Raises:
        ValueError: If a recipe has two runs of one seed, which would pass for two measurements.
    """
    groups: dict[Recipe, list[Mapping[str, Any]]] = {}
    seeds: dict[tuple[Recipe, int], Path] = {}
    for path, run in runs.items():
        recipe = Recipe(without_seed(run["command"]), run["data"], run["images"], run["epochs"])
        other = seeds.setdefault((recipe, run["seed"]), path)
        if other != path:
            raise ValueError(f"{path}: of the same recipe and seed as {other}. Delete one.")
        groups.setdefault(recipe, []).append(run)

    def key(recipe: Recipe) -> tuple[bool, int, int, str]:
        return (not recipe.data.startswith("CIFAR-10"), recipe.images, recipe.epochs, recipe.command)

    return {recipe: groups[recipe] for recipe in sorted(groups, key=key)}


def results_table(runs: Mapping[Path, Mapping[str, Any]]) -> str:
    """The results as markdown: the origin's row, then one for each recipe; mean ± standard deviation over seeds."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}", ORIGIN]
    for recipe, group in by_recipe(runs).items():
        cells = (
            recipe_name(recipe.command),
            data_name(recipe.data),
            f"{recipe.images:,}",
            str(recipe.epochs),
            str(len(group)),
            percent([run["test_top1"] for run in group]),
            percent([run["test_top5"] for run in group]),
            duration([run["seconds"] for run in group]),
            f"`{recipe.command}`",
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def between(text: str, name: str, contents: str) -> str:
    """Put contents between the markers ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If there is not one of each, in this order.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(opening) > text.index(closing):
        raise ValueError(f"needs one {opening} and after it one {closing}. Put them around the table")
    head, rest = text.split(opening)
    return f"{head}{opening}\n{contents}{closing}{rest.split(closing)[1]}"


def renewed(text: str, results: Path) -> str:
    """A README with its tables as the figures under ``results`` have them.

    Raises:
        ValueError: If markers are missing or figures can't be used.
    """
    text = between(text, "results", results_table(read_summaries(results)))
    if "<!-- ablations -->" not in text and "<!-- /ablations -->" not in text:
        return text
    runs, left_out = comparable(read_runs(results / "ablations"))
    if left_out:
        raise ValueError(f"{results / 'ablations'}: {left_out[0]}. Delete that run, or run it again with ablate.py")
    if not runs:
        raise ValueError(f"{results / 'ablations'}: no runs. Take the markers out, or run scripts/ablate.py")
    return between(text, "ablations", markdown(runs))


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = ScriptParser("tables.py", __doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if the tables are not right"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args(words)
    try:
        text = options.readme.read_text(encoding="utf-8")
        new = renewed(text, options.results)
        if new != text and not options.check:
            write_whole(options.readme, new)
    except (OSError, ValueError) as error:
        message = f"{error.strerror}. Name a README" if isinstance(error, OSError) else str(error)
        where = "" if message.startswith(str(options.results)) else f"{options.readme}: "
        print(f"error: {where}{message.rstrip('.')}.", file=sys.stderr)
        raise SystemExit(2) from None
    if new != text and options.check:
        print(
            f"{options.readme}: its tables are not those of {options.results}: python scripts/tables.py",
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
