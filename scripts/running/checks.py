"""What can't work is refused before the first step, and before a run writes anything."""

from __future__ import annotations

import math
import os
import tempfile
from typing import Any, Literal, get_args

from lightning import Trainer
from lightning.pytorch.callbacks import Timer

from callbacks.stop_and_resume import model_checkpoints
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier
from running.checkpoint import Checkpoint
from running.errors import refuse

Stage = Literal["train", "val", "test"]
METRICS = [f"{stage}/{metric}" for stage in ("train", "val") for metric in ("loss", "top1", "top5")]


def check_run(trainer: Any, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> None:
    """Refuse settings that leave nothing to train, or nothing to choose by.

    Raises:
        ValueError: With a line that names the flag.
    """
    endless = (trainer.max_epochs or -1) < 0 and trainer.max_steps < 0
    timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # --trainer.max_time
    if trainer.max_epochs == 0 or trainer.max_steps == 0:
        raise ValueError("--trainer.max_epochs: 0 epochs train nothing. Choose 1 or more.")
    if endless and not timed:
        raise ValueError(f"--trainer.max_epochs: {trainer.max_epochs} never ends. Choose 1 or more.")
    if endless and model.schedule == "one_cycle":
        raise ValueError("--model.schedule: one_cycle needs to know its length. Set --trainer.max_epochs.")
    if trainer.limit_train_batches == 0:
        raise ValueError("--trainer.limit_train_batches: 0 batches train nothing. Choose more.")
    _check_intervals(trainer, datamodule, model)
    callbacks = model_checkpoints(trainer)
    for callback in callbacks:
        if callback.monitor not in (None, *METRICS):
            raise ValueError(
                f"--best_checkpoint.monitor: {callback.monitor!r} is not logged. Choose one of {', '.join(METRICS)}."
            )
    if not len(datamodule.split.val) or trainer.limit_val_batches == 0:
        no_val = "--trainer.limit_val_batches: 0" if len(datamodule.split.val) else "--data.val_size: 0"
        if model.schedule == "plateau":
            raise ValueError(f"{no_val} leaves plateau nothing to watch. Choose another --model.schedule.")
        if any(callback.monitor for callback in callbacks):
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


def _check_intervals(trainer: Any, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> None:
    """Refuse what Lightning would stumble over in the middle of the run, or after it."""
    for stage in get_args(Stage):
        share = _share(trainer, stage)
        wanted = stage != "val" or datamodule.val_size
        if 0 < share < 1 and not batches_an_epoch(trainer, datamodule, stage) and wanted:
            raise ValueError(f"--trainer.limit_{stage}_batches: {share} of an epoch is not one batch. Choose more.")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ValueError(f"--trainer.{name}: {value} is below 1. Choose 1 or more.")
    every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
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


def check_folders(trainer: Any) -> None:
    """Make a run's folders, and refuse those that can't be written to.

    Raises:
        OSError: If a folder can't be made or written to.
    """
    folders = {callback.dirpath: "another dirpath" for callback in model_checkpoints(trainer)}
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


def check_resume(checkpoint: Checkpoint, trainer: Trainer, datamodule: CIFAR10DataModule) -> None:
    """Refuse to go on from a checkpoint where that can't come to the unbroken run's end."""
    epochs, done, steps = checkpoint.progress
    path, limit = checkpoint.path, trainer.max_epochs or -1
    if 0 <= limit < epochs:
        refuse(
            f"--trainer.max_epochs: {limit}, but {path} was trained for {epochs} epochs. Raise it, or test that run: "
            f"python scripts/fit.py test --ckpt_path {checkpoint.best}"
        )
    if 0 <= limit == epochs or 0 <= trainer.max_steps <= steps:
        print(f"nothing left to train: {path} was trained for {epochs} epochs, {steps} steps. On to the test.")
        return
    batch_size = checkpoint.settings["data"].get("batch_size", datamodule.batch_size)
    if done and batch_size != datamodule.batch_size:
        refuse(
            f"--data.batch_size: {datamodule.batch_size}, but {path} was stopped within an epoch of batches of "
            f"{batch_size}. Leave it as it was."
        )
    for schedule in checkpoint.contents.get("lr_schedulers", []):
        left = steps_left(trainer, batches_an_epoch(trainer, datamodule), epochs, done, steps)
        if "total_steps" in schedule and schedule["last_epoch"] + left > schedule["total_steps"]:
            refuse(
                f"--trainer.max_epochs: {left} more steps are more than the {schedule['total_steps']} that the "
                f"one_cycle schedule in {path} was laid out for. Leave max_epochs and --data as they were, or choose "
                "--model.schedule constant."
            )


def steps_left(trainer: Trainer, batches: int, epochs: int, done: int, steps: int) -> int:
    """Optimiser steps that the trainer's limits leave, after so many epochs, batches of the next one, and steps."""
    every = trainer.accumulate_grad_batches
    limits = [trainer.max_steps - steps] if trainer.max_steps >= 0 else []
    if (trainer.max_epochs or -1) >= 0:
        limits.append((trainer.max_epochs - epochs) * math.ceil(batches / every) - done // every)  # type: ignore[operator]
    return min(limits, default=0)
