"""Lightning's private parts that ``progress.py`` touches are there, and mean what it takes them for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.small_net import SmallNet, trainer_for
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.checkpoints import progress
from datamodules import CIFAR10DataModule

LOOP = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.scheduler_progress")
COUNTERS = {"ready", "completed", "started", "processed"}


class Recorder(Callback):
    """After each of two steps whether gradients were waiting, and where the run was; how far saved files are."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen: list[tuple[bool, tuple[int, int]]] = []
        self.saved: list[int | None] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.seen.append((progress.is_accumulating(trainer), progress.progress_of(trainer)))
        self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self.saved.append(progress.trained_epochs(torch.load(self.file, weights_only=True)))


@pytest.fixture
def trained(tmp_path: Path, datamodule: CIFAR10DataModule) -> tuple[Trainer, Recorder, ModelCheckpoint]:
    """An epoch of four batches, two to a step."""
    recorder, keeper = Recorder(tmp_path / "now.ckpt"), ModelCheckpoint(tmp_path / "checkpoints", save_last=False)
    trainer = trainer_for(
        tmp_path, recorder, keeper, epochs=1, logger=False, accumulate_grad_batches=2, enable_checkpointing=True
    )
    trainer.fit(SmallNet(), datamodule=datamodule)
    return trainer, recorder, keeper


def test_each_private_part_is_there(trained: tuple[Trainer, Recorder, ModelCheckpoint]) -> None:
    trainer, _, keeper = trained
    loop = trainer.fit_loop
    assert callable(loop._should_accumulate)
    assert loop.epoch_loop._batches_that_stepped == trainer.global_step == 2
    assert loop.epoch_loop.batch_progress.current.ready == 4
    assert loop.epoch_loop.max_steps == trainer.max_steps == -1
    state = loop.state_dict()
    for key in (*LOOP, "epoch_loop.val_loop.batch_progress"):
        assert set(state[key]["current"]) <= COUNTERS | {"step"}
    assert "is_last_batch" in state["epoch_loop.batch_progress"]
    assert {"best_model_path", "kth_best_model_path", "best_model_score", "kth_value", "best_k_models"} <= set(
        vars(keeper)
    )


@pytest.mark.parametrize("told", [None, True, False])
def test_whether_callbacks_look_at_epochs_ends(told: bool | None) -> None:
    callbacks = [
        ModelCheckpoint(save_on_train_epoch_end=told),
        EarlyStopping("train/loss", check_on_train_epoch_end=told),
    ]
    assert [progress.looks_at_epochs_end(callback) for callback in callbacks] == [told, told]
    assert progress.looks_at_epochs_end(Callback()) is None


def test_where_a_run_is(trained: tuple[Trainer, Recorder, ModelCheckpoint]) -> None:
    trainer, recorder, keeper = trained
    assert recorder.seen == [(True, (0, 1)), (False, (0, 2)), (True, (0, 3)), (False, (0, 4))]
    assert progress.progress_of(trainer) == (1, 0)
    contents = torch.load(keeper.best_model_path, weights_only=True)
    assert progress.epochs_and_batches(contents) == (1, 0)
    assert progress.trained_epochs(contents) == 1
    assert recorder.saved[:3] == [0, 0, 0]  # within the epoch
    assert recorder.saved[-1] == 1  # its validation
    assert progress.trained_epochs({"state_dict": {}}) is None


class Skipper(Callback):
    """Skips, as training begins, what the loop says that the epoch has had, and records what is left."""

    def __init__(self, had: int) -> None:
        self.had, self.left = had, []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = self.had
        assert progress.skip_batches(trainer) == self.had
        assert trainer.fit_loop._data_fetcher.done is (self.had == 4)
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.left.append(batch[1].tolist())


@pytest.mark.parametrize("overfit", [0.0, 1.0], ids=["ours", "lightning_s_sampler"])
def test_batches_are_skipped_whoever_orders_them(tmp_path: Path, datamodule: CIFAR10DataModule, overfit: float) -> None:
    """Also by the sequential sampler that Lightning puts in for ours with overfit_batches."""
    whole, rest, none = Skipper(0), Skipper(3), Skipper(4)
    for number, skipper in enumerate((whole, rest, none)):
        options = {"epochs": 1, "logger": False, "overfit_batches": overfit, "limit_val_batches": 0}
        trainer_for(tmp_path / str(number), skipper, **options).fit(SmallNet(), datamodule=datamodule)
    assert len(whole.left) == 4
    assert rest.left == whole.left[3:]
    assert none.left == []


def test_nobody_else_touches_them() -> None:
    """No other file of the source asks anything but ``self`` or ``cls`` for an attribute with an underscore."""
    public = {"_replace", "_asdict", "_fields"}  # NamedTuple's, in spite of their names
    found = []
    for folder in ("lightning_modules", "datamodules", "callbacks", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                    own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                    if not own and node.attr not in public and path != Path(progress.__file__):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}")
    assert found == []
