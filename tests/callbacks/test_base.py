"""When looks look, and what they refuse; by a look of one method, which is all that it takes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import wandb_runs
from helpers.small_net import SmallNet, events, png, run, scalars, to_tensorboard, trainer_for
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, WandbLogger

from callbacks.base import (
    EveryNEpochs,
    Stage,
    log_probabilities_in,
    model_of,
    run_folder,
    write_image,
    write_scalars,
)
from callbacks.checkpoints.io import DurableCheckpointIO
from datamodules import CIFAR10DataModule


class LargestWeight(EveryNEpochs):
    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        largest = max(float(weights.abs().max()) for weights in model_of(pl_module).net.parameters())
        write_scalars(trainer, {f"{stage}/largest_weight": largest, f"{stage}/epochs": epochs})


class Noise(EveryNEpochs):
    """Draws another picture at every look."""

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        generator = torch.Generator().manual_seed(epochs)
        self.draw(trainer, "noise", stage, epochs, torch.randint(256, (3, 20, 30), generator=generator).byte())


class Album(Logger):
    """A logger that takes pictures, as Lightning's W&B logger does, or refuses them."""

    name, save_dir, version = "album", "albums", "first"

    def __init__(self, version: Any = "first", refuses: bool = False) -> None:
        super().__init__()
        self.version, self.refuses, self.pictures = version, refuses, {}

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    log_hyperparams = log_metrics

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        if self.refuses:
            raise OSError(28, "No space left on device")
        (self.pictures[key, step],) = map(np.array, images)


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


def test_pictures_go_to_every_logger_that_takes_them(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    """And files to the first one's folder, beside its checkpoints."""
    loggers = [Album(), Album(refuses=True), CSVLogger("csv"), to_tensorboard(tmp_path / "board")]
    with pytest.warns(UserWarning, match=r"can't be written \(No space left on device\)") as warned:
        run(tmp_path, datamodule, Noise(), logger=loggers, epochs=1, enable_checkpointing=True)
    assert len([w for w in warned if "can't be written" in str(w.message)]) == 1
    files = {step: png(f"albums/album/first/noise/val_epoch_00{epoch}.png") for step, epoch in ((0, 0), (4, 1))}
    assert list(Path("albums/album/first/checkpoints").glob("*.ckpt"))
    assert {path.name for path in Path("albums").rglob("*")} >= {"album", "first", "noise", "checkpoints"}
    assert not list(tmp_path.glob("*.png"))
    assert list(loggers[0].pictures) == [("noise/val", step) for step in files]
    assert [e.step for e in events(tmp_path / "board").Images("noise/val")] == list(files)
    for step, pixels in files.items():
        assert (loggers[0].pictures["noise/val", step] == pixels).all()


def test_w_and_b_has_every_picture_and_two_runs_have_two_folders(
    tmp_path: Path, datamodule: CIFAR10DataModule, end_wandb: Callable[[], None]
) -> None:
    """Read back from its files: rows at a step below the newest would be dropped."""
    folders = []
    for _ in range(2):
        logger = WandbLogger(save_dir=str(tmp_path), project="nets", offline=True)
        model, trainer = run(tmp_path, datamodule, Noise(), logger=logger, enable_checkpointing=True)
        write_scalars(trainer, {"later": 1.0})
        Noise().look(trainer, model, 0, "val")
        folders.append(run_folder(trainer))
        assert folders[-1] == tmp_path / "nets" / logger.experiment.id
        assert len(list(folders[-1].glob("checkpoints/*.ckpt"))) == 1
        end_wandb()
    assert folders[0] != folders[1]
    for folder in folders:
        found = wandb_runs.pictures(tmp_path, folder.name, "noise/val")
        assert [step for step, _ in found] == [0, 4, 8, 8]
        for (_, pixels), epochs in zip(found, (0, 1, 2, 0), strict=True):
            assert (pixels == png(folder / f"noise/val_epoch_00{epochs}.png")).all()


def test_ml_flow_and_comet_get_pictures_by_their_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's loggers of them have no ``log_image``; what is called is what the packages' clients have."""

    class Client:
        def log_image(self, *args: Any, **kwargs: Any) -> None:
            calls.append((*(np.array(a).tolist() if hasattr(a, "size") else a for a in args), kwargs))

    calls: list[Any] = []
    loggers: list[Any] = []
    for kind in (MLFlowLogger, CometLogger):
        for name, value in {
            "experiment": Client(),
            "name": "e",
            "save_dir": "s",
            "version": "v",
            "run_id": "v",
        }.items():
            monkeypatch.setattr(kind, name, value, raising=False)
        loggers.append(object.__new__(kind))
    image = torch.arange(6, dtype=torch.uint8).view(3, 1, 2)
    write_image(trainer_for(tmp_path, logger=loggers), "filters/conv1", "conv1.png", image)
    pixels = [[[0, 2, 4], [1, 3, 5]]]
    assert calls == [("v", pixels, {"key": "filters/conv1", "step": 0}), (pixels, {"name": "filters/conv1", "step": 0})]


@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (False, "root"),
        (CSVLogger("logs", name="csv"), "logs/csv/version_0"),
        ([Album(), CSVLogger("logs", name="csv")], "albums/album/first"),
        ([CSVLogger("logs", name="csv"), Album()], "logs/csv/version_0"),
        (Album(version=3), "albums/album/version_3"),
    ],
    ids=["none", "csv", "another first", "csv first", "a number"],
)
def test_a_run_has_one_folder(logger: Any, folder: str) -> None:
    assert run_folder(trainer_for(Path("root"), logger=logger)).absolute() == Path(folder).absolute()
