"""What a run says about itself: checks before it starts; at its end a table, ``summary.md`` and ``summary.json``."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import lightning
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from datamodules import CIFAR10DataModule
from datamodules.sources import count_overlap
from lightning_modules import AlexNetClassifier
from running.machine import processor

Stage = Literal["train", "val", "test"]


def check_run(trainer: Trainer, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> None:
    """Refuse what can't work, before the first step.

    Raises:
        ValueError: If there is nothing to train, or a setting needs validation images and there are none.
    """
    if trainer.max_epochs == 0 or trainer.max_steps == 0:
        raise ValueError("--trainer.max_epochs: 0 epochs train nothing. Choose 1 or more.")
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # --trainer.max_time
    if (trainer.max_epochs or -1) < 0 and trainer.max_steps < 0 and not timed:
        raise ValueError(f"--trainer.max_epochs: {trainer.max_epochs} never ends. Choose 1 or more.")
    if model.schedule == "one_cycle" and trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
        raise ValueError("--model.schedule: one_cycle needs to know its length. Set --trainer.max_epochs.")
    if trainer.limit_train_batches == 0:
        raise ValueError("--trainer.limit_train_batches: 0 batches train nothing. Choose more.")
    _check_intervals(trainer, datamodule, model)
    known = [f"{stage}/{metric}" for stage in ("train", "val") for metric in ("loss", "top1", "top5")]
    for callback in _checkpoints(trainer):
        if callback.monitor not in (None, *known):
            raise ValueError(
                f"--best_checkpoint.monitor: {callback.monitor!r} is not logged. Choose one of {', '.join(known)}."
            )
    if not len(datamodule.split.val) or trainer.limit_val_batches == 0:
        no_val = "--trainer.limit_val_batches: 0" if len(datamodule.split.val) else "--data.val_size: 0"
        if model.schedule == "plateau":
            raise ValueError(f"{no_val} leaves plateau nothing to watch. Choose another --model.schedule.")
        if any(callback.monitor for callback in _checkpoints(trainer)):
            raise ValueError(f"{no_val} leaves nothing to choose by. Set --best_checkpoint.monitor null too.")


def batches_an_epoch(trainer: Trainer, datamodule: CIFAR10DataModule, stage: Stage = "train") -> int:
    """Batches that come to each process, within the trainer's limits."""
    split = datamodule.split
    images = {"train": split.train, "val": split.val}.get(stage)
    count = len(datamodule.images_in("test")[0] if images is None else images)
    batches, share = math.ceil(count / (datamodule.batch_size * trainer.world_size)), _share(trainer, stage)
    return min(batches, share) if isinstance(share, int) else int(batches * share)


def _share(trainer: Trainer, stage: Stage) -> int | float:
    share: int | float = getattr(trainer, f"limit_{stage}_batches")
    return share


def _check_intervals(trainer: Trainer, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> None:
    """Refuse what Lightning would stumble over in the middle of the run, or after it."""
    for stage in get_args(Stage):
        share = _share(trainer, stage)
        if (
            0 < share < 1
            and not batches_an_epoch(trainer, datamodule, stage)
            and (stage != "val" or datamodule.val_size)
        ):
            raise ValueError(f"--trainer.limit_{stage}_batches: {share} of an epoch is not one batch. Choose more.")
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
    for name, value in (
        ("accumulate_grad_batches", trainer.accumulate_grad_batches),
        ("check_val_every_n_epoch", every),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--trainer.{name}: {value} is below 1. Choose 1 or more.")
    batches = batches_an_epoch(trainer, datamodule)
    too_long = isinstance(interval, int) and every is not None and interval > batches
    if isinstance(interval, int | float) and (interval <= 0 or too_long):
        raise ValueError(
            f"--trainer.val_check_interval: {interval}, but an epoch has {batches} batches. Choose 1 to {batches} of "
            "them, or a part of the epoch such as 0.5."
        )
    if model.schedule == "plateau" and every != 1:
        raise ValueError(
            f"--trainer.check_val_every_n_epoch: {every}, but plateau looks at the validation of every epoch. "
            "Set it to 1, or choose another --model.schedule."
        )


def check_folders(trainer: Trainer) -> None:
    """Make a run's folders, and refuse those that can't be written to.

    Raises:
        OSError: If a folder can't be made or written to.
    """
    folders = {callback.dirpath: "another dirpath" for callback in _checkpoints(trainer)}
    flag = "--trainer.logger.init_args.save_dir" if trainer.loggers else "--trainer.default_root_dir"
    folders |= {trainer.log_dir: flag}
    for folder, remedy in folders.items():
        if not folder or not trainer.is_global_zero or trainer.fast_dev_run:
            continue
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise OSError(f"{folder}: can't be made ({error.strerror}). Set {remedy}.") from None
        try:
            with tempfile.TemporaryFile(dir=folder):  # os.access would say yes to root on a read-only disk
                pass
        except OSError as error:
            raise OSError(f"{folder}: can't be written to ({error.strerror}). Set {remedy}.") from None


def announce_data(trainer: Trainer, datamodule: CIFAR10DataModule) -> None:
    """Say in the console and in TensorBoard's text tab which images the run is about to use."""
    split, tests = datamodule.split, len(datamodule.images_in("test")[0])
    text = (
        f"{datamodule.description}: {len(split.train):,} images to train on, {len(split.val):,} to validate, "
        f"{tests:,} to test"
    )
    train_images = datamodule.images_in("train")[0]
    for name, images in (("test", datamodule.images_in("test")[0]), ("validation", train_images[split.val])):
        common = count_overlap(train_images[split.train], images)
        if common:
            text += f"; {common:,} of the {len(images):,} {name} images are also among those to train on"
    if trainer.is_global_zero:
        print(f"data: {text}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and not trainer.fast_dev_run:
            logger.experiment.add_text("data", text)


def summarise(trainer: Trainer, datamodule: CIFAR10DataModule, seconds: float) -> dict[str, Any]:
    """What training came to, before testing replaces the metrics: accuracies in ``[0, 1]``, times in seconds."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    best = [callback.best_model_score for callback in _checkpoints(trainer) if callback.monitor == "val/top1"]
    return {
        "data": datamodule.description,
        "epochs": trainer.current_epoch,
        "images": len(datamodule.split.train),
        "val_images": len(datamodule.split.val),
        "test_images": len(datamodule.images_in("test")[0]),
        "train_top1": metrics.get("train/top1"),
        "train_loss": metrics.get("train/loss"),
        "val_top1": float(best[0]) if best and best[0] is not None else metrics.get("val/top1"),
        "val_top5": metrics.get("val/top5"),
        "fit_seconds": round(seconds, 1),
    }


def report(trainer: Trainer, trained: dict[str, Any], seconds: float, config: Any) -> None:
    """Print the run's table and write it beside the run's other files, with all that is needed to repeat it."""
    folder = trainer.log_dir  # a broadcast: every process takes part
    if not trainer.is_global_zero:
        return
    tested = {
        f"test_{name}": _number(trainer.callback_metrics.get(f"test/{name}")) for name in ("top1", "top5", "loss")
    }
    summary = {
        **trained,
        **tested,
        "seconds": round(seconds, 1),
        "seed": config.seed_everything,
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{processor()}, {os.cpu_count()} cores, {trainer.num_devices} x {trainer.accelerator.name()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }
    rows = table_rows(summary)
    table = Table("", "", show_header=False, title=str(summary["data"]))
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if folder is None or trainer.fast_dev_run:
        return
    Path(folder, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Path(folder, "summary.md").write_text(markdown(rows, summary))
    console.print(f"run folder: {folder}", soft_wrap=True)


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The short table: a name and a value for people."""
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    return [
        ("epochs", str(summary["epochs"])),
        ("training images", f"{summary['images']:,}"),
        ("train top-1 (last epoch, augmented, with dropout)", _percent(summary["train_top1"])),
        (f"val top-1 (best epoch, {summary['val_images']:,} images)", _percent(summary["val_top1"])),
        (f"test top-1 (that epoch's weights, {summary['test_images']:,} images)", _percent(summary["test_top1"])),
        ("test top-5", _percent(summary["test_top5"])),
        ("time", f"{minutes} min {seconds:02d} s"),
    ]


def markdown(rows: list[tuple[str, str]], summary: dict[str, Any]) -> str:
    """``summary.md``: the table, and under it what a number is nothing without."""
    lines = [f"# {summary['data']}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += [f"`{summary['command']}`, seed {summary['seed']}", "", f"{summary['machine']}; {versions}", ""]
    return "\n".join(lines)


def _checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
