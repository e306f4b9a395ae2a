"""The figures of a sweep: validation over epochs for each variant, and the paper's Figure 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from running.figures import mean_and_std

from ablation.claims import BASELINE, CLAIMS, NO_CLAIM, PAIR, TARGET
from ablation.table import Run, by_variant, curve_of, reached


class Curve(NamedTuple):
    """Mean and standard deviation over seeds (0 for one seed) at each epoch that all seeds have."""

    epochs: Sequence[float]
    mean: list[float]
    std: list[float]


def mean_curve(runs: Mapping[int, Run], name: str) -> Curve | None:
    """The curve of ``val_top1`` or another measure over seeds; None where no run has it."""
    curves = [curve for run in runs.values() if (curve := curve_of(run, name))]
    if not curves:
        return None
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    pairs = [mean_and_std([curve[epoch] for curve in curves]) for epoch in epochs]
    return Curve(epochs, [mean for mean, _ in pairs], [0.0 if math.isnan(std) else std for _, std in pairs])


def curves_figure(runs: Sequence[Run]) -> Figure | None:
    """Validation top-1 over epochs: a small plot for each variant, with the baseline in grey; bands are ± one
    standard deviation over seeds. None where no run has a curve."""
    groups = by_variant(runs)
    curves = {name: curve for name, group in groups.items() if (curve := mean_curve(group, "val_top1"))}
    if not curves:
        return None
    names = [name for name in curves if name != BASELINE] or [BASELINE]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 2.5 * rows + 0.7), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for place, (name, axis) in enumerate(zip(names, axes.flat, strict=False)):
        against = CLAIMS.get(name, NO_CLAIM).against
        if against in curves and name not in (BASELINE, against):
            _band(axis, curves[against], "0.45", f"{against} (n = {len(groups[against])})")
        _band(axis, curves[name], "tab:blue", f"{name} (n = {len(groups[name])})")
        _scales(axis)
        axis.set_title(name, fontsize=10)
        axis.legend(loc="lower right", fontsize=7, frameon=False)
        lowest = place + columns >= len(names)
        axis.tick_params(labelbottom=lowest)
        axis.set(xlabel="epoch" if lowest else "", ylabel="" if place % columns else "validation top-1")
    figure.suptitle(f"Validation over epochs, mean ± standard deviation over seeds\n{_data(runs)}", fontsize=10)
    return figure


def figure1(runs: Sequence[Run]) -> Figure | None:
    """The paper's Figure 1: training error over epochs, ReLU solid, tanh dashed, and where they reach 25 %.

    Of the baseline and ``tanh``; None where there are not both.

    Source:
        Krizhevsky et al. 2012, section 3.1 and Figure 1.
    """
    groups = by_variant(runs)
    curves = {name: curve for name, group in groups.items() if (curve := mean_curve(group, "train_top1"))}
    if not curves.keys() >= {*PAIR}:
        return None
    figure = Figure(figsize=(5.6, 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    for name, label, style, colour in zip(PAIR, ("ReLU", "tanh"), ("-", "--"), ("tab:blue", "tab:red"), strict=True):
        epochs, means, std = curves[name]
        error = Curve([epoch - 0.5 for epoch in epochs], [1 - mean for mean in means], std)  # as `epoch_reached` has it
        epoch, when = reached(groups[name])
        _band(axis, error, colour, f"{label} (n = {len(groups[name])}): 25 % {when}", style)
        if epoch is not None:
            axis.axvline(epoch, color=colour, linestyle=":", linewidth=1)
    axis.axhline(TARGET, color="0.3", linewidth=1)
    last = max(1, *(epoch for name in PAIR for epoch in curves[name].epochs))
    axis.text(last, TARGET, "25 %", ha="right", va="bottom", fontsize=8, color="0.3")
    axis.set(xlabel="epoch", ylabel="training error")
    axis.set_ylim(bottom=0)
    _scales(axis)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(f"Figure 1: ReLU against tanh\n{_data(runs)}", fontsize=10)
    return figure


def _data(runs: Sequence[Run]) -> str:
    return "; ".join(sorted({f"{run['data']}, {run['images']:,} images" for run in runs}))


def _scales(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)


def _band(axis: Axes, curve: Curve, colour: str, label: str, style: str = "-") -> None:
    low, high = ([m + s * d for m, d in zip(curve.mean, curve.std, strict=True)] for s in (-1, 1))
    marker = "o" if len(curve.epochs) == 1 else ""
    axis.plot(curve.epochs, curve.mean, style, color=colour, label=label, linewidth=1.6, marker=marker)
    axis.fill_between(curve.epochs, low, high, color=colour, alpha=0.2, linewidth=0)
