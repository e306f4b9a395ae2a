"""ablate.py from the outside: what is run, what is kept, how a sweep is stopped and goes on, what is refused."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ablate
import pytest
from ablation import plan
from ablation.sweep import lock
from helpers import slow_fit
from helpers.ablation import ABLATIONS, FAKE_FIT, SLOW_FIT, TINY, calls, checkpoints, complaint, status, summary, when

ONE = ["--seeds", "1", "--only", "tanh"]
Sweep = Callable[..., int]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run ablate.py with the given words in this process, over a fit.py that only pretends; its exit status."""
    monkeypatch.setattr(plan, "FIT", FAKE_FIT)
    monkeypatch.setattr(ablate, "local_gpus", lambda flags, settings: [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return partial(status, ablate.main)


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
    assert (run["test_top1"], run["seed"], run["variant"], run["resumed"]) == (pytest.approx(0.41), 1, "tanh", 0)
    assert run["command"] == (
        "python scripts/fit.py fit -c configs/ablations/baseline.yaml -c configs/ablations/tanh.yaml "
        "--data.val_size 40 --seed_everything 1"
    )
    assert run["history"] == [{"epoch": 1, "train_top1": pytest.approx(0.41 / 3), "val_top1": pytest.approx(0.205)}]
    crops = summary("ten_crops-seed1")  # the baseline's best.ckpt, tested otherwise
    assert crops["test_top1"] == pytest.approx(0.51 + 0.02)
    assert "val_top1" not in crops
    assert not checkpoints()
    table = Path("results/ablations/table.md").read_text(encoding="utf-8")
    assert "| tanh | 3.1, Fig. 1: ReLUs train faster than tanh | 2 |" in table
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
    assert Path("results/ablations/table.md").read_text(encoding="utf-8") == table
    assert Path("results/ablations/curves.png").exists()


def test_one_more_variant_or_seed_leaves_the_others_alone(sweep: Sweep) -> None:
    assert sweep(*ONE) == 0
    calls()
    assert checkpoints() == {"baseline/seed0/version_0/checkpoints/best.ckpt"}  # ten_crops may come to want it
    assert sweep("--seeds", "2", "--only", "no_lrn") == 0
    assert [(call["variant"], call["seed"]) for call in calls()] == [("no_lrn", 0), ("baseline", 1), ("no_lrn", 1)]
    assert sweep("--seeds", "1", "--only", "ten_crops") == 0
    assert [call["variant"] for call in calls()] == ["ten_crops"]
    assert checkpoints() == {"baseline/seed1/version_0/checkpoints/best.ckpt"}


def test_a_summary_that_was_deleted_is_made_anew(sweep: Sweep) -> None:
    assert sweep(*ONE) == 0
    calls()
    shutil.rmtree("results/ablations/tanh-seed0")
    assert sweep(*ONE) == 0
    assert [call["variant"] for call in calls()] == ["tanh"]
    assert summary("tanh-seed0")["resumed"] == 0


def test_weights_that_are_gone_are_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*ONE) == 0
    shutil.rmtree("logs")
    assert sweep("--seeds", "1", "--only", "ten_crops") == 1
    assert "failed: ten_crops seed 0: the baseline's best.ckpt is not there. Delete" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["config", "flags"])
def test_a_changed_recipe_is_noticed(sweep: Sweep, capsys: pytest.CaptureFixture[str], change: str) -> None:
    Path("mine.yaml").write_text("model: {momentum: 0.8}\n", encoding="utf-8")
    words = [*ONE, "-c", "mine.yaml"]
    assert sweep(*words) == 0
    Path("mine.yaml").write_text("# only a comment\nmodel:\n  momentum: 0.8\n", encoding="utf-8")
    assert sweep(*words) == 0
    assert len(calls()) == 2
    if change == "config":
        Path("mine.yaml").write_text("model: {momentum: 0.7}\n", encoding="utf-8")
    else:
        words += ["--", "--model.momentum=0.7"]
    capsys.readouterr()
    assert sweep(*words) == 2
    found = complaint(capsys)
    assert found.startswith("error: results/mine/baseline-seed0/summary.json: another recipe (")
    said = "model.momentum 0.8, not 0.7" if change == "config" else "flags none, not --model.momentum=0.7"
    assert said in found
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
    assert "| tanh | 3.1, Fig. 1: ReLUs train faster than tanh | 1 |" in Path("results/ablations/table.md").read_text(
        encoding="utf-8"
    )
    Path("fail-tanh-0").unlink()
    calls()
    assert sweep(*words) == 0
    assert len(calls()) == 1


def test_without_its_baseline_there_is_nothing_to_test(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fail-baseline-0").touch()
    assert sweep("--seeds", "1", "--only", "ten_crops") == 1
    assert "failed: ten_crops seed 0: the baseline's best.ckpt is not there" in capsys.readouterr().err


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
    assert "baseline" in Path("results/ablations/table.md").read_text(encoding="utf-8")
    captured = capsys.readouterr()
    assert "stopped: tanh seed 0" in captured.out
    assert "the same command goes on with them" in captured.err
    assert "failed" not in captured.err
    assert not Path("results/ablations/tanh-seed0").exists()
    calls()
    assert sweep(*words) == 0
    went_on = next(call["words"] for call in calls() if call["variant"] == "tanh")
    last = Path("logs/ablations/tanh/seed0/version_0/checkpoints/last.ckpt").resolve()
    assert went_on[-2:] == ["--ckpt_path", str(last)]
    assert summary("tanh-seed0")["resumed"] == 1
    assert not checkpoints()


def test_killed_in_its_test(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """last.ckpt is then the end of training, from which fit.py goes on to its test."""
    Path("killed-tanh-0").touch()
    assert sweep(*ONE) == 1
    assert "exit status -9" in capsys.readouterr().err
    calls()
    assert sweep(*ONE) == 0
    assert "started: tanh seed 0, going on from logs/ablations/tanh/seed0/version_0" in capsys.readouterr().out
    assert [Path(call["words"][-1]).name for call in calls()] == ["last.ckpt"]


def test_a_sweep_that_was_killed_collects_what_had_finished(sweep: Sweep) -> None:
    assert sweep(*ONE) == 0
    shutil.rmtree("results/ablations/tanh-seed0")
    Path("logs/ablations/tanh/seed0/collected").unlink()
    calls()
    assert sweep(*ONE) == 0
    assert calls() == []
    assert summary("tanh-seed0")["variant"] == "tanh"


def test_two_sweeps_at_once_are_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    held = lock(Path("logs/ablations/.lock"))
    assert held is not None
    with held:
        assert sweep(*ONE) == 2
    assert "another ablate.py" in capsys.readouterr().err
    assert calls() == []


def test_a_dry_run_lists_commands_and_starts_nothing(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*ONE, "--dry-run") == 0
    first, *listed = capsys.readouterr().out.splitlines()
    assert first == "2 runs, 0 of them done before, 2 to do"
    assert [words.rsplit("/", 1)[1] for words in listed] == [
        "baseline.yaml --seed_everything 0",
        "tanh.yaml --seed_everything 0",
    ]
    assert all(words.startswith("python scripts/fit.py fit -c configs/ablations/baseline.yaml") for words in listed)
    assert not list(Path().iterdir())


def test_a_run_on_other_data_than_what_is_kept_is_said_as_it_ends(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--seeds", "1", "--only", "baseline") == 0
    kept = summary("baseline-seed0")
    path = Path("results/ablations/baseline-seed0/summary.json")
    path.write_text(json.dumps(kept | {"data": "CIFAR-10 (JPEG copy in class folders)"}), encoding="utf-8")
    assert sweep("--seeds", "1", "--only", "tanh") == 1
    said = capsys.readouterr().err
    assert "tanh seed 0 has another recipe than baseline seed 0: data CIFAR-10, not CIFAR-10 (JPEG copy" in said
    assert summary("tanh-seed0")["data"] == "CIFAR-10"  # nothing is lost


def test_a_variant_by_path_has_the_baseline_s_weights(sweep: Sweep) -> None:
    Path("mine.yaml").write_text("data:\n  test_crops: 10\n", encoding="utf-8")
    assert sweep("--seeds", "1", "--only", "mine.yaml") == 0
    assert summary("mine-seed0")["test_top1"] == pytest.approx(0.5 + 0.02)


def test_what_the_rest_will_cost_is_said(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run says that it took 61 s, of "a CPU"."""
    monkeypatch.setattr(plan, "computer", lambda: "a CPU")
    assert sweep("--seeds", "2", "--jobs", "2", "--only", "tanh") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "4 runs, 0 of them done before, 4 to do"
    assert [line for line in said if "to train" in line] == [
        "3 runs to train, about 1 min 01 s each: 2 min 02 s in all, 2 at a time",
        "2 runs to train, about 1 min 01 s each: 1 min 01 s in all, 2 at a time",
        "1 run to train, about 1 min 01 s each: 1 min 01 s in all, 2 at a time",
    ]
    assert sweep("--seeds", "4", "--only", "tanh", "ten_crops", "--dry-run") == 0  # before anything is started
    assert capsys.readouterr().out.splitlines()[:2] == [
        "12 runs, 4 of them done before, 8 to do",
        "4 runs to train, about 1 min 01 s each: 4 min 04 s in all, 1 at a time",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "local_gpus", lambda flags, settings: ["0", "1", "2", "3"])
        assert sweep("--seeds", "4", "--only", "tanh", "--dry-run") == 0
        assert "about 1 min 01 s each: 1 min 01 s in all, 4 at a time\n" in capsys.readouterr().out
    assert sweep("--seeds", "4", "--only", "tanh", "--dry-run", "--scheduler", "tcp://nowhere:1") == 0
    assert "to train" not in capsys.readouterr().out  # only its workers know how many at a time
    monkeypatch.setattr(plan, "computer", lambda: "another CPU")  # the times of one say nothing of the other
    assert sweep("--seeds", "4", "--only", "tanh", "--dry-run") == 0
    assert "to train" not in capsys.readouterr().out


def test_the_table_tells_how_long_a_run_is_at_work() -> None:
    jobs = plan.plan(plan.choose(["tanh"], ABLATIONS / "baseline.yaml"), 1, [], Path("out"), Path("logs"))
    Path("logs").mkdir()
    engine: Any = SimpleNamespace(room=lambda: 1)
    sweep = ablate.Sweep(engine, jobs, jobs)
    sweep.began[str(jobs[0])] = time.monotonic() - 75
    assert [list(column.cells) for column in sweep.table().columns] == [["baseline", "tanh"], ["1 min 15 s", ""]]


def test_a_terminal_shows_a_table_of_what_is_done(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fail-tanh-0").touch()
    tables: list[list[list[str]]] = []
    table_of = ablate.Sweep.table

    def keep(self: ablate.Sweep) -> Any:
        table = table_of(self)
        tables.append([list(column.cells) for column in table.columns])
        return table

    monkeypatch.setattr(ablate.Sweep, "table", keep)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes the screen for a terminal then
    assert sweep("--seeds", "2", "--only", "tanh") == 1
    names, seed0, seed1 = tables[-1]
    assert names == ["baseline", "tanh"]
    assert (seed0, seed1) == (["50.00 %", "failed"], ["51.00 %", "41.00 %"])


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--only", "no_lnr"], "--only: no_lnr, expected baseline, half_kernels,"),
        (["--seeds", "0"], "--seeds: 0, expected 1 or more. See"),
        (["--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"], "--jobs: 2, expected none beside --scheduler"),
        (["--jobs", "0"], "--jobs: 0, expected 1 or more. See"),
        (["--baseline", "nowhere.yaml"], "nowhere.yaml: No such file or directory, expected a config."),
        (["--", "--seed_everything=3"], "--seed_everything=3: set by ablate.py, expected a setting"),
        (["--", "--trainer.logger", "false"], "--trainer.logger: set by ablate.py, expected a setting"),
        (["--", "-c", "x.yaml"], "-c: set by ablate.py, expected a setting"),
        (["--sees", "2"], "--sees"),
        (["--only", "list.yaml"], "list.yaml: a list, expected settings"),
        (["--only", "broken.yaml"], "expected YAML. Mend it."),
        (["--only", "no_lrn", "other/no_lrn.yaml"], "no_lrn.yaml, expected one config of each name. Rename it."),
        (["--out", "a-file"], "a-file"),
    ],
)
def test_refusals_take_one_line(sweep: Sweep, capsys: pytest.CaptureFixture[str], words: list[str], wrong: str) -> None:
    Path("list.yaml").write_text("- 1\n", encoding="utf-8")
    Path("broken.yaml").write_text("a: [\n", encoding="utf-8")
    Path("a-file").touch()
    Path("other").mkdir()
    Path("other/no_lrn.yaml").write_text("model: {lrn: false}\n", encoding="utf-8")
    assert sweep(*words) == 2
    assert wrong in complaint(capsys)
    assert calls() == []


def test_a_damaged_summary_is_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("results/ablations/tanh-seed0")
    folder.mkdir(parents=True)
    for text, wrong in (("{", "can't be read"), ("{}", "has no variant")):
        (folder / "summary.json").write_text(text)
        for words in (["--table"], ONE):
            assert sweep(*words) == 2
            assert f"tanh-seed0/summary.json: {wrong}" in complaint(capsys)


def test_nothing_there_is_said(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--table") == 1
    assert "no runs under results/ablations yet" in capsys.readouterr().err


@pytest.mark.slow
def test_real_runs_stopped_and_gone_on_with(monkeypatch: pytest.MonkeyPatch, fit: Callable[..., int]) -> None:
    """fit.py in processes of its own, to the last digit what its command gives that nobody stops."""
    monkeypatch.setattr(plan, "FIT", SLOW_FIT)
    trainer, *_ = (ABLATIONS / "baseline.yaml").read_text(encoding="utf-8").split("\nmodel:")
    Path("base.yaml").write_text(f"{trainer}\nlooks: false\n", encoding="utf-8")
    words = ["--seeds", "1", "--only", "ten_crops", "-c", "base.yaml", "--out", "results/ablations", "--", *TINY]
    last = Path("logs/ablations/baseline/seed0-shapes10/version_0/checkpoints/last.ckpt")
    when(last.exists, lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGTERM)))  # within the second epoch
    assert status(ablate.main, *words) == 143
    assert status(ablate.main, *words) == 0
    assert not list(Path("logs").rglob("*.ckpt"))
    found, crops = summary("baseline-seed0"), summary("ten_crops-seed0")
    assert found["data"].startswith("shapes10")
    assert [entry["epoch"] for entry in found["history"]] == [1, 2, 3]
    assert (found["resumed"], crops["resumed"]) == (1, 0)
    assert math.isfinite(crops["test_loss"])

    slow_fit.shrink(monkeypatch.setattr)
    command = shlex.split(found["command"])
    assert command[:3] == ["python", "scripts/fit.py", "fit"]
    assert fit(*command[2:], small=False) == 0
    whole = json.loads(next(Path("logs").glob("alexnet*/version_0/summary.json")).read_text(encoding="utf-8"))
    for key in ("val_top1", "test_top1", "test_top5", "test_loss"):
        assert whole[key] == found[key], key
    for measure in ("val_top1", "val_loss"):
        assert [entry[measure] for entry in whole["history"]] == [entry[measure] for entry in found["history"]]
