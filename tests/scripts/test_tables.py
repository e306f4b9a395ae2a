"""The README's tables are those of the figures under results/, and come out the same whoever counts."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
from helpers import ROOT
from helpers.ablation import a_run, complaint, status
from running.markdown import between
from tables import ORIGIN, data_name, device_name, recipe_name, without_seed

README = "# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nThe end.\n"


def a_summary(seed: int, top1: float, command: str = "python scripts/fit.py fit", **more: Any) -> dict[str, Any]:
    command = f"{command} --seed_everything {seed}" if seed else command
    found = {"data": "CIFAR-10 (JPEG copy in class folders)", "epochs": 10, "images": 5000, "command": command}
    found |= {"machine": "AMD EPYC, 2 cores, 1 x cpu", "test_top1": top1, "test_top5": 0.9, "seconds": 600 + seed}
    return {**found, "seed": seed, **more}


def write(name: str, summary: dict[str, Any]) -> None:
    path = Path("results", name, "summary.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary), encoding="utf-8")


def run(*words: str) -> int:
    return status(tables.main, "--readme", "README.md", "--results", "results", *words)


def test_the_project_s_readme_says_what_was_measured() -> None:
    tables.main(["--check"])


def test_a_recipe_s_runs_make_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    top1 = [0.50, 0.52, 0.507]
    for seed, value in enumerate(top1):
        write(f"default-seed{seed}", a_summary(seed, value))
    quick = "python scripts/fit.py fit -c configs/quickstart.yaml"
    write("quick", a_summary(0, 0.6, quick, data="shapes10 (drawn by this project; not CIFAR-10)", images=2000))
    write("more", a_summary(1, 0.8, "python scripts/fit.py fit -c configs/full.yaml --model.lr 0.1", images=45000))
    write("ablations/tanh-seed0", a_summary(0, 0.1))  # of another table
    Path("README.md").write_text(README, encoding="utf-8")
    assert run("--check") == 1
    assert "README.md" in capsys.readouterr().err
    assert Path("README.md").read_text(encoding="utf-8") == README
    assert run() == 0
    text = Path("README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n<!-- results -->\n| recipe | data |")
    assert text.endswith("|\n<!-- /results -->\n\nThe end.\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == [*ORIGIN]
    mean, std = 100 * statistics.fmean(top1), 100 * statistics.stdev(top1)
    assert rows[3][:5] == ["`configs/default.yaml`", "CIFAR-10, JPEG copy", "5,000", "10", "3"]
    assert rows[3][5:7] == [f"{mean:.2f} ± {std:.2f} %", "90.00 ± 0.00 %"]
    assert rows[3][7:] == ["10 min 01 s", "2 cores", "`python scripts/fit.py fit`"]
    assert [row[0] for row in rows[4:]] == ["`configs/full.yaml`, `--model.lr 0.1`", "`configs/quickstart.yaml`"]
    assert rows[5][1] == "shapes10, not CIFAR-10"
    assert rows[5][5] == "60.00 %"
    assert {len(row) for row in rows} == {10}
    assert run("--check") == 0
    assert run() == 0
    assert Path("README.md").read_text(encoding="utf-8") == text


def test_power_is_counted_from_the_spread_of_seeds() -> None:
    """Five seeds and two of a variant; the standard error from numpy, of differences of independent runs."""
    top1 = [0.60, 0.61, 0.602, 0.597, 0.608]
    for seed, value in enumerate(top1):
        run_ = a_run("baseline", seed, value, [0.5, 0.7], seconds=1200 + 2 * seed, jobs=2)
        if seed == 4:
            run_ |= {"resumed": 1, "seconds": 1e6}  # its time says nothing
        write(f"ablations/baseline-seed{seed}", run_)
    write("ablations/tanh-seed0", a_run("tanh", 0, 0.1))  # does not count
    write("ablations/no_lrn-seed0", a_run("no_lrn", 0, 0.5, seconds=1204, jobs=2))
    write("ablations/no_lrn-seed1", a_run("no_lrn", 1, 0.5077, seconds=60, machine="Xeon, 8 cores, 1 x GPU"))
    write("quick_baseline/baseline-seed0", a_run("baseline", 0, 0.5))  # one seed has no spread
    Path("README.md").write_text(README, encoding="utf-8")
    Path("docs").mkdir()
    Path("docs/power.md").write_text("<!-- power -->\n<!-- /power -->\n", encoding="utf-8")
    write("default", a_summary(0, 0.5))
    assert run() == 0
    *_, gpus, row, _ = Path("docs/power.md").read_text(encoding="utf-8").splitlines()
    spread = float(np.sqrt((4 * np.var(top1, ddof=1) + np.var([0.5, 0.5077], ddof=1)) / 5))
    t = {11: 2.228, 12: 2.201}  # Student's, of 10 and 11 degrees of freedom
    fewer, shown = (100 * t[n] * np.sqrt(spread**2 / n + spread**2 / n) for n in t)
    assert fewer > 0.5 >= shown
    seeds = 12
    trained = [p for p in (ROOT / "configs/ablations").iterdir() if p.stem != "ten_crops"]
    hours = len(trained) * seeds * 602 / 3600
    size = "| 5,000 images, 2 epochs, 10,000 to test | 5 | 70.00 ± 0.00 % | 60.34 ± 0.55 % |"
    size += f" {100 * spread:.2f} points | {seeds} | {shown:.2f} points |"
    assert row == f"{size} a CPU | 10 min 02 s | {hours:.1f} |"
    assert gpus == f"{size} Xeon, 8 cores, 1 x GPU | 1 min 00 s | {len(trained) * seeds / 60:.1f} |"
    Path("docs/power.md").write_text("<!-- power -->\n<!-- /power -->\n", encoding="utf-8")
    assert run("--check") == 1


def test_the_ablations_table_comes_where_its_markers_are(capsys: pytest.CaptureFixture[str]) -> None:
    write("default", a_summary(0, 0.5))
    Path("README.md").write_text(f"{README}<!-- ablations -->\n<!-- /ablations -->\n", encoding="utf-8")
    assert run() == 2
    assert "error: results/ablations: no runs." in capsys.readouterr().err
    for seed in range(2):
        write(f"ablations/baseline-seed{seed}", a_run("baseline", seed, 0.5))
        write(f"ablations/no_lrn-seed{seed}", a_run("no_lrn", seed, 0.4))
    assert run() == 0
    assert "| no_lrn | 3.3: LRN helps | 2 |" in Path("README.md").read_text(encoding="utf-8")
    assert run("--check") == 0
    stray = a_run("tanh", 0)
    stray["settings"]["model.lr"] = 9
    write("ablations/tanh-seed0", stray)
    assert run() == 2
    assert "tanh seed 0 has another recipe than baseline seed 0: model.lr 9" in capsys.readouterr().err


def test_the_benchmark_s_table_comes_where_its_markers_are(capsys: pytest.CaptureFixture[str]) -> None:
    write("default", a_summary(0, 0.5))
    Path("README.md").write_text(f"{README}<!-- benchmark -->\n<!-- /benchmark -->\n", encoding="utf-8")
    assert run() == 2
    assert "error: results/benchmark.json: No such file" in capsys.readouterr().err
    machine = {"processor": "EPYC", "cores": 2, "versions": {"torch": "2.14.1"}}
    rows = [
        {"what": "step", "ours": 3.7999, "unit": "s", "peer": 8.98, "against": "plain", "ratio": 2.363},
        {"what": "  memory", "ours": 3081.0, "unit": "MB", "peer": 3642.0, "against": "plain", "ratio": 1.18},
        {"what": "alone", "ours": 1.0, "unit": "s", "peer": None, "against": "", "ratio": None},
        {"what": "input", "ours": 55920.3, "unit": "images/s", "peer": 2534.4, "against": "theirs", "ratio": 22.06},
    ]
    figures = Path("results/benchmark.json")
    figures.write_text(json.dumps({"machine": machine, "quick": True, "rows": rows}), encoding="utf-8")
    assert run() == 2
    assert "error: results/benchmark.json: of toy sizes" in capsys.readouterr().err
    figures.write_text(json.dumps({"machine": machine, "quick": False, "rows": rows}), encoding="utf-8")
    assert run("--check") == 1
    assert run() == 0
    written = Path("README.md").read_text(encoding="utf-8").partition("<!-- benchmark -->\n")[2]
    assert written.splitlines()[2:6] == [
        "| step | 3.80 s | 8.98 s, plain | 2.4 |",
        "| input | 55,900 images/s | 2,530 images/s, theirs | 22 |",
        "",
        "Medians of turns on EPYC, 2 cores, torch 2.14.1. Where the ratio is above 1, ours is faster, or smaller.",
    ]
    assert run("--check") == 0


@pytest.mark.parametrize(
    ("command", "seedless", "name"),
    [
        ("fit.py fit --seed_everything 3", "fit.py fit", "`configs/default.yaml`"),
        ("fit.py --seed_everything=3", "fit.py", "`configs/default.yaml`"),
        (
            "fit.py fit -c a.yaml --seed_everything 3 -c b.yaml --model.lr 1",
            "fit.py fit -c a.yaml -c b.yaml --model.lr 1",
            "`a.yaml` + `b.yaml`, `--model.lr 1`",
        ),
        ("fit.py --config=a.yaml", "fit.py --config=a.yaml", "`a.yaml`"),
    ],
)
def test_a_command_names_its_recipe(command: str, seedless: str, name: str) -> None:
    assert without_seed(f"python scripts/{command}") == f"python scripts/{seedless}"
    assert recipe_name(f"python scripts/{seedless}") == name


def test_what_computed_in_short() -> None:
    assert device_name("AMD EPYC, 2 cores, 1 x cpu") == "2 cores"
    assert device_name("Intel(R) Xeon(R), 16 cores, 1 x NVIDIA H100") == "NVIDIA H100"
    assert device_name("Intel(R) Xeon(R), 16 cores, 4 x NVIDIA H100") == "4 x NVIDIA H100"
    assert device_name("an abacus") == "an abacus"


def test_data_in_short() -> None:
    assert data_name("CIFAR-10 (official files)") == "CIFAR-10"
    assert data_name("CIFAR-10 (PNG copy in class folders)") == "CIFAR-10, PNG copy"


@pytest.mark.parametrize("text", ["none", "<!-- results -->", "<!-- /results --><!-- results -->", README + README])
def test_markers_are_needed_once(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="needs one <!-- results -->"):
        between(text, "results", "")
    write("default", a_summary(0, 0.5))
    Path("README.md").write_text(text, encoding="utf-8")
    assert run() == 2
    assert complaint(capsys).startswith("error: README.md: needs one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results/b/summary.json: can't be read"),
        (json.dumps({**a_summary(1, 0.5), "test_top1": None}), "results/b/summary.json: has no test_top1"),
        (
            json.dumps(a_summary(0, 0.6)),
            "results/default/summary.json: of the same recipe and seed as results/b/summary.json",
        ),
        ("", "README.md: No such file"),
    ],
)
def test_figures_that_can_not_be_used(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("default", a_summary(0, 0.5))
    if text:
        Path("README.md").write_text(README, encoding="utf-8")
        write("b", {})
        Path("results/b/summary.json").write_text(text, encoding="utf-8")
    assert run() == 2
    assert complaint(capsys).startswith(f"error: {message}")
