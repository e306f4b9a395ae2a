"""When looks look, and what they refuse; by a look of one method, which is all that it takes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from helpers.small_net import SmallNet, events, run, scalars, trainer_for
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from callbacks.base import EveryNEpochs, Stage, log_probabilities_in, model_of, write_scalars
from callbacks.checkpoints.io import DurableCheckpointIO
from datamodules import CIFAR10DataModule


class LargestWeight(EveryNEpochs):
    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        largest = max(float(weights.abs().max()) for weights in model_of(pl_module).net.parameters())
        write_scalars(trainer, {f"{stage}/largest_weight": largest, f"{stage}/epochs": epochs})


@pytest.mark.parametrize(
    ("every", "epochs", "looked"),
    [(1, 3, [0, 1, 2, 3]), (2, 3, [0, 2, 3]), (2, 4, [0, 2, 4]), (0, 3, [0, 3]), (5, 3, [0, 3])],
)
def test_looks_at_the_start_every_n_epochs_and_at_the_end_once(
    tmp_path: Path, datamodule: CIFAR10DataModule, every: int, epochs: int, looked: list[int]
) -> None:
    model, trainer = run(tmp_path, datamodule, LargestWeight(every), epochs=epochs)
    log = events(tmp_path)
    assert [(e.step, e.value) for e in log.Scalars("val/epochs")] == [(4 * epoch, epoch) for epoch in looked]
    largest = max(float(weights.detach().abs().max()) for weights in model.net.parameters())
    assert log.Scalars("val/largest_weight")[-1].value == pytest.approx(largest)
    trainer.test(model, datamodule, verbose=False)
    assert "test/epochs" not in events(tmp_path).Tags()["scalars"]


def test_at_test_only(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class AtTest(LargestWeight):
        at_start = at_end = False
        at_test = True

    model, trainer = run(tmp_path / "fit", datamodule, AtTest(0), epochs=3)
    trainer.test(model, datamodule, verbose=False)
    assert scalars(tmp_path / "fit", "test/epochs") == {12: 3}
    assert "val/epochs" not in events(tmp_path / "fit").Tags()["scalars"]
    # A checkpoint under test is named by its own epochs.
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    alone = trainer_for(tmp_path / "test", AtTest(0))
    alone.test(SmallNet(), datamodule, ckpt_path=tmp_path / "three.ckpt", verbose=False)
    assert list(scalars(tmp_path / "test", "test/epochs").values()) == [3]


def test_stopped_in_mid_epoch_and_resumed(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    callback = LargestWeight(0)
    run(tmp_path / "stopped", datamodule, callback, max_steps=6, epochs=9)
    assert list(scalars(tmp_path / "stopped", "val/epochs")) == [0, 6]
    _, trainer = run(tmp_path / "first", datamodule, callback, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    run(tmp_path / "second", datamodule, callback, ckpt_path=tmp_path / "one.ckpt")
    assert scalars(tmp_path / "second", "val/epochs") == {4: 1, 8: 2}


def test_switched_off_it_asks_for_nothing(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Demanding(LargestWeight):
        of_model = ("net", "embed")
        of_datamodule = ("sound",)

    with pytest.raises(TypeError, match="Demanding needs a datamodule with sound, got CIFAR10DataModule"):
        run(tmp_path, datamodule, Demanding())
    for options in ({"enabled": False}, {"fast_dev_run": True}):
        off = Demanding(enabled=options.pop("enabled", True))
        run(tmp_path / "off", datamodule, off, **options)
    assert set(events(tmp_path / "off").Tags()["scalars"]) == {"epoch", "val/top1"}
    with pytest.raises(ValueError, match=r"^every_n_epochs: -1 is below 0, expected .+\. Choose 0 or more\.$"):
        LargestWeight(-1)


def test_every_logger_gets_the_values(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, _ = run(tmp_path, datamodule, LargestWeight(0), logger=CSVLogger(str(tmp_path), name="run"))
    with open(tmp_path / "run/version_0/metrics.csv", encoding="utf-8") as file:
        values = [row["val/largest_weight"] for row in csv.DictReader(file) if row["val/largest_weight"]]
    largest = max(float(weights.detach().abs().max()) for weights in model.net.parameters())
    assert [float(value) for value in values][1:] == [pytest.approx(largest)]


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_s_own_epochs_are_named_at_the_test(
    tmp_path: Path, datamodule: CIFAR10DataModule, weights_only: bool
) -> None:
    """As best.ckpt, of weights alone, is tested at the end of a run that went on after it."""

    class AtTest(LargestWeight):
        at_test = True

    kept = ModelCheckpoint(tmp_path, save_weights_only=weights_only, save_top_k=-1, filename="{epoch}")
    options = {"enable_checkpointing": True, "plugins": [DurableCheckpointIO()], "epochs": 3}
    _, trainer = run(tmp_path, datamodule, AtTest(0), kept, **options)
    trainer.test(ckpt_path=str(tmp_path / "epoch=0.ckpt"), datamodule=datamodule, verbose=False)
    assert list(scalars(tmp_path, "test/epochs").values()) == [1]


def test_log_probabilities_are_no_more_than_0_and_in_float32() -> None:
    """Of ten crops' mean rounding may leave a little more, which torchmetrics would take for logits."""
    for dtype, found in ((torch.bfloat16, torch.float32), *((t, t) for t in (torch.float32, torch.float64))):
        given = torch.tensor([[1e-7, -20.0]], dtype=dtype)
        taken = log_probabilities_in({"log_probabilities": given}, LargestWeight(), SmallNet())
        assert (taken.dtype, taken.tolist()) == (found, [[0.0, -20.0]])
