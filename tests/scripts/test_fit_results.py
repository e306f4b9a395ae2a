"""What a run's result is: of which weights, by which validation, over how many images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_line, load
from helpers.small import UNSEEN
from helpers.small import small_net as small_net

from callbacks.run_history import RunHistory
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
RUN = Path("logs/alexnet-shapes10/version_0")
CB = "--trainer.callbacks"
EVERY_SECOND = [f"{CB}+=ModelCheckpoint", f"{CB}.filename=e{{epoch}}", f"{CB}.save_top_k=-1", f"{CB}.every_n_epochs=2"]
pytestmark = pytest.mark.usefixtures("small_net")


def summary(version: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RUN.with_name(f"version_{version}") / "summary.json").read_text())
    return found


def scores(fit: Fit, checkpoint: str, *words: str) -> dict[str, float]:
    """What ``fit.py test`` and ``validate`` measure of a checkpoint of the first run."""
    found: dict[str, float] = {}
    for version, stage in enumerate(("test", "validate"), len(list(RUN.parent.iterdir()))):
        assert fit(stage, *UNSEEN, "--ckpt_path", str(RUN / "checkpoints" / checkpoint), *words) == 0
        found |= {k: v for k, v in summary(version).items() if k.endswith(("_top1", "_top5", "_loss"))}
    return found


@pytest.mark.parametrize(
    ("words", "tested"),
    [
        ([], "best.ckpt"),
        (["--best_checkpoint.save_top_k=0"], "last.ckpt"),
        (["--best_checkpoint.every_n_epochs=9"], "last.ckpt"),
    ],
    ids=["chosen", "disabled", "saved nothing"],
)
def test_another_s_checkpoints_are_not_tested(fit: Fit, words: list[str], tested: str) -> None:
    """The best one's weights, or where there are none the last ones, whatever other callbacks saved before."""
    # The network gets worse, so that the best epoch is not the last.
    assert fit(*UNSEEN, "--trainer.max_epochs=4", "--model.lr=0.3", *EVERY_SECOND, *words) == 0
    found = summary()
    assert (RUN / "checkpoints/best.ckpt").exists() == (tested == "best.ckpt")
    assert {key: found[key] for key in ("test_loss", "test_top1")}.items() <= scores(fit, tested).items()


@pytest.mark.parametrize(
    "words",
    [
        ["--best_checkpoint.filename=last"],
        ["--last_checkpoint.filename=best"],
        ["--best_checkpoint.filename=elsewhere/../last"],
        ["--best_checkpoint.filename=LAST"],
        ["--best_checkpoint.filename=last.previous"],
        ["--best_checkpoint.save_last=true"],
        [f"{CB}+=ModelCheckpoint", f"{CB}.monitor=train/loss", f"{CB}.save_last=true"],
    ],
)
def test_two_checkpoints_of_one_name_are_refused(refused: Callable[..., str], words: list[str]) -> None:
    assert ".ckpt: two callbacks' checkpoint, of which one would be left." in refused(*words)


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
@pytest.mark.parametrize("words", [[], ["--best_checkpoint.save_weights_only=false"]], ids=["weights", "whole"])
def test_a_best_that_is_gone_is_not_replaced_by_another(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], harm: str, words: list[str]
) -> None:
    """Such as the one before it. One line says what is left to do."""
    best = RUN / "checkpoints/best.ckpt"

    def on_fit_end(self: AlexNetClassifier) -> None:
        best.unlink() if harm == "deleted" else best.write_bytes(best.read_bytes()[:-1])

    monkeypatch.setattr(AlexNetClassifier, "on_fit_end", on_fit_end)
    assert fit(*UNSEEN, *words, "--trainer.max_epochs=4") == 1
    line = error_line(capsys.readouterr().err)
    assert line.startswith(f"error: {best}: {'missing' if harm == 'deleted' else 'damaged, its SHA-256'}")
    assert fit(*line.partition("fit.py ")[2].split(), *UNSEEN) == 0
    assert not (RUN / "summary.json").exists()


EMA = [f"{CB}+=EMAWeightAveraging", f"{CB}.decay=0.9"]


@pytest.mark.parametrize("words", [[], ["--best_checkpoint.save_weights_only=false"]], ids=["weights", "whole"])
def test_averaged_weights_are_saved_and_tested(fit: Fit, words: list[str]) -> None:
    """What validation measured: the averaged weights, in ``best.ckpt`` as in ``last.ckpt``."""
    assert fit(*UNSEEN, *EMA, *words) == 0
    found, measured = summary(), scores(fit, "best.ckpt")
    assert found["history"][-1]["val_loss"] == pytest.approx(scores(fit, "last.ckpt")["val_loss"], abs=1e-6)
    for key in ("test_loss", "test_top1", "val_top1"):
        assert found[key] == pytest.approx(measured[key], abs=1e-6), key
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert not torch.equal(last["current_model_state"]["net.conv1.weight"], last["state_dict"]["net.conv1.weight"])
    assert load(RUN / "checkpoints/best.ckpt").keys() == last["state_dict"].keys()


@pytest.mark.parametrize("callback", ["best_checkpoint", "EarlyStopping"])
def test_an_epochs_end_may_be_chosen_by_with_validation_within_it(fit: Fit, callback: str) -> None:
    words = ["--best_checkpoint.monitor=train/top1", "--best_checkpoint.save_on_train_epoch_end=true"]
    if callback == "EarlyStopping":
        words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
        words += ["--trainer.callbacks.check_on_train_epoch_end=true"]
    assert fit(*UNSEEN, "--trainer.val_check_interval=0.5", *words) == 0


def test_a_callback_of_the_user_s_own_may_watch_what_it_likes(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Lightning's own have a mode, and stumble over a metric that is not there."""
    own = "from lightning.pytorch import Callback\nclass Own(Callback):\n    monitor = 'val/mine'\n"
    Path("own_callback.py").write_text(own, encoding="utf-8")
    monkeypatch.syspath_prepend(".")
    assert fit(*UNSEEN, f"{CB}+=own_callback.Own") == 0


def test_pruned_weights_are_saved_and_tested(fit: Fit) -> None:
    """Half of them are zero, under the names that the network has without the callback."""
    words = [
        f"{CB}+=ModelPruning",
        f"{CB}.pruning_fn=l1_unstructured",
        f"{CB}.amount=0.5",
        f"{CB}.use_lottery_ticket_hypothesis=false",
    ]
    assert fit(*UNSEEN, *words) == 0
    assert scores(fit, "best.ckpt")["test_loss"] == pytest.approx(summary()["test_loss"], abs=1e-6)
    weights = [w for name, w in load(RUN / "checkpoints/best.ckpt").items() if name.endswith("conv1.weight")]
    assert [float((w == 0).float().mean()) for w in weights] == [pytest.approx(0.5, abs=0.4)]


CHOOSERS = ["val/loss min", "train/top1 max", "val/top1 max", "null max"]


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_the_validation_figures_are_of_the_tested_weights(fit: Fit, chooser: str) -> None:
    """Whichever metric chose them, and in whichever of an epoch's validations."""
    monitor, mode = chooser.split()
    words = ["--model.lr=0.1", "--trainer.max_epochs=4"]
    words += ["--trainer.val_check_interval=0.5"] if monitor != "train/top1" else []  # which each epoch has once
    assert fit(*UNSEEN, *words, "--best_checkpoint.monitor", monitor, f"--best_checkpoint.mode={mode}") == 0
    found = summary()
    assert {key: found[key] for key in ("val_top1", "val_top5")}.items() <= scores(fit, "best.ckpt").items()
    said = {"val/top1": "best epoch", "null": "last epoch"}.get(monitor, f"best epoch by {monitor}")
    assert f"val top-1 ({said}, 40 images)" in (RUN / "summary.md").read_text()


LIMITS = {
    "--trainer.limit_test_batches=1": (100, 40, 32),
    "--trainer.limit_val_batches=1": (100, 32, 60),
    "--trainer.limit_train_batches=2": (64, 40, 60),
    "--trainer.limit_train_batches=0.5": (64, 40, 60),
    "--trainer.max_steps=3": (96, 0, 60),
    "--trainer.max_steps=5": (100, 40, 60),
    "--trainer.overfit_batches=1": (32, 32, 60),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_images_that_were_used_are_counted(fit: Fit, limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table as in the summary."""
    assert fit(*UNSEEN, limit) == 0
    found, said = summary(), (RUN / "summary.md").read_text()
    assert tuple(found[key] for key in ("images", "val_images", "test_images")) == LIMITS[limit]
    train, val, test = LIMITS[limit]
    assert f"| training images | {train} |" in said
    assert f", {val} images)" in said
    assert f", {test} images)" in said


def test_counted_by_the_other_subcommands_and_a_resumed_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*UNSEEN, "--trainer.fast_dev_run=true") == 0
    said = capsys.readouterr().out
    assert "training images" in said
    assert "test top-1 (that epoch's weights, 32 images)" in said
    assert fit(*UNSEEN, "--trainer.limit_train_batches=2") == 0
    assert fit(*UNSEEN, "--trainer.limit_train_batches=2", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")) == 0
    keys = ("images", "val_images", "test_images", "val_top1", "val_top5")
    assert {key: summary(1)[key] for key in keys} == {key: summary(0)[key] for key in keys}
    best = ("--ckpt_path", str(RUN / "checkpoints/best.ckpt"), *UNSEEN)
    assert fit("test", *best, "--trainer.limit_test_batches=1") == 0
    assert summary(2)["test_images"] == 32
    assert fit("validate", *best, "--trainer.limit_val_batches=1") == 0
    assert summary(3)["val_images"] == 32
    assert "test_images" not in summary(3)


SWA = [f"{CB}+=StochasticWeightAveraging", f"{CB}.swa_lrs=0.01", f"{CB}.swa_epoch_start=1"]


def test_stochastic_weight_averaging_is_the_result(fit: Fit) -> None:
    """The weights with which fit ends are validated, saved and tested; a run that goes on to its test has them too."""
    words = [*UNSEEN, *SWA, "--model.schedule=constant", "--trainer.max_epochs=3"]
    assert fit(*words) == 0
    states = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    average, kept = states["StochasticWeightAveraging"]["average_model_state"], load(RUN / "checkpoints/averaged.ckpt")
    assert all(torch.equal(kept[name], average[name]) for name in average)
    found, measured = summary(), scores(fit, "averaged.ckpt")
    for key in ("test_loss", "test_top1", "val_top1", "val_top5"):
        assert found[key] == pytest.approx(measured[key], abs=1e-6), key
    assert "val top-1 (averaged weights, 40 images)" in (RUN / "summary.md").read_text()
    assert fit(*words, "--ckpt_path", str(RUN / "checkpoints/last.ckpt")) == 0
    assert {key: value for key, value in summary(3).items() if key.startswith(("test", "val"))} == {
        key: value for key, value in found.items() if key.startswith(("test", "val"))
    }


def test_without_checkpoints_the_last_weights_are_tested(fit: Fit, refused: Callable[..., str]) -> None:
    assert fit(*UNSEEN, "--best_checkpoint.save_top_k=0") == 0
    assert fit(*UNSEEN, "--trainer.enable_checkpointing=false") == 0
    with_files, without = summary(0), summary(1)
    for key in ("test_top1", "test_loss", "val_top1", "val_top5", "tested", "test_images"):
        assert with_files[key] == without[key], key
    assert without["tested"] == "last epoch"
    assert not list(RUN.with_name("version_1").rglob("*.ckpt"))
    assert not (RUN.with_name("version_1") / "checkpoints").exists()
    assert "ModelCheckpoint" in refused("--trainer.enable_checkpointing=false", f"{CB}+=ModelCheckpoint")


@pytest.mark.parametrize(("bar", "metric"), [("false", "loss"), ("true", "ece")])
def test_a_line_for_each_epoch(fit: Fit, capsys: pytest.CaptureFixture[str], bar: str, metric: str) -> None:
    """Of what the history has, in ``best`` the epoch that was tested."""
    words = [
        "--model.lr=0.1",
        "--trainer.max_epochs=4",
        f"--best_checkpoint.monitor=val/{metric}",
        "--best_checkpoint.mode=min",
        "--calibration.enabled=true",
    ]
    assert fit(*UNSEEN, *words, f"--trainer.enable_progress_bar={bar}") == 0
    said = capsys.readouterr().out
    lines = [line.strip() for line in said.splitlines() if "epoch " in line and " train loss" in line]
    history = summary()["history"]
    best = 0
    for number, (line, entry) in enumerate(zip(lines, history, strict=True), 1):
        assert line.startswith(f"epoch {number}/4: train loss {entry['train_loss']:.4f} top-1 ")
        assert f", val top-1 {100 * entry['val_top1']:.2f} % top-5 {100 * entry['val_top5']:.2f} %, " in line
        assert f"{entry['seconds']:.1f} s" in line
        best = number if line.endswith(" s best") else best
    assert best == 1 + min(range(4), key=lambda place: history[place][f"val_{metric}"])
    assert ("val/top1" in said) == (bar == "true")


@pytest.mark.parametrize("interval", [0.25, 1])
@pytest.mark.parametrize("metric", ["loss", "ece"])
def test_the_best_epoch_is_that_of_all_validations(
    fit: Fit, capsys: pytest.CaptureFixture[str], metric: str, interval: float
) -> None:
    """Of several in an epoch ModelCheckpoint looks at each, but with an interval of 1, a batch too, at the last."""
    words = ["--model.lr=0.1", "--trainer.max_epochs=5", f"--trainer.val_check_interval={interval}"]
    words += ["--calibration.enabled=true"]
    words += ["--best_checkpoint.mode=min", f"--best_checkpoint.monitor=val/{metric}"]
    assert fit(*UNSEEN, *words) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if " train loss" in line]
    step = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    assert max(number for number, line in enumerate(lines, 1) if line.endswith(" s best")) == math.ceil(step / 4)


def test_a_best_of_more_than_weights_adds_no_time(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Testing it loads the callbacks' states too."""
    monkeypatch.setattr(RunHistory, "seconds", property(lambda self: 1000.0))
    assert fit(*UNSEEN, "--best_checkpoint.save_weights_only=false") == 0
    assert summary()["seconds"] < 1000


def test_what_sgd_is_made_for_is_of_the_run_that_goes_on(fit: Fit) -> None:
    """A loss's scale can't be undone by a step that was told of another precision."""
    words = ["--trainer.precision=bf16-mixed", "--model.schedule=constant", "--ckpt_path=last"]
    assert fit(*UNSEEN, *words[:-1], "--trainer.gradient_clip_val=1", "--trainer.max_epochs=1") == 0
    assert fit(*UNSEEN, *words, "--trainer.gradient_clip_val=null", "--trainer.max_epochs=2") == 0
    last = RUN.with_name("version_1") / "checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"][0]["fused"] is True


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_are_clipped_in_any_precision(fit: Fit, precision: str, clip: str) -> None:
    """Also where Lightning does not clip for the fused optimiser, which all other runs have."""
    words = [f"--trainer.precision={precision}", f"--trainer.gradient_clip_algorithm={clip}", "--trainer.max_epochs=1"]
    assert fit(*UNSEEN, *words, "--trainer.gradient_clip_val=1") == 0
    optimizer = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert optimizer["param_groups"][0]["fused"] == (precision == "32-true")
