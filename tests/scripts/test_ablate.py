"""The ablations: what is run, what is kept, how it is stopped and goes on, and what the figures come to."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablate
import numpy as np
import pytest
import yaml
from ablate import BASELINE, choose, plan, read_scalars
from ablation import table as comparison
from ablation.table import (
    CLAIMS,
    Paired,
    comparable,
    compare,
    critical,
    curves_figure,
    epoch_reached,
    figure1,
    flatten,
    mean_and_std,
    mean_curve,
    paired_difference,
    speed,
    verdict,
)
from helpers import ROOT

ABLATIONS = ROOT / "configs" / "ablations"

# ---------------------------------------------------------------------------------------------------------- statistics


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
    with pytest.raises(ValueError, match="empty"):
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


def test_many_seeds_take_the_last_critical_value() -> None:
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


# -------------------------------------------------------------------------------------------------------- table, plots


def a_run(variant: str, seed: int, test: float = 0.5, train: list[float] | None = None, **more: Any) -> dict[str, Any]:
    train = train or [0.2, 0.4]
    changes = more.pop("changes", {} if variant == BASELINE else {f"model.{variant}": True})
    return {
        "variant": variant,
        "seed": seed,
        "settings": {"model.lr": 0.02, **changes},
        "changes": changes,
        "flags": [],
        "jobs": 1,
        "resumed": False,
        "data": "CIFAR-10",
        "images": 5000,
        "epochs": len(train),
        "machine": "a CPU",
        "train_top1": train[-1],
        "val_top1": test + 0.01,
        "test_top1": test,
        "seconds": 620.0,
        "curves": {
            "train/top1": [[i + 1, value] for i, value in enumerate(train)],
            "val/top1": [[i + 1, value / 2] for i, value in enumerate(train)],
        },
        **more,
    }


def test_the_table() -> None:
    baseline, lrn = [0.50, 0.52, 0.51], [0.47, 0.50, 0.483]
    runs = [a_run("no_lrn", seed, value) for seed, value in enumerate(lrn)]
    runs += [a_run(BASELINE, seed, value, resumed=seed == 2) for seed, value in enumerate(baseline)]
    runs[-1]["seconds"] = 7.0  # of its second half: left out
    runs += [a_run("mine", 0, 0.6)]
    first, second, third = compare(runs)
    assert first.variant == BASELINE
    assert first.test == f"51.00 ± {100 * statistics.stdev(baseline):.2f} %" == "51.00 ± 1.00 %"
    assert first.difference == first.verdict == "-"
    assert first.time == "10 min 20 s"
    differences = [a - b for a, b in zip(lrn, baseline, strict=True)]
    error = statistics.stdev(differences) / 3**0.5
    assert second.difference == f"−{-100 * statistics.fmean(differences):.2f} ± {100 * error:.2f}"
    assert second.verdict == "confirmed"
    assert second.paper == "1.4 points; CIFAR-10: 13 % → 11 % error"
    assert (third.variant, third.claim, third.difference, third.verdict) == ("mine", "-", "+10.00", "too few seeds")
    text = comparison.markdown(runs)
    assert "| no_lrn | 3.3: LRN helps | 3 |" in text
    assert "CIFAR-10, 5,000 images, 2 epochs. Machine: a CPU; runs at a time: 1." in text
    assert "without the 1 runs that were stopped" in text
    assert comparison.RULE in text


def test_tanh_is_judged_by_training() -> None:
    runs = [a_run(BASELINE, seed, 0.5, [0.3, 0.6 + 0.001 * seed]) for seed in range(3)]
    runs += [a_run("tanh", seed, 0.5, [0.2, 0.4]) for seed in range(3)]
    line = compare(runs)[1]
    assert line.difference == "+0.00 ± 0.00"
    assert line.verdict == "confirmed (train top-1: −20.10 ± 0.06)"


def test_figure1_s_tanh_is_held_against_its_own_relu() -> None:
    runs = [a_run(BASELINE, seed, 0.9) for seed in range(2)]
    runs += [a_run("figure1_relu", seed, 0.5) for seed in range(2)]
    runs += [a_run("figure1_tanh", seed, 0.4) for seed in range(2)]
    lines = {line.variant: line for line in compare(runs)}
    assert lines["figure1_tanh"].difference == "−10.00 ± 0.00 (against figure1_relu)"
    assert lines["figure1_relu"].verdict == "-"
    # Nobody comes to 25 %: the last epoch's training top-1 decides.
    assert lines["figure1_tanh"].verdict == "not seen at this size (train top-1: +0.00 ± 0.00)"


def test_figure_1_is_judged_by_the_epochs_to_its_error() -> None:
    """Both end at the same training error; tanh comes to 25 % half an epoch later."""
    runs = [a_run("figure1_relu", seed, train=[0.5, 0.75, 0.9]) for seed in range(3)]
    runs += [a_run("figure1_tanh", seed, train=[0.5, 0.6, 0.9]) for seed in range(3)]
    assert compare(runs)[1].verdict == "confirmed (epochs to 25 %: +0.50 ± 0.00)"
    runs = [a_run("figure1_relu", seed, train=[0.5, 0.6, 0.9]) for seed in range(3)]
    runs += [a_run("figure1_tanh", seed, train=[0.8, 0.85, 0.9]) for seed in range(3)]
    assert compare(runs)[1].verdict == "contradicted (epochs to 25 %: −1.50 ± 0.00)"
    runs[-1] = a_run("figure1_tanh", 2, train=[0.5, 0.6, 0.7])  # one that never gets there
    assert "train top-1" in compare(runs)[1].verdict


def test_runs_of_another_recipe_are_left_out() -> None:
    good = [a_run(BASELINE, 0), a_run("no_lrn", 0), a_run("faster", 0, changes={"model.lr": 0.1})]
    other = a_run("no_lrn", 1)
    other["settings"]["model.lr"] = 0.03
    flagged = a_run(BASELINE, 1, flags=["--data.subset_size", "10"])
    kept, lines = comparable([*good, other, flagged])
    assert kept == good
    assert lines[0] == "left out: no_lrn seed 1 has another recipe than the baseline: model.lr 0.03, now 0.02"
    assert "--data.subset_size 10, now none" in lines[1]


def test_curves_over_seeds() -> None:
    runs = [a_run("no_lrn", 0, train=[0.1, 0.3, 0.5]), a_run("no_lrn", 1, train=[0.2, 0.6])]
    runs += [a_run(BASELINE, 0, train=[0.3, 0.4, 0.5])]
    curve = mean_curve({0: runs[0], 1: runs[1]}, "train/top1")
    assert curve is not None
    assert curve.epochs == [1, 2]  # those that both have
    assert curve.mean == pytest.approx([0.15, 0.45])
    assert curve.std == pytest.approx([np.std([0.1, 0.2], ddof=1), np.std([0.3, 0.6], ddof=1)])
    figure = curves_figure(runs)
    assert figure is not None
    (axis,) = figure.axes
    grey, blue = axis.lines
    assert list(grey.get_ydata()) == pytest.approx([0.15, 0.2, 0.25])
    assert list(blue.get_ydata()) == pytest.approx([0.075, 0.225])
    assert blue.get_label() == "no_lrn (n = 2)"
    assert curves_figure([a_run(BASELINE, 0, curves={})]) is None


@pytest.mark.parametrize("unregularised", [True, False])
def test_figure_1(unregularised: bool) -> None:
    relu, tanh = ("figure1_relu", "figure1_tanh") if unregularised else (BASELINE, "tanh")
    runs = [a_run(BASELINE, 0), a_run("tanh", 0)] if unregularised else []
    runs += [a_run(relu, 0, train=[0.5, 0.76, 0.9, 0.9]), a_run(tanh, 0, train=[0.3, 0.5, 0.7, 0.75])]
    figure = figure1(runs)
    assert figure is not None
    lines = [
        line for line in figure.axes[0].lines if "ReLU" in str(line.get_label()) or "tanh" in str(line.get_label())
    ]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]  # as in the paper
    assert list(lines[0].get_ydata()) == pytest.approx([0.5, 0.24, 0.1, 0.1])
    assert "25 % after 2.0 epochs" in str(lines[0].get_label())
    assert [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == pytest.approx(
        [1 + 0.25 / 0.26, 4]
    )
    assert [epoch_reached(run) for run in runs[-2:]] == pytest.approx([1 + 0.25 / 0.26, 4])
    groups = comparison.by_variant(runs)
    assert speed(groups, relu, tanh) == (
        f"25 % training error (Figure 1): {relu} after 2.0 epochs, {tanh} after 4.0 epochs; 2.0 times as many, "
        "6 in the paper."
    )


def test_a_target_that_is_not_reached_is_said() -> None:
    runs = [a_run(BASELINE, 0), a_run("tanh", 0)]
    assert speed(comparison.by_variant(runs), BASELINE, "tanh") == (
        "25 % training error (Figure 1): baseline never (within 2), tanh never (within 2)."
    )
    assert figure1(runs) is not None
    assert figure1(runs[:1]) is None
    assert speed(comparison.by_variant(runs[:1]), BASELINE, "tanh") is None


def test_curves_come_from_event_files(tmp_path: Path) -> None:
    """A run that was stopped within its third epoch, and went on: the later folder wins."""
    from torch.utils.tensorboard import SummaryWriter

    for folder, epochs, shift in (("version_0", (0, 1, 2), 0.0), ("version_1", (2, 3), 0.5)):
        with SummaryWriter(str(tmp_path / folder)) as writer:
            for epoch in epochs:
                writer.add_scalar("epoch", epoch, epoch * 40 + 39)
                writer.add_scalar("val/top1", epoch / 10 + shift, epoch * 40 + 39)
                writer.add_scalar("train/lr", 1.0, epoch * 40 + 39)
    curves = read_scalars([tmp_path / "version_0", tmp_path / "version_1"], ["val/top1", "val/loss"])
    assert curves == {"val/top1": [[1, 0.0], [2, 0.1], [3, 0.7], [4, 0.8]]}


# ------------------------------------------------------------------------------------------------------------- configs

CHANGES = {
    "no_lrn": {"model.lrn": False},
    "no_overlap": {"model.overlap_pooling": False},
    "no_lighting": {"data.lighting_std": 0},
    "no_dropout": {"model.dropout": 0},
    "tanh": {"model.activation": "tanh", "model.lr": 0.005},
    "no_groups": {"model.groups": 1},
    "no_augmentation": {"data.flip": False, "data.crop_size": 32, "data.crop_padding": 0},
    "ten_crops": {"data.test_crops": 10},
}


def test_each_config_holds_what_differs_and_nothing_else() -> None:
    found = {variant.name: variant for variant in choose(None, ABLATIONS / "baseline.yaml")}
    assert {name: found[name].changes for name in CHANGES} == CHANGES
    relu, tanh = found["figure1_relu"].changes, found["figure1_tanh"].changes
    assert tanh.pop("model.lr") != relu.pop("model.lr")  # "chosen independently"
    assert tanh == {**relu, "model.activation": "tanh"}
    assert relu == {"model.dropout": 0, "model.weight_decay": 0, "data.lighting_std": 0} | CHANGES["no_augmentation"]
    assert [name for name, variant in found.items() if variant.test_only] == ["ten_crops"]
    assert found.keys() - {BASELINE, "figure1_relu"} == CLAIMS.keys()


@pytest.mark.parametrize("name", [BASELINE, *CHANGES, "figure1_relu", "figure1_tanh"])
def test_each_config_is_one_that_fit_takes(
    fit: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    configs = ["-c", str(ABLATIONS / "baseline.yaml"), "-c", str(ABLATIONS / f"{name}.yaml")]
    assert fit("fit", *configs, "--print_config", small=False) == 0
    settings = flatten(yaml.safe_load(capsys.readouterr().out))
    for key, value in CHANGES.get(name, {}).items():
        assert settings[key] == value
    assert settings["overview.enabled"] is False


def test_what_a_claim_is_held_against_is_run_too() -> None:
    chosen = choose(["figure1_tanh", "no_lrn", "baseline"], ABLATIONS / "baseline.yaml")
    assert [variant.name for variant in chosen] == [BASELINE, "figure1_relu", "figure1_tanh", "no_lrn"]


def test_a_plan_goes_seed_by_seed() -> None:
    jobs = plan(choose(["tanh"], ABLATIONS / "baseline.yaml"), 2, ["--data.val_size", "7"])
    assert [job.name for job in jobs] == ["baseline-seed0", "tanh-seed0", "baseline-seed1", "tanh-seed1"]
    assert jobs[1].recipe["settings"] == {**jobs[0].recipe["settings"], "model.activation": "tanh", "model.lr": 0.005}
    assert jobs[1].recipe["settings"]["trainer.log_every_n_steps"] == 10  # default.yaml's
    assert jobs[1].recipe["flags"] == ["--data.val_size", "7"]


# -------------------------------------------------------------------------------------------------------------- sweeps

# fit.py's part in a sweep, in a few milliseconds. A file `fail-tanh-1` or `hang-tanh-1` in the working folder makes
# that run fail or wait for a signal; `killed-tanh-1` ends it as a kill in its test would.
FAKE_FIT = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
def value(name):
    given = [w.split("=", 1)[1] if "=" in w else words[i + 1] for i, w in enumerate(words) if w.split("=")[0] == name]
    return given[-1] if given else None
variant, seed = Path(value("-c")).stem, int(value("--seed_everything"))
with open("calls.jsonl", "a") as file:
    told = {"words": words, "threads": os.environ.get("OMP_NUM_THREADS"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    file.write(json.dumps({"variant": variant, "seed": seed, **told}) + "\\n")
folder = Path(value("--trainer.logger.init_args.save_dir"), value("--trainer.logger.init_args.name"))
version = folder / f"version_{len(list(folder.glob('version_*')))}"
checkpoints = version / "checkpoints"
checkpoints.mkdir(parents=True)
ckpt = value("--ckpt_path")
top1 = {"baseline": 0.5, "tanh": 0.4}.get(variant, 0.45) + 0.01 * seed
if words[0] == "test":
    top1 = float(Path(ckpt).read_text()) + 0.02
    (version / "curves.json").write_text(json.dumps({f"test/{m}": [[1, top1]] for m in ("top1", "top5", "loss")}))
    sys.exit()
if Path(f"fail-{variant}-{seed}").exists():
    print("error: --model.lr: nothing comes of it.")
    sys.exit(2)
if Path(f"hang-{variant}-{seed}").exists() and not ckpt:
    def stop(signum, frame):
        (checkpoints / "last.ckpt").write_text("half")
        sys.exit(128 + signum)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    Path("hanging").touch()
    time.sleep(60)
    sys.exit(1)
if Path(f"killed-{variant}-{seed}").exists() and (not ckpt or Path(ckpt).name == "last.ckpt"):
    if not ckpt:
        (checkpoints / "last.ckpt").write_text("whole")
        (checkpoints / "last.previous.ckpt").write_text("before")
        os.kill(os.getpid(), signal.SIGKILL)
    print("nothing left to train")
    sys.exit()
(checkpoints / "best.ckpt").write_text(str(top1))
(checkpoints / "last.ckpt").write_text("last")
(version / "curves.json").write_text(json.dumps({"val/top1": [[1, top1 / 2]], "train/top1": [[1, top1 / 3]]}))
summary = {"data": "CIFAR-10", "epochs": 1, "images": 100, "val_images": 40, "test_images": 60, "train_top1": top1 / 3}
summary |= {"val_top1": top1, "test_top1": top1, "test_top5": 0.9, "test_loss": 1.0, "seconds": 61.0, "seed": seed}
summary |= {"command": "python " + " ".join(words), "machine": "a CPU", "versions": {}}
(version / "summary.json").write_text(json.dumps(summary))
"""

Sweep = Callable[..., int]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run ablate.py with the given words in this process, over a fit.py that only pretends; its exit status."""
    fake = tmp_path / "fake_fit.py"
    fake.write_text(FAKE_FIT)
    monkeypatch.setattr(ablate, "FIT", fake)
    monkeypatch.setattr(ablate, "gpus", lambda flags, settings: [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def read(folders: list[Path], tags: list[str]) -> dict[str, Any]:
        curves: dict[str, Any] = {}
        for folder in folders:
            if (folder / "curves.json").exists():
                curves |= json.loads((folder / "curves.json").read_text())
        return {tag: curves[tag] for tag in tags if tag in curves}

    monkeypatch.setattr(ablate, "read_scalars", read)

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as exit_:
            ablate.main([*words])
        return int(exit_.value.code or 0)

    return run


def calls() -> list[dict[str, Any]]:
    """What fit.py was called with since the last time."""
    path = Path("calls.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"results/ablations/{name}/summary.json").read_text())
    return found


def checkpoints() -> set[str]:
    return {str(path.relative_to("logs/ablations")) for path in Path("logs").rglob("*.ckpt")}


def test_a_sweep(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    words = ["--seeds", "2", "--jobs", "2", "--only", "ten_crops", "tanh", "--", "--data.val_size", "40"]
    assert sweep(*words) == 0
    made = calls()
    assert sorted((call["variant"], call["seed"]) for call in made) == [
        (name, seed) for name in ("baseline", "tanh", "ten_crops") for seed in (0, 1)
    ]
    assert {call["threads"] for call in made} == {"3"}
    for call in made:
        assert call["words"][call["words"].index("--data.val_size") + 1] == "40"
        configs = [Path(w).stem for i, w in enumerate(call["words"]) if call["words"][i - 1] == "-c"]
        assert configs == ["baseline", call["variant"]][call["variant"] == "baseline" :]
        assert call["words"][0] == ("test" if call["variant"] == "ten_crops" else "fit")
    run = summary("tanh-seed1")
    assert (run["test_top1"], run["seed"], run["variant"], run["resumed"]) == (pytest.approx(0.41), 1, "tanh", False)
    assert run["command"] == (
        "python scripts/fit.py fit -c configs/ablations/baseline.yaml -c configs/ablations/tanh.yaml "
        "--data.val_size 40 --seed_everything 1"
    )
    assert run["curves"]["val/top1"] == [[1, pytest.approx(0.205)]]
    crops = summary("ten_crops-seed1")  # the baseline's best.ckpt, tested otherwise
    assert crops["test_top1"] == pytest.approx(0.51 + 0.02)
    assert "val_top1" not in crops
    assert not checkpoints()
    table = Path("results/ablations/table.md").read_text()
    assert "| tanh | 3.1: ReLUs train faster than tanh | 2 |" in table
    assert "+2.00 ± 0.00" in table
    assert Path("results/ablations/curves.png").stat().st_size > 1000
    assert Path("results/ablations/figure1.png").stat().st_size > 1000
    capsys.readouterr()

    assert sweep(*words) == 0  # all is there
    assert calls() == []
    assert "6 runs, 6 of them done before" in capsys.readouterr().out
    for path in Path("results/ablations").glob("*.*"):
        path.unlink()
    assert sweep("--table") == 0
    assert Path("results/ablations/table.md").read_text() == table
    assert Path("results/ablations/curves.png").exists()


def test_one_more_variant_or_seed_leaves_the_others_alone(sweep: Sweep) -> None:
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    calls()
    assert checkpoints() == {"baseline/seed0/version_0/checkpoints/best.ckpt"}  # ten_crops may come to want it
    assert sweep("--seeds", "2", "--only", "no_lrn") == 0
    assert [(call["variant"], call["seed"]) for call in calls()] == [("no_lrn", 0), ("baseline", 1), ("no_lrn", 1)]
    assert sweep("--seeds", "1", "--only", "ten_crops") == 0
    assert [call["variant"] for call in calls()] == ["ten_crops"]
    assert checkpoints() == {"baseline/seed1/version_0/checkpoints/best.ckpt"}


def test_a_summary_that_was_deleted_is_made_anew(sweep: Sweep) -> None:
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    calls()
    shutil.rmtree("results/ablations/tanh-seed0")
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    assert [call["variant"] for call in calls()] == ["tanh"]
    assert summary("tanh-seed0")["resumed"] is False


def test_weights_that_are_gone_are_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    shutil.rmtree("logs")
    assert sweep("--seeds", "1", "--only", "ten_crops") == 1
    assert "failed: ten_crops seed 0: the baseline's best.ckpt is not there. Delete" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["config", "flags"])
def test_a_changed_recipe_is_noticed(sweep: Sweep, capsys: pytest.CaptureFixture[str], change: str) -> None:
    Path("mine.yaml").write_text("model: {momentum: 0.8}\n")
    words = ["--seeds", "1", "--only", "tanh", "--baseline", "mine.yaml"]
    assert sweep(*words) == 0
    Path("mine.yaml").write_text("# only a comment\nmodel:\n  momentum: 0.8\n")
    assert sweep(*words) == 0
    assert len(calls()) == 2
    if change == "config":
        Path("mine.yaml").write_text("model: {momentum: 0.7}\n")
    else:
        words += ["--", "--model.momentum=0.7"]
    capsys.readouterr()
    assert sweep(*words) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert complaint.startswith("error: results/ablations/baseline-seed0/summary.json: of another recipe (")
    said = "model.momentum 0.8, now 0.7" if change == "config" else "flags none, now --model.momentum=0.7"
    assert said in complaint
    assert calls() == []
    cut = words.index("--") if "--" in words else len(words)
    assert sweep(*words[:cut], "--redo", *words[cut:]) == 0
    assert len(calls()) == 2
    assert sweep(*words) == 0


def test_a_run_that_fails(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fail-tanh-0").touch()
    words = ["--seeds", "2", "--only", "tanh"]
    assert sweep(*words) == 1
    line = (
        "failed: tanh seed 0: exit status 2 (logs/ablations/tanh/seed0/output.txt): "
        "error: --model.lr: nothing comes of it."
    )
    assert capsys.readouterr().err.splitlines() == [line, "1 of 4 runs failed:", line]
    assert summary("tanh-seed1")
    assert "| tanh | 3.1: ReLUs train faster than tanh | 1 |" in Path("results/ablations/table.md").read_text()
    Path("fail-tanh-0").unlink()
    calls()
    assert sweep(*words) == 0
    assert len(calls()) == 1


def test_without_its_baseline_there_is_nothing_to_test(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fail-baseline-0").touch()
    assert sweep("--seeds", "1", "--only", "ten_crops") == 1
    assert "failed: ten_crops seed 0: the baseline's best.ckpt is not there" in capsys.readouterr().err


def when(condition: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    def wait() -> None:
        end = time.monotonic() + 30
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_gone_on_with(sweep: Sweep, capsys: pytest.CaptureFixture[str], signum: signal.Signals) -> None:
    Path("hang-tanh-0").touch()
    handler = signal.getsignal(signum)
    when(
        lambda: Path("hanging").exists() and Path("results/ablations/baseline-seed0/summary.json").exists(),
        lambda: os.kill(os.getpid(), signum),
    )
    words = ["--seeds", "1", "--jobs", "2", "--only", "tanh", "no_lrn", "ten_crops"]
    assert sweep(*words) == 128 + signum
    assert signal.getsignal(signum) is handler
    assert "baseline" in Path("results/ablations/table.md").read_text()
    captured = capsys.readouterr()
    assert "stopped: tanh seed 0" in captured.out
    assert "the same command goes on with them" in captured.err
    assert "failed" not in captured.err
    assert not Path("results/ablations/tanh-seed0").exists()
    calls()
    assert sweep(*words) == 0
    went_on = next(call["words"] for call in calls() if call["variant"] == "tanh")
    assert went_on[-2:] == ["--ckpt_path", "logs/ablations/tanh/seed0/version_0/checkpoints/last.ckpt"]
    assert summary("tanh-seed0")["resumed"] is True
    assert not checkpoints()


def test_killed_in_its_test(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """last.ckpt is then the end of training, from which fit.py does nothing: the last epoch is trained again."""
    Path("killed-tanh-0").touch()
    words = ["--seeds", "1", "--only", "tanh"]
    assert sweep(*words) == 1
    assert "exit status -9" in capsys.readouterr().err
    calls()
    assert sweep(*words) == 0
    paths = [Path(call["words"][-1]).name for call in calls()]
    assert paths == ["last.ckpt", "last.previous.ckpt"]


def test_a_sweep_that_was_killed_collects_what_had_finished(sweep: Sweep) -> None:
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    shutil.rmtree("results/ablations/tanh-seed0")
    Path("logs/ablations/tanh/seed0/collected").unlink()
    calls()
    assert sweep("--seeds", "1", "--only", "tanh") == 0
    assert calls() == []
    assert summary("tanh-seed0")["variant"] == "tanh"


def test_two_sweeps_at_once_are_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    with ablate.locked(Path("logs/ablations")):
        assert sweep("--seeds", "1", "--only", "tanh") == 2
    assert "another ablate.py" in capsys.readouterr().err
    assert calls() == []


def test_each_gpu_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    devices = ablate.gpus([], {})
    assert [ablate.environment(slot, 3, devices)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "5", "4"]
    assert ablate.gpus(["--trainer.accelerator=cpu"], {}) == []
    assert ablate.gpus(["--trainer.accelerator", "cpu"], {}) == []
    assert ablate.gpus([], {"trainer.accelerator": "cpu"}) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ablate.gpus([], {}) == []


def test_threads_that_the_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert ablate.environment(0, 2, [])["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--only", "no_lnr"], "--only: there is no no_lnr. Choose of baseline, figure1_relu,"),
        (["--seeds", "0"], "--seeds: 0 is below 1"),
        (["--jobs", "0"], "--jobs: 0 is below 1"),
        (["--baseline", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--", "--seed_everything=3"], "--seed_everything=3: ablate.py sets this itself"),
        (["--", "--trainer.logger", "false"], "--trainer.logger: ablate.py sets this itself"),
        (["--", "-c", "x.yaml"], "-c: ablate.py sets this itself"),
        (["--sees", "2"], "--sees"),
        (["--only", "list.yaml"], "list.yaml: holds a list, not settings"),
        (["--only", "broken.yaml"], "broken.yaml: no YAML"),
        (["--only", "no_lrn", "other/no_lrn.yaml"], "has the name of another config"),
        (["--out", "a-file"], "a-file"),
    ],
)
def test_refusals_take_one_line(sweep: Sweep, capsys: pytest.CaptureFixture[str], words: list[str], wrong: str) -> None:
    Path("list.yaml").write_text("- 1\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("a-file").touch()
    Path("other").mkdir()
    Path("other/no_lrn.yaml").write_text("model: {lrn: false}\n")
    assert sweep(*words) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert wrong in complaint
    assert calls() == []


def test_a_damaged_summary_is_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("results/ablations/tanh-seed0")
    folder.mkdir(parents=True)
    for text, wrong in (("{", "can't be read"), ("{}", "has no variant")):
        (folder / "summary.json").write_text(text)
        for words in (["--table"], ["--seeds", "1", "--only", "tanh"]):
            assert sweep(*words) == 2
            complaint = capsys.readouterr().err
            assert complaint.count("\n") == 1
            assert f"tanh-seed0/summary.json: {wrong}" in complaint


def test_nothing_there_is_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--table") == 1
    assert "no runs under results/ablations yet" in capsys.readouterr().err


# fit.py itself, with the small network, a quarter of a second a step, and shapes10.
REAL_FIT = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from datamodules import shapes10
from lightning_modules import AlexNetClassifier, classifier
from helpers.small import SmallAlexNet
class Small(SmallAlexNet):
    def __init__(self, *args, activation="relu", **kwargs):
        super().__init__(*args, **kwargs)
        self.act = torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()
classifier.AlexNet = Small
shapes10._DEFAULT_PER_CLASS = {{"train": 16, "test": 6}}
training_step = AlexNetClassifier.training_step
def slow(self, batch, batch_idx):
    time.sleep(0.25)
    return training_step(self, batch, batch_idx)
AlexNetClassifier.training_step = slow
from fit import main
main()
"""
TINY = ["--data.source=shapes10", "--data.subset_size=100", "--data.val_size=40", "--data.batch_size=32"]
TINY += ["--model.image_size=24", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"]


@pytest.mark.slow
def test_real_runs_stopped_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fit.py in processes of its own: a sweep that was stopped keeps what one that was not does, to the last digit."""
    script = tmp_path / "real_fit.py"
    script.write_text(REAL_FIT)
    monkeypatch.setattr(ablate, "FIT", script)
    Path("base.yaml").write_text((ABLATIONS / "baseline.yaml").read_text().split("\nmodel:")[0])
    words = ["--seeds", "1", "--jobs", "2", "--only", "tanh", "ten_crops", "--baseline", "base.yaml"]

    def sweep(out: str) -> int:
        with pytest.raises(SystemExit) as exit_:
            ablate.main([*words, "--out", out, "--", *TINY])
        return int(exit_.value.code or 0)

    assert sweep("whole") == 0
    tanh = Path("logs/stopped/tanh/seed0-shapes10/version_0/checkpoints/last.ckpt")
    when(tanh.exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep("stopped") == 143
    assert sweep("stopped") == 0
    for name in ("baseline-seed0", "tanh-seed0", "ten_crops-seed0"):
        whole, stopped = (json.loads(Path(out, name, "summary.json").read_text()) for out in ("whole", "stopped"))
        for key in ("train_top1", "val_top1", "test_top1", "test_top5", "test_loss"):
            if key != "train_top1":  # of the epoch's rest where it went on within one
                assert whole.get(key) == stopped.get(key), (name, key)
        for tag in ("val/top1", "val/loss"):
            assert whole["curves"].get(tag) == stopped["curves"].get(tag), (name, tag)
    whole = json.loads(Path("whole/tanh-seed0/summary.json").read_text())
    assert [epoch for epoch, _ in whole["curves"]["train/top1"]] == [1, 2, 3]
    assert whole["data"].startswith("shapes10")
    assert json.loads(Path("stopped/tanh-seed0/summary.json").read_text())["resumed"] is True
    ten = json.loads(Path("whole/ten_crops-seed0/summary.json").read_text())
    assert math.isfinite(ten["test_loss"])
    assert not list(Path("logs").rglob("*.ckpt"))
