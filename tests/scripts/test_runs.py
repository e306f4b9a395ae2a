"""Runs side by side: what differs, in which order, and what can't be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from helpers.ablation import complaint, status
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: str, top1: float, settings: dict[str, Any] | None, **more: Any) -> None:
    history = [{"epoch": 1, "val_top1": top1 / 2}, {"epoch": 2, "val_top1": top1}]
    figures = {"data": "CIFAR-10", "images": 5000, "epochs": 2, "seed": 0, "seconds": 61, "history": history}
    Path(folder).mkdir(parents=True)
    Path(folder, "summary.json").write_text(json.dumps(figures | {"val_top1": top1} | more), encoding="utf-8")
    if settings is not None:
        Path(folder, "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def three_runs() -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "/here", "name": "a"}}
    settings = {"model": {"lr": 0.01, "lrn": True}, "data": {"root": "/a"}, "trainer": {"logger": logger}}
    write("logs/a", 0.5, settings, test_top1=0.49)
    write("logs/deep/[red]", 0.75, settings | {"model": {"lr": 0.02, "lrn": True}, "data": {"root": "/b"}}, seed=3)
    write("logs/z", 0.25, None)
    write("logs/zz", 0, None, val_top1=None)  # a run that validated on nothing


def test_the_best_comes_first_with_what_differs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    three_runs()
    assert status(runs.main, "--csv", "runs.csv") == 0
    rows = list(csv.DictReader(Path("runs.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["run"] for row in rows] == ["logs/deep/[red]", "logs/a", "logs/z", "logs/zz"]
    assert list(rows[0]) == ["run", *runs.FIGURES, "model.lr", "seed_everything"]  # lrn is the same, root a place
    assert [row["model.lr"] for row in rows] == ["0.02", "0.01", "", ""]
    assert [row["seed_everything"] for row in rows] == ["3", "0", "0", "0"]
    assert [row["val_top1"] for row in rows] == ["0.75", "0.5", "0.25", ""]
    assert [row["test_top1"] for row in rows] == ["", "0.49", "", ""]
    lines = [line for line in capsys.readouterr().out.splitlines() if "logs/" in line]
    assert [cell.strip() for cell in lines[0].strip("│").split("│")] == [
        "logs/deep/[red]", "lr=0.02 seed_everything=3", "5,000", "2", "1 min 01 s", "75.00 %", "-",
    ]  # fmt: skip
    assert "lr=0.01 seed_everything=0" in lines[1]


def test_a_line_for_each_run_that_kept_its_epochs() -> None:
    three_runs()
    write("logs/none", 0.1, None, history=[])
    (axes,) = runs.curves_figure(runs.read_runs([Path("logs")])).axes
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert found["logs/a"] == [[1, 0.25], [2, 0.5]]
    assert list(found) == ["logs/deep/[red]", "logs/a", "logs/z", "logs/zz"]
    assert status(runs.main, "--curves", "curves.png") == 0
    assert Image.open("curves.png").info["Software"] == "runs.py"
    assert status(runs.main, "--curves", "curves.png") == 0  # its own is written anew


def test_a_run_that_only_tested_is_listed_without_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"data": "CIFAR-10", "epochs": 2, "seed": 0, "seconds": 4, "test_top1": 0.5}  # as fit.py test writes it
    Path("logs/tested").mkdir(parents=True)
    Path("logs/tested/summary.json").write_text(json.dumps(figures), encoding="utf-8")
    assert status(runs.main, "--csv", "runs.csv") == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if "logs/tested" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["logs/tested", "", "-", "2", "4 s", "-", "50.00 %"]
    assert not err
    assert status(runs.main, "--csv", "runs.csv") == 0  # its own is written anew


@pytest.mark.parametrize(("name", "text"), [("summary.json", "{"), ("config.yaml", "a: [")])
def test_what_can_not_be_read_is_told_of_and_left_out(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    three_runs()
    Path("logs/a", name).write_text(text, encoding="utf-8")
    assert status(runs.main) == 0
    out, err = capsys.readouterr()
    assert "logs/a" not in out
    assert "logs/z" in out
    (line,) = err.splitlines()
    assert line.startswith(f"left out: logs/a/{name}: can't be read")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no summary.json below"),
        (["logs", "--csv", "mine.csv"], "--csv: mine.csv is there and not this script's own"),
        (["logs", "--curves", "mine.png"], "--curves: mine.png is there and not this script's own"),
        (["logs", "--curves", "mine.csv"], "--curves: mine.csv, expected a file that ends in .png"),
        (["logs", "--csv", "empty"], "--csv: empty, expected a file that ends in .csv"),
        (["logs", "--csv", "nowhere/a.csv"], "--csv: nowhere/a.csv, expected a file in a folder that is there"),
    ],
)
def test_bad_input_is_refused_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    three_runs()
    Path("empty").mkdir()
    Path("mine.csv").write_text("epoch,run,loss\n1,a,0.5\n", encoding="utf-8")
    Figure().savefig("mine.png")
    before = [Path(name).read_bytes() for name in ("mine.csv", "mine.png")]
    assert status(runs.main, *words) == 2
    assert complaint(capsys).startswith(f"error: {message}")
    assert [Path(name).read_bytes() for name in ("mine.csv", "mine.png")] == before
