"""What ablation runs come to: paired differences, verdicts by a stated rule, a table.

A run is the mapping that ``ablate.py`` keeps of it in ``<variant>-seed<n>/summary.json``: ``fit.py``'s own summary with
``variant``, ``seed``, ``settings``, ``changes``, ``flags`` and ``jobs`` added. Accuracies are in ``[0, 1]``; its
``history`` has an entry for each epoch.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from running.figures import duration, mean_and_std, percent, read_summary
from running.markdown import table

from ablation.claims import BASELINE, CLAIMS, NO_CLAIM, PAIR, SPEEDS, TARGET, Claim

Run = Mapping[str, Any]
OFFICIAL = "CIFAR-10 (official "  # files, archive or binary version: the same images
DECISIVE = ("model.", "data.", "trainer.", "best_checkpoint.")  # settings that a result depends on; not what looks

# ---- runs --------------------------------------------------------------------------------------------------

NEEDED = (
    *("variant", "seed", "settings", "changes", "flags", "jobs", "resumed", "history"),
    *("data", "images", "epochs", "test_images", "test_top1", "machine", "precision", "seconds"),
)


def read_run(path: Path) -> dict[str, Any]:
    """A run that ``ablate.py`` kept; raises as :func:`read_summary`."""
    return read_summary(path, NEEDED, "Delete it, and ablate.py does the run again")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """All runs under ``folder``, by name; raises as :func:`read_summary`."""
    return [read_run(path) for path in sorted(folder.glob("*/summary.json"))]


def first_difference(ours: Run, theirs: Run, but: Sequence[str] = ()) -> str | None:
    """Say how two runs' recipes differ first, apart from the settings named in ``but``; None where they don't.

    A recipe of a run that is only planned has no data yet, and no precision: ``auto`` is settled by the machine.
    """
    if ours["flags"] != theirs["flags"]:
        return f"flags {' '.join(theirs['flags']) or 'none'}, not {' '.join(ours['flags']) or 'none'}"
    for key in ("data", "test_images", "precision") if "data" in ours else ():
        official = key == "data" and all(run["data"].startswith(OFFICIAL) for run in (ours, theirs))
        if ours[key] != theirs[key] and not official:
            return f"{key} {theirs[key]}, not {ours[key]}"
    for key in sorted(key for key in ours["settings"].keys() | theirs["settings"].keys() if key.startswith(DECISIVE)):
        now, then = (settings.get(key, "not set") for settings in (ours["settings"], theirs["settings"]))
        if key not in but and now != then:
            return f"{key} {then}, not {now}"
    return None


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leave out runs that can't be compared, and say so in a line each.

    The first baseline's recipe must be theirs but for their own changes, and so must that of their variant's first.
    """
    kept, lines = list(runs), []
    for of_variant in (False, True):
        first = {run["variant"]: run for run in sorted(kept, key=lambda run: run["seed"], reverse=True)}
        candidates, kept = kept, []
        for run in candidates:
            other = first.get(run["variant"] if of_variant else BASELINE)
            if other and (difference := first_difference(other, run, () if of_variant else run["changes"])):
                name, than = (f"{one['variant']} seed {one['seed']}" for one in (run, other))
                lines.append(f"left out: {name} has another recipe than {than}: {difference}")
            else:
                kept.append(run)
    return kept, lines


def by_variant(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs by variant and seed; the baseline first, then in the order of :data:`CLAIMS`, then by name."""
    names = dict.fromkeys([BASELINE, *CLAIMS, *sorted(run["variant"] for run in runs)])
    groups: dict[str, dict[int, Run]] = {name: {} for name in names}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups[run["variant"]][run["seed"]] = run
    return {name: group for name, group in groups.items() if group}


def values_of(runs: Mapping[int, Run], measure: str) -> dict[int, float]:
    """Seed -> value, where the run has one."""
    values = {seed: epoch_reached(run) if measure == "epochs" else run.get(measure) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def curve_of(run: Run, name: str) -> dict[int, float]:
    """Epoch -> value of ``name`` in the run's history, where it was measured; such as ``val_top1``."""
    return {entry["epoch"]: entry[name] for entry in run["history"] if name in entry}


def epoch_reached(run: Run) -> float | None:
    """When a run's training error came down to :data:`TARGET`, in epochs, between two on a straight line; None: never.

    An epoch's training error is the mean of its batches': that of the network in the middle of the epoch.
    """
    last: tuple[float, float] | None = None
    for epoch, top1 in sorted(curve_of(run, "train_top1").items()):
        middle, found = epoch - 0.5, 1 - top1
        if found <= TARGET:
            return middle if last is None else last[0] + (middle - last[0]) * (last[1] - TARGET) / (last[1] - found)
        last = middle, found
    return None


def usual_machine(runs: Sequence[Run]) -> str:
    """The one that most runs are of, whose times are told: those of two have no mean."""
    return statistics.mode(sorted(str(run["machine"]) for run in runs))


def times(runs: Iterable[Run], machine: str) -> list[float]:
    """How long the runs on a machine took, in seconds, without those that were stopped and went on."""
    return [run["seconds"] for run in runs if run["machine"] == machine and not run["resumed"]]


# ---- statistics --------------------------------------------------------------------------------------------

# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom. Beyond: the last, which is a little too careful.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
RULE = (
    "The verdict's rule: *confirmed* if the difference has the sign that the claim predicts and the 95 % interval of "
    "its mean over seeds (Student's t: 12.7 standard errors with 2 seeds, 4.3 with 3, 3.2 with 4) leaves out 0; "
    "*contradicted* if it does so with the other sign; else *not seen at this size*. Differences are paired by seed, "
    "over the seeds that both have: the same images, the same order. The standard error is that of other seeds; "
    "another test set would add its own."
)


class Paired(NamedTuple):
    """A mean difference over the seeds that two variants share; ``error`` is its standard error, nan for one seed."""

    mean: float
    error: float
    seeds: int


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """Mean of ours - theirs over the seeds that both have; None where they share none."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    mean, std = mean_and_std(differences)
    return Paired(mean, std / math.sqrt(len(differences)), len(differences))


def critical(seeds: int) -> float:
    """How many standard errors from 0 a mean over so many seeds (2 or more) must lie."""
    return T95[min(seeds - 1, len(T95)) - 1]


def pair_error(spread: float, seeds: int) -> float:
    """The standard error of a mean difference over so many seeds, of runs with the standard deviation ``spread``.

    As if nothing were gained by pairing, which is careful.
    """
    return spread * math.sqrt(2 / seeds)


def pooled_spread(groups: Iterable[Mapping[int, Run]]) -> float:
    """The standard deviation of test top-1 over seeds, pooled over variants with two seeds or more; nan without."""
    tops = [values for group in groups if len(values := [*values_of(group, "test_top1").values()]) > 1]
    degrees = sum(len(values) - 1 for values in tops)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in tops)
    return math.sqrt(squares / degrees) if degrees else math.nan


def detectable(spread: float, seeds: int) -> float:
    """The smallest difference whose 95 % interval over so many seeds leaves out 0: see :func:`pair_error`."""
    return critical(seeds) * pair_error(spread, seeds)


def seeds_for(spread: float) -> int:
    """How many seeds, 2 or more, show a difference of half a point."""
    return next(seeds for seeds in itertools.count(2) if detectable(spread, seeds) <= 0.005)


def verdict(difference: Paired | None, sign: int) -> str:
    """Judge a difference by :data:`RULE`; where the claim predicts no sign, say what was seen."""
    if difference is None or difference.seeds < 2:
        return "too few seeds"
    clear = abs(difference.mean) > critical(difference.seeds) * difference.error
    if not sign:
        return f"no claim; {'higher' if difference.mean > 0 else 'lower'}" if clear else "no claim; no difference seen"
    if not clear:
        return "not seen at this size"
    return "confirmed" if difference.mean * sign > 0 else "contradicted"


# ---- the table ---------------------------------------------------------------------------------------------


def points(difference: Paired | None, unit: float = 0.01) -> str:
    """A difference of accuracies in points, such as ``-1.20 ± 0.40``; with ``unit`` 1 one of epochs."""
    if difference is None:
        return "-"
    mean = f"{difference.mean / unit:+.2f}".replace("-", "−")
    return mean if math.isnan(difference.error) else f"{mean} ± {difference.error / unit:.2f}"


def judge(claim: Claim, ours: Mapping[int, Run], theirs: Mapping[int, Run]) -> str:
    """The verdict on a claim; where it is about speed, with the difference that it rests on."""
    measure, sign = claim.measure, claim.sign
    if measure == "epochs" and any(len(values_of(runs, measure)) < len(runs) for runs in (ours, theirs)):
        if len({run["epochs"] for runs in (ours, theirs) for run in runs.values()}) > 1:
            return "not seen at this size"  # of other lengths, whose last epochs are not to be compared
        measure, sign = "train_top1", -sign
    difference = paired_difference(values_of(ours, measure), values_of(theirs, measure))
    if measure not in SPEEDS or difference is None:
        return verdict(difference, sign)
    what, unit = SPEEDS[measure]
    return f"{verdict(difference, sign)} ({what}: {points(difference, unit)})"


def compare(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The table's lines, of runs that are comparable: the baseline, then every variant against what its claim names."""
    groups, machine, lines = by_variant(runs), usual_machine(runs), []
    for name, group in groups.items():
        claim = CLAIMS.get(name, NO_CLAIM)
        reference = groups.get(claim.against, {})
        shares = {part: values_of(group, f"{part}_top1") for part in ("train", "val", "test")}
        against = "" if claim.against == BASELINE else f" (against {claim.against})"
        difference = points(paired_difference(shares["test"], values_of(reference, "test_top1"))) + against
        line = {
            "variant": name,
            "section: claim": "-" if claim is NO_CLAIM else f"{claim.section}: {claim.text}",
            "seeds": str(len(group)),
            **{f"{part} top-1": percent([*values.values()]) for part, values in shares.items()},
            "difference ± standard error, points": "-" if name == BASELINE else difference,
            "the paper's": claim.figure,
            "verdict": "-" if name == BASELINE else judge(claim, group, reference),
            "time a run": duration(times(group.values(), machine)),
        }
        lines.append(line)
    return lines


def markdown(runs: Sequence[Run]) -> str:
    """The table, and under it what it is nothing without: data, recipe, rule, machine. Runs as for :func:`compare`."""
    rows = compare(runs)
    written = table([*rows[0]], ([*row.values()] for row in rows))
    return "\n".join([written, *(f"{line}\n" for line in (_about(runs), RULE, speed(by_variant(runs))) if line)])


def _about(runs: Sequence[Run]) -> str:
    """Which data, how long, on what."""
    epochs: dict[str, set[int]] = {}
    for run in runs:
        what = f"{run['data']}, {run['images']:,} images, {run['test_images']:,} to test"
        epochs.setdefault(what, set()).add(run["epochs"])
    said = [f"{what}, {' to '.join(map(str, sorted({min(n), max(n)})))} epochs" for what, n in sorted(epochs.items())]
    usual = usual_machine(runs)
    machines = [usual, *sorted({str(run["machine"]) for run in runs} - {usual})]
    jobs, tested, precisions = (
        ", ".join(map(str, sorted({run[key] for run in runs if key in run}))) for key in ("jobs", "tested", "precision")
    )
    text = f"{'; '.join(said)}, {precisions}. Machine: {'; '.join(machines)}; runs at a time: {jobs}."
    if left_out := len(runs) - len(times(runs, usual)):
        others = " or on another machine than the first" if len(machines) > 1 else ""
        text += f" Times are without runs that were stopped and went on{others} ({left_out})."
    if flags := sorted({" ".join(run["flags"]) for run in runs} - {""}):
        text += f" Flags: `{'`, `'.join(flags)}`."
    if tested:
        text += f" Tested, once each: {tested}."
    return text + " Train top-1 is that of the last epoch, on augmented images with dropout where the variant has them."


def reached(runs: Mapping[int, Run]) -> tuple[float | None, str]:
    """When a variant's runs came to Figure 1's 25 %: the mean over seeds, None unless all of them did; and in words."""
    found = list(values_of(runs, "epochs").values())
    if not found:
        return None, f"never (within {max(run['epochs'] for run in runs.values())})"
    said = f"after {statistics.fmean(found):.1f} epochs"
    if len(found) < len(runs):
        return None, f"{said} in {len(found)} of {len(runs)} seeds"
    return statistics.fmean(found), said


def speed(groups: Mapping[str, Mapping[int, Run]]) -> str | None:
    """Say after how many epochs ReLU and tanh reached Figure 1's 25 %; None where there are not both.

    With two seeds or more that both have, the ratio's 95 % interval: of its mean over them, by Student's t.
    """
    if not all(groups.get(name) for name in PAIR):
        return None
    (first, said), (second, said_too) = (reached(groups[name]) for name in PAIR)
    text = f"{TARGET:.0%} training error".replace("%", " %") + f" (Figure 1): ReLU {said}, tanh {said_too}"
    if first is not None and second is not None:
        ours, theirs = (values_of(groups[name], "epochs") for name in PAIR)
        ratios = [theirs[seed] / ours[seed] for seed in ours.keys() & theirs.keys()]
        ratio, interval = second / first, ""
        if len(ratios) > 1:
            ratio, std = mean_and_std(ratios)
            margin = critical(len(ratios)) * std / math.sqrt(len(ratios))
            interval = f" (95 % interval over {len(ratios)} seeds: {ratio - margin:.1f} to {ratio + margin:.1f})"
        text += f"; {ratio:.1f} times as many{interval}, 6 in the paper"
    return text + "."
