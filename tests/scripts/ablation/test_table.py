"""What the runs of a sweep come to: statistics, verdicts by the rule, which runs are compared, the table."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from ablation.claims import BASELINE
from ablation.table import (
    RULE,
    Paired,
    by_variant,
    comparable,
    compare,
    critical,
    epoch_reached,
    markdown,
    paired_difference,
    speed,
    verdict,
)
from helpers.ablation import a_run
from running.figures import mean_and_std

DIFFERENCE = "difference ± standard error, points"


def test_means_and_differences_are_numpy_s() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.5, 0.02, 6), rng.normal(0.48, 0.02, 6)
    mean, std = mean_and_std(list(ours))
    assert mean == pytest.approx(np.mean(ours), rel=1e-12)
    assert std == pytest.approx(np.std(ours, ddof=1), rel=1e-12)
    # Seeds 0 to 5 against 2 to 7: four pairs.
    found = paired_difference(dict(enumerate(ours)), {seed + 2: value for seed, value in enumerate(theirs)})
    expected = ours[2:] - theirs[:4]
    assert found is not None
    assert found.seeds == 4
    assert found.mean == pytest.approx(expected.mean(), rel=1e-12)
    assert found.error == pytest.approx(expected.std(ddof=1) / 2, rel=1e-12)


def test_one_seed_has_no_error_and_none_no_difference() -> None:
    assert math.isnan(mean_and_std([0.5])[1])
    assert math.isnan(paired_difference({1: 0.5}, {1: 0.4}).error)  # type: ignore[union-attr]
    assert paired_difference({1: 0.5}, {2: 0.4}) is None
    with pytest.raises(ValueError, match="at least one"):
        mean_and_std([])


@pytest.mark.parametrize("seeds", [2, 3, 5, 11, 31])
def test_critical_values_leave_five_percent(seeds: int) -> None:
    """Student's density, integrated; x = tan(u) brings the tails in."""
    nu = seeds - 1
    u = np.linspace(math.atan(critical(seeds)), math.pi / 2, 200_001)[:-1]
    x = np.tan(u)
    density = np.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
    values = density * (1 + x**2 / nu) ** (-(nu + 1) / 2) * (1 + x**2)
    assert 2 * float(((values[1:] + values[:-1]) / 2 * np.diff(u)).sum()) == pytest.approx(0.05, abs=3e-4)
    assert critical(1000) == critical(31)


@pytest.mark.parametrize(
    ("difference", "sign", "judgement"),
    [
        (None, -1, "too few seeds"),
        (Paired(-0.05, math.nan, 1), -1, "too few seeds"),
        (Paired(-0.044, 0.01, 3), -1, "confirmed"),
        (Paired(-0.042, 0.01, 3), -1, "not seen at this size"),  # 4.2 standard errors, 4.3 are wanted
        (Paired(-0.042, 0.01, 5), -1, "confirmed"),
        (Paired(0.044, 0.01, 3), -1, "contradicted"),
        (Paired(0.044, 0.01, 3), +1, "confirmed"),
        (Paired(0.0, 0.0, 3), -1, "not seen at this size"),
        (Paired(-0.01, 0.0, 3), -1, "confirmed"),
        (Paired(0.044, 0.01, 3), 0, "no claim; higher"),
        (Paired(-0.044, 0.01, 3), 0, "no claim; lower"),
        (Paired(-0.01, 0.01, 3), 0, "no claim; no difference seen"),
    ],
)
def test_verdicts(difference: Paired | None, sign: int, judgement: str) -> None:
    assert verdict(difference, sign) == judgement


def test_the_table() -> None:
    baseline, lrn = [0.50, 0.52, 0.51], [0.47, 0.50, 0.483]
    runs = [a_run("no_lrn", seed, value) for seed, value in enumerate(lrn)]
    runs += [a_run(BASELINE, seed, value, resumed=int(seed == 2)) for seed, value in enumerate(baseline)]
    runs[-1]["seconds"] = 7.0  # of its second half: left out
    runs += [a_run("mine", 0, 0.6)]
    first, second, third = compare(runs)
    assert first["variant"] == BASELINE
    assert first["test top-1"] == f"51.00 ± {100 * statistics.stdev(baseline):.2f} %" == "51.00 ± 1.00 %"
    assert first[DIFFERENCE] == first["verdict"] == "-"
    assert first["time a run"] == "10 min 20 s"
    differences = [a - b for a, b in zip(lrn, baseline, strict=True)]
    error = statistics.stdev(differences) / 3**0.5
    assert second[DIFFERENCE] == f"−{-100 * statistics.fmean(differences):.2f} ± {100 * error:.2f}"
    assert second["verdict"] == "confirmed"
    assert second["the paper's"] == "1.4 points; CIFAR-10: 13 % → 11 % error"
    assert (third["variant"], third["section: claim"]) == ("mine", "-")
    assert (third[DIFFERENCE], third["verdict"]) == ("+10.00", "too few seeds")
    text = markdown(runs)
    assert "| no_lrn | 3.3: LRN helps | 3 |" in text
    assert "CIFAR-10, 5,000 images, 10,000 to test, 2 epochs, 32-true. Machine: a CPU; runs at a time: 1." in text
    assert "without runs that were stopped and went on (1)" in text
    assert RULE in text


def test_the_times_of_two_machines_are_not_averaged() -> None:
    runs = [a_run(BASELINE, seed, seconds=600.0) for seed in range(3)]
    runs += [a_run(BASELINE, 3, seconds=20.0, machine="A GPU"), a_run("mine", 3, seconds=20.0, machine="A GPU")]
    assert [line["time a run"] for line in compare(runs)] == ["10 min 00 s", "-"]
    text = markdown(runs)
    assert "Machine: a CPU; A GPU; runs" in text
    assert "Times are without runs that were stopped and went on or on another machine than the first (2)." in text


def three(variant: str, *train: float, test: float = 0.5, slope: float = 0.0) -> list[dict[str, Any]]:
    """Runs of three seeds; the last epoch's training top-1 rises with the seed."""
    return [a_run(variant, seed, test, [*train[:-1], train[-1] + slope * seed]) for seed in range(3)]


def test_tanh_is_judged_by_training() -> None:
    line = compare([*three(BASELINE, 0.3, 0.6, slope=0.001), *three("tanh", 0.2, 0.4)])[1]
    assert line[DIFFERENCE] == "+0.00 ± 0.00"
    assert line["verdict"] == "confirmed (train top-1: −20.10 ± 0.06)"


def test_figure_1_is_judged_by_the_epochs_to_its_error() -> None:
    """Both end at the same training error; tanh comes to 25 % half an epoch later."""
    runs = three(BASELINE, 0.5, 0.75, 0.9) + three("tanh", 0.5, 0.6, 0.9)
    assert compare(runs)[1]["verdict"] == "confirmed (epochs to 25 %: +0.50 ± 0.00)"
    runs = three(BASELINE, 0.5, 0.6, 0.9) + three("tanh", 0.8, 0.85, 0.9)
    assert compare(runs)[1]["verdict"] == "contradicted (epochs to 25 %: −1.50 ± 0.00)"
    runs[-1] = a_run("tanh", 2, train=[0.5, 0.6, 0.7])  # one that never gets there
    assert "train top-1" in compare(runs)[1]["verdict"]
    runs[-1] = a_run("tanh", 2, train=[0.5, 0.6, 0.65, 0.7])  # nor after more epochs than the other
    assert compare(runs)[1]["verdict"] == "not seen at this size"


def test_runs_of_another_recipe_are_left_out() -> None:
    good = [a_run(BASELINE, 0), a_run("no_lrn", 0), a_run("faster", 0, changes={"model.lr": 0.1})]
    other = a_run("no_lrn", 1)
    other["settings"]["model.lr"] = 0.03
    flagged = a_run(BASELINE, 1, flags=["--data.subset_size", "10"])
    tuned = a_run("faster", 1, changes={"model.lr": 0.2})
    copy = a_run("no_lrn", 2, data="CIFAR-10 (JPEG copy in class folders)")
    fewer = a_run("no_lrn", 3, test_images=5000)
    half = a_run("no_lrn", 4, precision="bf16-mixed")
    kept, lines = comparable([*good, other, flagged, tuned, copy, fewer, half])
    assert kept == good
    than = "has another recipe than baseline seed 0:"
    assert lines == [
        f"left out: no_lrn seed 1 {than} model.lr 0.03, not 0.02",
        f"left out: baseline seed 1 {than} flags --data.subset_size 10, not none",
        f"left out: no_lrn seed 2 {than} data CIFAR-10 (JPEG copy in class folders), not CIFAR-10",
        f"left out: no_lrn seed 3 {than} test_images 5000, not 10000",
        f"left out: no_lrn seed 4 {than} precision bf16-mixed, not 32-true",
        "left out: faster seed 1 has another recipe than faster seed 0: model.lr 0.2, not 0.1",
    ]


def test_a_variant_s_first_run_may_be_the_one_that_is_left_out() -> None:
    runs = [a_run(BASELINE, 0), *(a_run("no_lrn", seed) for seed in range(3))]
    runs[1]["settings"]["model.lr"] = 0.03
    kept, lines = comparable(runs)
    assert kept == [runs[0], *runs[2:]]
    assert len(lines) == 1


def test_the_official_images_are_the_same_in_every_form() -> None:
    forms = ("files", "archive", "binary version")
    runs = [a_run(BASELINE, seed, data=f"CIFAR-10 (official {form})") for seed, form in enumerate(forms)]
    assert comparable(runs) == (runs, [])


def test_a_target_that_is_reached_is_said_and_one_that_is_not() -> None:
    relu, tanh = a_run(BASELINE, 0, train=[0.5, 0.76, 0.9, 0.9]), a_run("tanh", 0, train=[0.3, 0.5, 0.7, 0.75])
    assert [epoch_reached(run) for run in (relu, tanh)] == pytest.approx([0.5 + 0.25 / 0.26, 3.5])  # epochs' middles
    assert speed(by_variant([relu, tanh])) == (
        "25 % training error (Figure 1): ReLU after 1.5 epochs, tanh after 3.5 epochs; 2.4 times as many, "
        "6 in the paper."
    )
    runs = [a_run(BASELINE, 0), a_run("tanh", 0)]
    assert speed(by_variant(runs)) == ("25 % training error (Figure 1): ReLU never (within 2), tanh never (within 2).")
    assert speed(by_variant(runs[:1])) is None


def test_runs_of_several_lengths_are_said() -> None:
    text = markdown([a_run(BASELINE, n, train=[0.5] * n) for n in (3, 8, 5)])
    assert "CIFAR-10, 5,000 images, 10,000 to test, 3 to 8 epochs, 32-true. Machine" in text


def test_the_ratio_of_epochs_has_an_interval_over_seeds() -> None:
    epochs = [5, 6, 8]
    runs = [a_run(BASELINE, seed, train=[0.75]) for seed in (0, 1, 2, 3)]  # in the middle of its first epoch
    runs += [a_run("tanh", seed, train=[0.1] * (n - 1) + [0.75]) for seed, n in enumerate(epochs)]
    ratios = [(n - 0.5) / 0.5 for n in epochs]
    margin = 4.303 * np.std(ratios, ddof=1) / math.sqrt(3)
    low, high = np.mean(ratios) - margin, np.mean(ratios) + margin
    wanted = f"11.7 times as many (95 % interval over 3 seeds: {low:.1f} to {high:.1f}), 6 in the paper."
    assert (speed(by_variant(runs)) or "").endswith(wanted)


def test_an_epoch_that_was_not_measured_is_no_point_of_a_curve() -> None:
    run = a_run("tanh", 0, train=[0.5, 0.6, 0.9])
    del run["history"][1]["train_top1"]
    assert epoch_reached(run) == pytest.approx(0.5 + 2 * 0.25 / 0.4)
