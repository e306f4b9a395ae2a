"""What ablation runs come to: paired differences, verdicts by a stated rule, a table, plots. Pure, but for its end.

A run is the mapping that ``ablate.py`` keeps of it in ``<variant>-seed<n>/summary.json``: ``fit.py``'s own summary with
``variant``, ``seed``, ``settings``, ``changes``, ``flags``, ``jobs``, ``resumed`` and ``curves`` added. Accuracies are
in ``[0, 1]``; a curve is a list of ``[epoch, value]``.

From top to bottom: the paper's claims, statistics, which runs can be compared, the table, the plots, files.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from callbacks.checkpoints.files import write_whole

Run = Mapping[str, Any]
BASELINE = "baseline"

# --------------------------------------------------------------------------------------------------- the paper's claims


class Claim(NamedTuple):
    """What the paper says about a variant.

    Attributes:
        section: Of the paper.
        text: The claim.
        figure: The paper's own figure for it, in points of ImageNet's top-1 unless it says otherwise.
        sign: The sign of (variant - ``against``) that the claim predicts; 0 where the paper predicts none.
        measure: What is compared: ``test_top1``; where the claim is about training's speed ``train_top1``, or the
            ``epochs`` to 25 % training error. If a run never got there: ``train_top1``, with the other sign.
        against: The variant that it is held against.
    """

    section: str
    text: str
    figure: str
    sign: int
    measure: str = "test_top1"
    against: str = BASELINE


CLAIMS: dict[str, Claim] = {
    "no_lrn": Claim("3.3", "LRN helps", "1.4 points; CIFAR-10: 13 % → 11 % error", -1),
    "no_overlap": Claim("3.4", "overlapping pooling helps", "0.4 points", -1),
    "no_lighting": Claim("4.1", "PCA lighting helps", "over 1 point", -1),
    "no_augmentation": Claim("4.1", "shifts and flips prevent overfitting", "no figure", -1),
    "no_dropout": Claim("4.2", "dropout prevents overfitting", "no figure; twice the iterations", -1),
    "no_groups": Claim("3.2", "two groups: no claim against this", "1.7 points, against half the kernels", 0),
    "tanh": Claim("3.1", "ReLUs train faster than tanh", "several times", -1, "train_top1"),
    "figure1_tanh": Claim(
        "3.1, Fig. 1",
        "unregularised, ReLUs train faster than tanh",
        "CIFAR-10: 25 % training error in 1/6 of the epochs",
        +1,
        "epochs",
        against="figure1_relu",
    ),
    "ten_crops": Claim("4.1", "ten crops beat one at the test", "1.5 points (39.0 % → 37.5 % error)", +1),
}
NO_CLAIM = Claim("-", "-", "-", 0)
TARGET = 0.25  # Figure 1's training error
SPEEDS = {"train_top1": ("train top-1", 0.01), "epochs": ("epochs to 25 %", 1.0)}  # measures of it, with their units

# ----------------------------------------------------------------------------------------------------------- statistics

# Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom. Beyond: the last, which is a little too careful.
T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
RULE = (
    "The verdict's rule: *confirmed* if the difference has the sign that the claim predicts and the 95 % interval of "
    "its mean over seeds (Student's t: 12.7 standard errors with 2 seeds, 4.3 with 3, 2.8 with 5) leaves out 0; "
    "*contradicted* if it does so with the other sign; else *not seen at this size*. Differences are paired by seed: "
    "the same images, the same order. Every run is tested once, on the weights that were best on validation. The "
    "standard error is that of other seeds; another test set would add its own."
)
TOO_FEW = "too few seeds"


class Paired(NamedTuple):
    """A mean difference over the seeds that two variants share; ``error`` is its standard error, nan for one seed."""

    mean: float
    error: float
    seeds: int


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), which is nan for one value.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("values must not be empty")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


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


def verdict(difference: Paired | None, sign: int) -> str:
    """Judge a difference by :data:`RULE`; where the claim predicts no sign, say what was seen."""
    if difference is None or difference.seeds < 2:
        return TOO_FEW
    clear = abs(difference.mean) > critical(difference.seeds) * difference.error
    if not sign:
        return f"no claim; {'higher' if difference.mean > 0 else 'lower'}" if clear else "no claim; no difference seen"
    if not clear:
        return "not seen at this size"
    return "confirmed" if difference.mean * sign > 0 else "contradicted"


# ----------------------------------------------------------------------------------------------------- comparable runs


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config with dotted keys: ``{"model": {"lrn": False}}`` becomes ``{"model.lrn": False}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def first_difference(ours: Run, theirs: Run, but: Sequence[str] = ()) -> str | None:
    """Say how two runs' recipes differ first, apart from the settings named in ``but``; None where they don't."""
    if ours["flags"] != theirs["flags"]:
        return f"flags {' '.join(theirs['flags']) or 'none'}, now {' '.join(ours['flags']) or 'none'}"
    for key in sorted(ours["settings"].keys() | theirs["settings"].keys()):
        now, then = (settings.get(key, "not set") for settings in (ours["settings"], theirs["settings"]))
        if key not in but and now != then:
            return f"{key} {then}, now {now}"
    return None


def comparable(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leave out runs whose recipe is not the baseline's but for the variant's own changes, such as those of before.

    Returns:
        The runs that stay, and a line for each of the others.
    """
    baselines = sorted((run for run in runs if run["variant"] == BASELINE), key=lambda run: run["seed"])
    if not baselines:
        return list(runs), []
    kept, lines = [], []
    for run in runs:
        difference = first_difference(baselines[0], run, run["changes"])
        if difference is None:
            kept.append(run)
        else:
            lines.append(
                f"left out: {run['variant']} seed {run['seed']} has another recipe than the baseline: {difference}"
            )
    return kept, lines


def by_variant(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs by variant and seed; the baseline first, then in the order of :data:`CLAIMS`, then by name."""
    order = [BASELINE, "figure1_relu", *CLAIMS]

    def key(name: str) -> tuple[int, str]:
        return (order.index(name) if name in order else len(order), name)

    groups: dict[str, dict[int, Run]] = {name: {} for name in sorted({run["variant"] for run in runs}, key=key)}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups[run["variant"]][run["seed"]] = run
    return groups


def values_of(runs: Mapping[int, Run], measure: str) -> dict[int, float]:
    """Seed -> value, where the run has one."""
    if measure == "epochs":
        epochs = {seed: epoch_reached(run) for seed, run in runs.items()}
        return {seed: epoch for seed, epoch in epochs.items() if epoch is not None}
    return {seed: run[measure] for seed, run in runs.items() if run.get(measure) is not None}


def epoch_reached(run: Run, error: float = TARGET) -> float | None:
    """When a run's training error came down to ``error``, in epochs, between two on a straight line; None: never."""
    last: tuple[float, float] | None = None
    for epoch, top1 in sorted(run["curves"].get("train/top1", [])):
        found = 1 - top1
        if found <= error:
            return epoch if last is None else last[0] + (epoch - last[0]) * (last[1] - error) / (last[1] - found)
        last = epoch, found
    return None


# ------------------------------------------------------------------------------------------------------------ the table


class Line(NamedTuple):
    """A line of the table: text for each of its cells, in the order of :data:`HEADINGS`."""

    variant: str
    claim: str
    seeds: str
    train: str
    val: str
    test: str
    difference: str
    paper: str
    verdict: str
    time: str


HEADINGS = Line(
    "variant",
    "section: claim",
    "seeds",
    "train top-1",
    "val top-1",
    "test top-1",
    "difference ± standard error, points",
    "the paper's",
    "verdict",
    "time a run",
)


def percent(values: Sequence[float]) -> str:
    """Mean ± standard deviation in percent, such as ``50.70 ± 0.41 %``; ``-`` where there is nothing."""
    if not values:
        return "-"
    mean, std = mean_and_std(values)
    return f"{100 * mean:.2f} %" if math.isnan(std) else f"{100 * mean:.2f} ± {100 * std:.2f} %"


def points(difference: Paired | None, unit: float = 0.01) -> str:
    """A difference of accuracies in points, such as ``-1.20 ± 0.40``; with ``unit`` 1 one of epochs."""
    if difference is None:
        return "-"
    mean = f"{difference.mean / unit:+.2f}".replace("-", "−")
    return mean if math.isnan(difference.error) else f"{mean} ± {difference.error / unit:.2f}"


def duration(seconds: Sequence[float]) -> str:
    """The mean, such as ``10 min 20 s``; ``-`` where there is nothing."""
    if not seconds:
        return "-"
    minutes, rest = divmod(round(statistics.fmean(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def compare(runs: Sequence[Run]) -> list[Line]:
    """The table's lines, of runs that are comparable: the baseline, then every variant against what its claim names."""
    groups = by_variant(runs)
    lines = []
    for name, group in groups.items():
        claim = CLAIMS.get(name, NO_CLAIM)
        reference = groups.get(claim.against, {})
        own = name in (BASELINE, "figure1_relu")  # compared with nothing
        test = paired_difference(values_of(group, "test_top1"), values_of(reference, "test_top1"))
        measure, sign = claim.measure, claim.sign
        if measure == "epochs" and any(len(values_of(g, measure)) < len(g) for g in (group, reference)):
            measure, sign = "train_top1", -sign
        judged = paired_difference(values_of(group, measure), values_of(reference, measure))
        judgement = verdict(judged, sign)
        if measure in SPEEDS and judged is not None:
            what, unit = SPEEDS[measure]
            judgement += f" ({what}: {points(judged, unit)})"
        against = "" if claim.against == BASELINE else f" (against {claim.against})"
        lines.append(
            Line(
                name,
                "-" if claim is NO_CLAIM else f"{claim.section}: {claim.text}",
                str(len(group)),
                percent(list(values_of(group, "train_top1").values())),
                percent(list(values_of(group, "val_top1").values())),
                percent(list(values_of(group, "test_top1").values())),
                "-" if own else points(test) + against,
                claim.figure,
                "-" if own else judgement,
                duration([run["seconds"] for run in group.values() if not run["resumed"]]),
            )
        )
    return lines


def markdown(runs: Sequence[Run]) -> str:
    """The table, and under it what it is nothing without: data, recipe, rule, machine. Runs as for :func:`compare`."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in compare(runs)]
    notes = [_about(runs), RULE]
    notes += [note for pair in PAIRS if (note := speed(by_variant(runs), *pair))]
    return "\n".join([*lines, "", *(part for note in notes for part in (note, ""))]).rstrip() + "\n"


def _about(runs: Sequence[Run]) -> str:
    """Which data, how long, on what."""
    said = sorted({f"{r['data']}, {r['images']:,} images, {r['epochs']} epochs" for r in runs})
    machines = sorted({str(run["machine"]) for run in runs})
    jobs = sorted({run["jobs"] for run in runs})
    text = f"{'; '.join(said)}. Machine: {'; '.join(machines)}; runs at a time: {', '.join(map(str, jobs))}."
    resumed = sum(bool(run["resumed"]) for run in runs)
    if resumed:
        text += f" Times are without the {resumed} runs that were stopped and went on."
    flags = sorted({" ".join(run["flags"]) for run in runs} - {""})
    if flags:
        text += f" Flags: `{'`, `'.join(flags)}`."
    return text + " Train top-1 is that of the last epoch, on augmented images with dropout where the variant has them."


# ------------------------------------------------------------------------------------------------------------ the plots

PAIRS = (("figure1_relu", "figure1_tanh"), (BASELINE, "tanh"))  # ReLU and tanh: Figure 1's own, and the ablation's


class Curve(NamedTuple):
    """Mean and standard deviation over seeds (0 for one seed) at each epoch that all seeds have."""

    epochs: list[int]
    mean: list[float]
    std: list[float]


def mean_curve(runs: Mapping[int, Run], tag: str) -> Curve | None:
    """A tag's curve over seeds; None where no run has it."""
    curves = [dict(map(tuple, run["curves"][tag])) for run in runs.values() if run["curves"].get(tag)]  # type: ignore[misc]
    if not curves:
        return None
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    pairs = [mean_and_std([curve[epoch] for curve in curves]) for epoch in epochs]
    return Curve(epochs, [mean for mean, _ in pairs], [0.0 if math.isnan(std) else std for _, std in pairs])


def reached(runs: Mapping[int, Run]) -> tuple[float | None, str]:
    """When a variant's runs came to Figure 1's 25 %: the mean over seeds, None unless all of them did; and in words."""
    found = list(values_of(runs, "epochs").values())
    if not found:
        return None, f"never (within {max(run['epochs'] for run in runs.values())})"
    said = f"after {statistics.fmean(found):.1f} epochs"
    if len(found) < len(runs):
        return None, f"{said} in {len(found)} of {len(runs)} seeds"
    return statistics.fmean(found), said


def speed(groups: Mapping[str, Mapping[int, Run]], relu: str, tanh: str) -> str | None:
    """Say after how many epochs each of two variants reached Figure 1's 25 %; None where there are not both."""
    if not groups.get(relu) or not groups.get(tanh):
        return None
    (first, said), (second, said_too) = reached(groups[relu]), reached(groups[tanh])
    text = f"{TARGET:.0%} training error".replace("%", " %") + f" (Figure 1): {relu} {said}, {tanh} {said_too}"
    if first is not None and second is not None:
        text += f"; {second / first:.1f} times as many, 6 in the paper"
    return text + "."


def curves_figure(runs: Sequence[Run]) -> Figure | None:
    """Validation top-1 over epochs: a small plot for each variant, with the baseline in grey; bands are ± one
    standard deviation over seeds. None where no run has a curve."""
    groups = by_variant(runs)
    curves = {name: curve for name, group in groups.items() if (curve := mean_curve(group, "val/top1"))}
    if not curves:
        return None
    names = [name for name in curves if name != BASELINE] or [BASELINE]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = _figure(3.6 * columns + 0.6, 2.5 * rows + 0.7)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_axis_off()
            continue
        name = names[place]
        claim = CLAIMS.get(name, NO_CLAIM)
        against = claim.against if name != claim.against else None
        if against in curves and name != BASELINE:
            _band(axis, curves[against], "0.45", f"{against} (n = {len(groups[against])})")
        _band(axis, curves[name], "tab:blue", f"{name} (n = {len(groups[name])})")
        axis.set_title(name, fontsize=10)
        axis.legend(loc="lower right", fontsize=7, frameon=False)
        axis.tick_params(labelbottom=place + columns >= len(names))
        if place + columns >= len(names):
            axis.set_xlabel("epoch")
        if place % columns == 0:
            axis.set_ylabel("validation top-1")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
    figure.suptitle(f"Validation over epochs, mean ± standard deviation over seeds\n{_data(runs)}", fontsize=10)
    return figure


def figure1(runs: Sequence[Run]) -> Figure | None:
    """The paper's Figure 1: training error over epochs, ReLU solid, tanh dashed, and where they reach 25 %.

    Of ``figure1_relu`` and ``figure1_tanh`` if there are both, which are without regularisation like the paper's; else
    of the baseline and ``tanh``; None where there is neither pair.

    Source:
        Krizhevsky et al. 2012, section 3.1 and Figure 1.
    """
    groups = by_variant(runs)
    pair = next((pair for pair in PAIRS if all(mean_curve(groups.get(name, {}), "train/top1") for name in pair)), None)
    if pair is None:
        return None
    figure = _figure(5.6, 4.2)
    axis = figure.subplots()
    last = 1
    for name, label, style, colour in zip(pair, ("ReLU", "tanh"), ("-", "--"), ("tab:blue", "tab:red"), strict=True):
        accuracy = mean_curve(groups[name], "train/top1")
        assert accuracy is not None
        error = Curve(accuracy.epochs, [1 - value for value in accuracy.mean], accuracy.std)
        epoch, when = reached(groups[name])
        _band(axis, error, colour, f"{label} ({name}, n = {len(groups[name])}): 25 % {when}", style)
        if epoch is not None:
            axis.axvline(epoch, color=colour, linestyle=":", linewidth=1)
        last = max(last, *error.epochs)
    axis.axhline(TARGET, color="0.3", linewidth=1)
    axis.text(last, TARGET, "25 %", ha="right", va="bottom", fontsize=8, color="0.3")
    axis.set(xlabel="epoch", ylabel="training error")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    how = "no regularisation" if pair == PAIRS[0] else "with dropout and augmentation, unlike the paper's"
    axis.set_title(f"Figure 1: ReLU against tanh, {how}\n{_data(runs)}", fontsize=10)
    return figure


def _data(runs: Sequence[Run]) -> str:
    return "; ".join(sorted({f"{run['data']}, {run['images']:,} images" for run in runs}))


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot's global state or a screen."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _band(axis: Axes, curve: Curve, colour: str, label: str, style: str = "-") -> None:
    low, high = ([m + s * d for m, d in zip(curve.mean, curve.std, strict=True)] for s in (-1, 1))
    marker = "o" if len(curve.epochs) == 1 else ""
    axis.plot(curve.epochs, curve.mean, style, color=colour, label=label, linewidth=1.6, marker=marker)
    axis.fill_between(curve.epochs, low, high, color=colour, alpha=0.2, linewidth=0)


# ---------------------------------------------------------------------------------------------------------------- files

NEEDED = ("variant", "seed", "settings", "changes", "flags", "jobs", "resumed", "curves", "data", "images", "epochs")


def read_summary(path: Path, needed: Sequence[str], remedy: str) -> dict[str, Any]:
    """A ``summary.json`` with all that is needed of it.

    Raises:
        ValueError: If it can't be read, or has not all of it; one line that names the file and ends with ``remedy``.
        FileNotFoundError: If there is none.
    """
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


def read_run(path: Path) -> dict[str, Any]:
    """A run of ``ablate.py``'s.

    Raises:
        ValueError, FileNotFoundError: As :func:`read_summary`.
    """
    return read_summary(path, NEEDED, "Delete it, and ablate.py does the run again")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """All runs under ``folder``, by name.

    Raises:
        ValueError: As :func:`read_run`.
    """
    return [read_run(path) for path in sorted(folder.glob("*/summary.json"))]


def write_comparison(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write ``table.md``, ``curves.png`` and ``figure1.png`` of comparable runs; which of them there are."""
    write_whole(folder / "table.md", f"# Ablations\n\n{markdown(runs)}")
    written = [folder / "table.md"]
    for name, figure in (("curves.png", curves_figure(runs)), ("figure1.png", figure1(runs))):
        if figure is not None:
            figure.savefig(folder / name)
            written.append(folder / name)
    return written
