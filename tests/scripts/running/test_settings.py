"""What a run that goes on takes from the one before, and where its loggers and files are."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import wandb_runs
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from helpers.small_net import png

from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
LOGS = Path("logs/alexnet-shapes10")
pytestmark = pytest.mark.usefixtures("small_net")


@pytest.fixture
def stopped(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A run that a signal stopped in its second step."""

    def run(*words: str) -> None:
        with monkeypatch.context() as patch:
            step = AlexNetClassifier.training_step

            def stopping(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
                if batch_idx == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step(self, batch, batch_idx)

            patch.setattr(AlexNetClassifier, "training_step", stopping)
            once = "stopped" if words and "--model.schedule" in words[-1] else ""
            assert fit("--looks=false", *words, once=once) == 143

    return run


def test_going_on_takes_the_trainers_settings_too(
    fit: Fit, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The default would be 10 epochs; the run goes on beside, whatever its version was called."""
    stopped("--trainer.max_epochs=3", "--trainer.log_every_n_steps=2", "--trainer.logger.init_args.version=mine")
    last = LOGS / "mine/checkpoints/last.ckpt"
    capsys.readouterr()
    assert fit("--ckpt_path", str(last), small=False) == 0
    out = capsys.readouterr().out
    assert f"settings come from {(LOGS / 'mine/config.yaml').absolute()}; -c and flags override them" in out
    assert json.loads((LOGS / "version_0/summary.json").read_text())["epochs"] == 3
    was, is_now = (yaml.safe_load((LOGS / name / "config.yaml").read_text()) for name in ("mine", "version_0"))
    assert was["trainer"].pop("logger")["init_args"]["version"] == "mine"
    assert is_now["trainer"].pop("logger")["init_args"] == {
        **yaml.safe_load((LOGS / "mine/config.yaml").read_text())["trainer"]["logger"]["init_args"],
        "version": None,
    }
    assert {**was, "ckpt_path": None} == {**is_now, "ckpt_path": None}


def test_going_on_names_what_is_overridden(
    fit: Fit, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped("--trainer.max_epochs=3", "--model.schedule=constant")
    words = "--ckpt_path last --trainer.max_epochs 1 --looks true --predictions.enabled false"
    capsys.readouterr()
    assert fit(*words.split(), small=False) == 0
    said = capsys.readouterr().out
    assert "config.yaml; overridden: --looks True (was False), --trainer.max_epochs 1 (was 3)\n" in said
    config = yaml.safe_load((LOGS / "version_1/config.yaml").read_text())
    assert (config["overview"]["enabled"], config["predictions"]["enabled"]) == (True, False)
    assert json.loads((LOGS / "version_1/summary.json").read_text())["epochs"] == 1


@pytest.mark.parametrize(
    "words",
    [["--last_checkpoint.dirpath=kept"], ["--trainer.logger.init_args.sub_dir=inner"]],
    ids=["dirpath", "sub_dir"],
)
def test_the_settings_are_found_where_checkpoints_lie_elsewhere(
    fit: Fit, stopped: Callable[..., None], words: list[str]
) -> None:
    stopped("--trainer.max_epochs=3", *words)
    (last,) = Path().rglob("last.ckpt")
    assert fit("--ckpt_path", str(last), small=False) == 0
    newest = max(Path().rglob("summary.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text(encoding="utf-8"))["epochs"] == 3


@pytest.mark.parametrize(
    ("before", "schedule"),
    [(s, "constant") for s in ("constant", "milestones", "one_cycle")]
    + [(s, "plateau") for s in ("plateau", "one_cycle")],
)
def test_rate_and_schedule_can_change_where_a_run_goes_on(
    fit: Fit, stopped: Callable[..., None], before: str, schedule: str
) -> None:
    """As the paper's were changed by hand (section 5), and the optimiser's other numbers too."""
    stopped(f"--model.schedule={before}")
    words = ["--model.schedule", schedule, "--model.lr=0.003", "--model.momentum=0.8", "--model.weight_decay=0.01"]
    assert fit("--ckpt_path", "last", "--trainer.max_epochs=4", *words, small=False) == 0
    history = json.loads((LOGS / "version_1/summary.json").read_text(encoding="utf-8"))["history"]
    assert [entry["lr"] for entry in history] == [pytest.approx(0.003)] * 4
    (optimizer,) = torch.load(LOGS / "version_1/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    (group,) = optimizer["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01)


@pytest.mark.parametrize(
    ("before", "words", "flag"),
    [
        ("one_cycle", "--model.lr 0.5", "--model.lr: 0.5, but the run that goes on began with 0.02."),
        ("one_cycle", "--model.warmup 0.5", "--model.warmup: 0.5, "),
        ("milestones", "--model.milestones [1]", "--model.milestones: [1], "),
        ("constant", "--model.schedule one_cycle", "--model.schedule: one_cycle, "),
        ("plateau", "--model.schedule milestones", "--model.schedule: milestones, "),
    ],
)
def test_what_is_laid_out_from_the_first_step_can_not_change(
    refused: Callable[..., str], stopped: Callable[..., None], before: str, words: str, flag: str
) -> None:
    stopped(f"--model.schedule={before}")
    assert flag in refused("--ckpt_path", "last", *words.split())


CB = "--trainer.callbacks"


def test_other_callbacks_than_the_run_had_are_named(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*UNSEEN, "--trainer.max_epochs=1", f"{CB}+=LearningRateMonitor", "--model.schedule=constant") == 0
    last = ["--ckpt_path", str(LOGS / "version_0/checkpoints/last.ckpt"), "--trainer.max_epochs=2"]
    capsys.readouterr()
    assert fit(*last, f"{CB}+=LearningRateMonitor", small=False) == 0
    assert f"{CB} " not in capsys.readouterr().out
    assert fit(*last, f"{CB}+=DeviceStatsMonitor", small=False) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "; overridden: " in line]
    assert f", {CB} [" in said
    assert said.index("DeviceStatsMonitor") < said.index("(was [") < said.index("LearningRateMonitor")


def test_a_run_that_averages_goes_on_averaging(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Or it would train on from the average."""
    words = [*UNSEEN, "--model.schedule=constant", "--ckpt_path=last", f"{CB}+=LearningRateMonitor"]
    assert fit(*words[:-2], "--trainer.max_epochs=1", f"{CB}+=EMAWeightAveraging") == 0
    assert fit(*words, "--trainer.max_epochs=2") == 2
    assert "error: --trainer.callbacks: none averages weights, as in " in capsys.readouterr().err


def test_a_batch_size_is_found_once(fit: Fit) -> None:
    """Going on takes what was found."""
    finder = [f"{CB}+=BatchSizeFinder", f"{CB}.max_trials=2", f"{CB}.steps_per_trial=1"]
    assert fit(*UNSEEN, *finder, "--model.schedule=constant", "--trainer.max_epochs=1") == 0
    assert fit("--ckpt_path=last", "--trainer.max_epochs=2", small=False) == 0
    found = [torch.load(LOGS / f"version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 1)]
    assert [one["datamodule_hyper_parameters"]["batch_size"] for one in found] == [4, 4]


@pytest.mark.parametrize("text", [None, "model: [", "{trainer: , model: {}, data: {}}", "[]"])
def test_without_its_config_a_checkpoint_gives_model_and_data(
    fit: Fit, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    stopped()
    (LOGS / "version_0/config.yaml").unlink()
    if text is not None:  # edited by hand
        (LOGS / "version_0/config.yaml").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert fit("--ckpt_path", "last", *UNSEEN, "--trainer.max_epochs", "1", small=False) == 0
    said = capsys.readouterr()
    assert f"model and data settings come from {LOGS / 'version_0/checkpoints/last.ckpt'}" in said.out
    assert f"warning: {(LOGS / 'version_0/config.yaml').absolute()}: missing or no config, expected " in said.err
    assert "Those of now are taken: 1 epochs." in said.err


OTHERS = {
    "--data.split_seed 1": "--data.split_seed: 1, ",
    "--data.subset_size 90": "--data.subset_size: 90, ",
    "--data.val_size 30": "--data.val_size: 30, ",
    "--data.batch_size 16": "--data.batch_size: 16, ",
    "--seed_everything 1": "--seed_everything: 1, ",
    "--trainer.devices 2": "--trainer.devices: 2, ",
}


@pytest.mark.parametrize("words", OTHERS)
def test_an_epoch_goes_on_with_its_own_images(
    refused: Callable[..., str], stopped: Callable[..., None], words: str
) -> None:
    stopped("--model.schedule=constant")
    said = refused("--ckpt_path", "last", *words.split())
    assert OTHERS[words] in said
    assert "was stopped within an epoch that began with" in said


def test_going_on_with_other_images_is_said(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an epoch begins, that can be."""
    assert fit("--looks=false", "--trainer.max_epochs=1", "--model.schedule=constant") == 0
    last = LOGS / "version_0/checkpoints/last.ckpt"
    words = ["--ckpt_path", str(last), "--trainer.max_epochs=2"]
    assert fit(*words, small=False) == 0
    assert "other images" not in capsys.readouterr().err
    assert fit(*words, "--data.split_seed=1", "--data.batch_size=16", "--seed_everything=5", small=False) == 0
    assert f"warning: {last} was trained on other images" in capsys.readouterr().err


TWO = """
trainer:
  logger:
  - {class_path: CSVLogger, init_args: {save_dir: lists, name: a}}
  - {class_path: TensorBoardLogger, init_args: {save_dir: boards, name: b}}
"""


def test_two_loggers_are_named_and_found(fit: Fit, stopped: Callable[..., None]) -> None:
    """A run on shapes10 says so in both; its checkpoints lie with the first. Another run's are not taken."""
    Path("two.yaml").write_text(TWO, encoding="utf-8")
    assert fit(*UNSEEN, "--trainer.logger=false", "--trainer.default_root_dir=.", "--trainer.max_epochs=1") == 0
    stopped("-c", "two.yaml")
    last = Path("lists/a-shapes10/version_0/checkpoints/last.ckpt")
    assert last.is_file()
    assert Path("boards/b-shapes10/version_0").is_dir()
    assert fit("-c", "two.yaml", "--ckpt_path", "last", small=False) == 0
    assert json.loads(Path("lists/a-shapes10/version_1/summary.json").read_text(encoding="utf-8"))["resumed"] == 1
    assert Path("boards/b-shapes10/version_1").is_dir()


def test_the_logger_that_true_means(fit: Fit, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    stopped("--trainer.logger=true")
    run = Path("logs/lightning_logs-shapes10/version_0")
    assert (run / "checkpoints/last.ckpt").is_file()
    capsys.readouterr()
    assert fit("--trainer.logger=true", "--ckpt_path", "last", small=False) == 0
    assert f"--ckpt_path last: {run}/checkpoints/last.ckpt" in capsys.readouterr().out


def test_last_is_looked_for_where_it_was_told_to_be(fit: Fit, stopped: Callable[..., None]) -> None:
    where = ["--last_checkpoint.dirpath=elsewhere", "--last_checkpoint.filename=newest"]
    stopped(*where)
    assert fit(*where, "--ckpt_path", "last", *UNSEEN) == 0


def test_the_home_folder(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home.yaml").write_text(
        "trainer: {logger: {class_path: TensorBoardLogger, init_args: {save_dir: ~/logs, name: n}}, "
        "callbacks: {class_path: ModelCheckpoint, init_args: {dirpath: ~/more, every_n_epochs: 2}}}\n"
        "best_checkpoint: {dirpath: ~/best}\n",
        encoding="utf-8",
    )
    assert fit(*UNSEEN, "-c", "home.yaml", "--data.root=~/data") == 0
    home = tmp_path / "home"
    assert (home / "best/best.ckpt").is_file()
    assert (home / "logs/n-shapes10/version_0/checkpoints/last.ckpt").is_file()
    assert list((home / "more").glob("*.ckpt"))
    assert (
        yaml.safe_load((home / "logs/n-shapes10/version_0/config.yaml").read_text())["data"]["root"] == f"{home}/data"
    )
    assert fit("test", *UNSEEN, "--ckpt_path=~/best/best.ckpt") == 0
    assert not Path("~").exists()


def test_another_working_folder_and_an_empty_file(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.yaml").touch()
    assert fit("-c", "configs/quickstart.yaml", "--config=empty.yaml", "--print_config", small=False) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["source"] == "auto"


@pytest.fixture
def cp1252(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose text files are in cp1252 unless a program says otherwise, as Windows' are."""
    original = io.open

    def of_windows(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: Any, **named: Any
    ) -> Any:
        implicit = "b" not in mode and encoding in (None, "locale")
        return original(file, mode, buffering, "cp1252" if implicit else encoding, *rest, **named)

    monkeypatch.setattr(io, "open", of_windows)
    monkeypatch.setattr("builtins.open", of_windows)


@pytest.mark.usefixtures("cp1252")
def test_an_accent_in_a_path_where_text_is_cp1252(fit: Fit, stopped: Callable[..., None]) -> None:
    """In a config that the user wrote in UTF-8, in the one that the run keeps, and in what comes of it."""
    config = {"trainer": {"logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "été"}}}}
    Path("é.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    stopped("-c", "é.yaml", "--trainer.max_epochs=3", "--trainer.logger.init_args.name=ça")
    run = Path("été/ça-shapes10/version_0")
    assert (run / "checkpoints/last.ckpt").is_file()
    assert fit("--ckpt_path", str(run / "checkpoints/last.ckpt"), small=False) == 0
    found = json.loads((run.with_name("version_1") / "summary.json").read_text(encoding="utf-8"))
    assert (found["epochs"], found["resumed"]) == (3, 1)
    assert "été" in (run.with_name("version_1") / "config.yaml").read_text(encoding="utf-8")
    assert "été" in (run.with_name("version_1") / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "from another folder"])
def test_the_best_so_far_is_found_beside_the_checkpoint(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moved: bool
) -> None:
    """Wherever the run lies now, and wherever it goes on from."""
    worse = ["--looks=false", "--model.lr=1", "--model.schedule=constant"]  # the best epoch is not the last
    worse += ["--best_checkpoint.monitor=val/loss", "--best_checkpoint.mode=min"]
    assert fit(*worse, "--trainer.max_epochs=4") == 0
    assert fit(*worse, "--trainer.max_epochs=2") == 0
    whole = json.loads((LOGS / "version_0/summary.json").read_text(encoding="utf-8"))
    losses = [entry["val_loss"] for entry in whole["history"]]
    assert losses.index(min(losses)) < 2
    run = (tmp_path / LOGS / "version_1").rename(tmp_path / "elsewhere") if moved else tmp_path / LOGS / "version_1"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert fit("--ckpt_path", str(run / "checkpoints/last.ckpt"), "--trainer.max_epochs=4", small=False) == 0
    (summary,) = tmp_path.glob("**/other/logs/*/*/summary.json")
    found = json.loads(summary.read_text(encoding="utf-8"))
    assert {key: found[key] for key in ("val_top1", "test_loss")}.items() <= whole.items()


WANDB = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "nets", "--trainer.logger.offline", "true"]


def test_runs_with_w_and_b_have_a_folder_each(
    fit: Fit, stopped: Callable[..., None], end_wandb: Callable[[], None]
) -> None:
    """All files of a run lie under its project and id, which say that the images are the stand-in's."""
    stopped(*WANDB)
    end_wandb()
    more = ["--trainer.max_epochs=1", "--predictions.enabled=true"]
    assert fit("--ckpt_path=last", *WANDB, *more, small=False) == 0
    end_wandb()
    assert {path.name for path in Path("logs").iterdir()} == {"wandb", "nets-shapes10"}
    first, second = sorted(Path("logs/nets-shapes10").iterdir(), key=lambda folder: (folder / "summary.json").exists())
    for folder in (first, second):
        assert (folder / "checkpoints/last.ckpt").is_file()
        assert (folder / "config.yaml").is_file()
        run = wandb_runs.about(Path("logs"), folder.name)
        assert (run.project, run.display_name) == ("nets-shapes10", "alexnet-shapes10")
    assert json.loads((second / "summary.json").read_text(encoding="utf-8"))["resumed"] == 1
    for stage in ("val", "test"):
        sent = [pixels for _, pixels in wandb_runs.pictures(Path("logs"), second.name, f"predictions/{stage}")]
        drawn = [png(path) for path in sorted(second.glob(f"predictions/{stage}_*.png"))]
        assert all((a == b).all() for a, b in zip(sent, drawn, strict=True))
        assert sent


def test_a_w_and_b_run_that_is_refused_is_none(refused: Callable[..., str], end_wandb: Callable[[], None]) -> None:
    assert refused(*WANDB, "--data.val_size=0").startswith("error: --data.val_size: 0 leaves nothing to choose by.")
