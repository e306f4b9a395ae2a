"""What a sweep is to run: the variants, a job for each variant and seed, its command, and whether it is done."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from running.figures import MAPPING, TEXT, check_figures, duration, read_figures
from running.flags import leaves
from running.machine import computer

from ablation.claims import BASELINE, CLAIMS
from ablation.table import first_difference, read_run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FIT = ROOT / "scripts" / "fit.py"
TEST_ONLY = {"data.test_crops"}  # a variant that changes nothing else tests the baseline's weights
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


class Variant(NamedTuple):
    """The baseline, or a config that is laid over it."""

    name: str  # the file's, without its ending
    configs: tuple[Path, ...]  # the baseline's and, but for the baseline itself, the variant's
    changes: dict[str, Any]  # what the variant sets, with dotted keys; nothing for the baseline

    @property
    def test_only(self) -> bool:
        """Whether the baseline's weights will do: nothing but the test is changed."""
        return bool(self.changes) and self.changes.keys() <= TEST_ONLY


class Job(NamedTuple):
    """A run that is wanted."""

    variant: Variant
    seed: int
    # What makes it the same run as one that is there: `settings` of default.yaml, the baseline and the variant, in that
    # order; the variant's `changes`; the extra `flags`.
    recipe: dict[str, Any]
    out: Path  # where figures are kept
    logs: Path  # where runs write

    def __str__(self) -> str:
        """For people: ``no_lrn seed 0``."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def summary(self) -> Path:
        return self.out / f"{self.variant.name}-seed{self.seed}" / "summary.json"

    @property
    def folder(self) -> Path:
        return self.logs / self.variant.name / f"seed{self.seed}"

    @property
    def baseline(self) -> Job:
        """The baseline of the same seed, whose weights a test-only variant tests."""
        return self._replace(variant=Variant(BASELINE, self.variant.configs[:1], {}))

    @property
    def command(self) -> list[str]:
        """``fit.py`` and its words, up to the checkpoint, which is added when it is there."""
        words = [str(FIT), "test" if self.variant.test_only else "fit"]
        for config in self.variant.configs:
            words += ["-c", str(config)]
        words += [*self.recipe["flags"], "--seed_everything", str(self.seed), *QUIET]
        logger = "--trainer.logger.init_args."
        return [*words, f"{logger}save_dir={self.folder.parent}", f"{logger}name={self.folder.name}"]

    @property
    def shown_command(self) -> str:
        """The command for people, without what only concerns the sweep."""
        words = [_shown(word) for word in self.command[1 : self.command.index("--seed_everything") + 2]]
        weights = ["--ckpt_path", "best.ckpt"] if self.variant.test_only else []
        return shlex.join(["python", "scripts/fit.py", *words, *weights])


def _shown(word: str) -> str:
    """A path below the working folder or the project as it is from there."""
    for folder in (Path.cwd(), ROOT):
        with suppress(ValueError, OSError):
            if word.endswith((".yaml", ".yml")):
                return Path(word).resolve().relative_to(folder).as_posix()
    return word


def read_config(path: Path) -> dict[str, Any]:
    """A config file with dotted keys; a ValueError of one line if it is none."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        wrong = getattr(error, "strerror", None) or "no text"
        raise ValueError(f"{path}: {wrong}, expected a config. Name a .yaml file.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}, expected YAML. Mend it.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: a {type(config).__name__}, expected settings. Mend it.")
    return dict(leaves(config))


def choose(only: Sequence[str] | None, baseline: Path) -> list[Variant]:
    """The baseline, whose config is ``baseline``, and the chosen variants, with what a claim compares them with.

    ``only`` holds names of configs in ``configs/ablations``, or paths of others; None takes all of the folder.
    """
    known = {path.stem: path for path in sorted((CONFIGS / "ablations").glob("*.yaml")) if path.stem != BASELINE}
    chosen: dict[str, Path] = {}
    for word in known if only is None else only:
        path = known.get(word, Path(word))
        if word == BASELINE:
            continue
        if word not in known and (path.suffix not in (".yaml", ".yml") or not path.is_file()):
            raise ValueError(
                f"--only: {word}, expected {', '.join([BASELINE, *known])}, or a .yaml file. Choose of them."
            )
        if chosen.get(path.stem, path) != path or path.stem == BASELINE:
            raise ValueError(f"--only: {path}, expected one config of each name. Rename it.")
        chosen[path.stem] = path
    needed = {CLAIMS[name].against for name in chosen if name in CLAIMS} & known.keys()
    order = {**{name: known[name] for name in sorted(needed)}, **chosen}
    variants = [Variant(name, (baseline, path), read_config(path)) for name, path in order.items()]
    return [Variant(BASELINE, (baseline,), {}), *variants]


def plan(variants: Sequence[Variant], seeds: int, flags: Sequence[str], out: Path, logs: Path) -> list[Job]:
    """All runs of the variants, the baseline first, with seeds 0, 1, ...

    Seed by seed, so that a sweep that is cut short leaves pairs that can be compared.
    """
    settings = read_config(CONFIGS / "default.yaml") | read_config(variants[0].configs[0])
    return [
        Job(v, seed, {"settings": settings | v.changes, "changes": v.changes, "flags": list(flags)}, out, logs)
        for seed in range(seeds)
        for v in variants
    ]


def state_of(job: Job) -> str:
    """``done``; ``new`` (or begun); or, where what there is has another recipe, what is different."""
    path, done = (job.summary, True) if job.summary.exists() else (job.folder / "recipe.json", False)
    try:
        if done:
            found = read_run(path)
        else:
            found = read_figures(path, "Delete it")
            check_figures(found, {"flags": [TEXT], "settings": MAPPING}, str(path), "Delete it")
        difference = first_difference(job.recipe, found)
    except FileNotFoundError:
        return "new"
    except ValueError as error:
        return str(error) if done else f"{path}: can't be read. Delete {path.parent}."
    if difference is None:
        return "done" if done else "new"
    return (
        f"{path}: another recipe ({difference}), expected the one asked for. Give --redo to run it again, "
        "another --out to keep both, or the recipe that it was."
    )


def seconds_of(jobs: Sequence[Job]) -> list[float]:
    """How long those took that were done on this machine; without those that were stopped and went on, or only test."""
    done = [job for job in jobs if not job.variant.test_only and job.summary.exists() and state_of(job) == "done"]
    runs, here = [read_run(job.summary) for job in done], computer()
    return [run["seconds"] for run in runs if run["machine"].startswith(here) and not run["resumed"]]


def cost(left: Sequence[Job], seconds: Sequence[float], at_a_time: int) -> str | None:
    """Say how long runs will take if they are like those before; None where there are none of either.

    Those that only test are not counted: they take a minute.
    """
    trained = sum(not job.variant.test_only for job in left)
    if not trained or not seconds:
        return None
    rest = duration([statistics.fmean(seconds) * math.ceil(trained / max(1, at_a_time))])
    runs = "1 run" if trained == 1 else f"{trained} runs"
    return f"{runs} to train, about {duration(seconds)} each: {rest} in all, {at_a_time} at a time"
