"""Before the first step: what can't work is refused, before a run writes anything, and its data are announced."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
)

from callbacks.base import add_to_tensorboards, run_folder
from callbacks.calibration import Calibration
from callbacks.checkpoints.files import previous
from callbacks.checkpoints.progress import looks_at_epochs_end
from callbacks.conv1_filters import Conv1Filters, filters_of
from callbacks.slurm import slurm_job
from callbacks.stop_and_resume import callbacks_of
from datamodules import CIFAR10DataModule
from datamodules.sources import count_overlap
from lightning_modules import AlexNetClassifier, CudaConvnet

Stage = Literal["train", "val", "test"]
Pass = Literal[Stage, "predict"]
METRICS = [f"{stage}/{metric}" for stage in ("train", "val") for metric in ("loss", "top1", "top5")]


def check_run(trainer: Any, datamodule: CIFAR10DataModule, model: AlexNetClassifier, best: ModelCheckpoint) -> None:
    """Refuse settings that leave nothing to train or nothing to choose by, or that Lightning would stumble over later.

    ``best`` is what ``--best_checkpoint`` made.

    Raises:
        ValueError: With a line that names the flag.
    """
    epochs, every, interval = trainer.max_epochs, trainer.check_val_every_n_epoch, trainer.val_check_interval
    plateau, monitors = model.schedule == "plateau", _monitors(trainer, best)
    endless = (epochs or -1) < 0 and trainer.max_steps < 0
    timed = callbacks_of(trainer, Timer)  # --trainer.max_time
    batches = batches_an_epoch(trainer, datamodule)
    calibrated = any(not callback.disabled(trainer) for callback in callbacks_of(trainer, Calibration))
    metrics = [*METRICS, "val/ece"] if calibrated else METRICS
    known = all(map(_is_known, trainer.callbacks))
    unknown = next((f"{flag}: {what!r}" for flag, what, _ in monitors if known and what not in metrics), None)
    watched = next((flag for flag, what, _ in monitors if what.startswith("val/")), None)
    by_epoch = interval == 1.0 and every == 1  # else what is watched is looked at after validation
    late = next((f"{flag}: {w!r}" for flag, w, c in monitors if w[:6] == "train/" and not _at_end(c, by_epoch)), None)
    backwards = next(((flag, w, c.mode) for flag, w, c in monitors if w in metrics and c.mode != _mode(w)), None)
    no_images = not len(datamodule.split.val)
    no_val = no_images or trainer.limit_val_batches == 0
    without = "--data.val_size: 0" if no_images else "--trainer.limit_val_batches: 0"
    too_rare = isinstance(interval, int) and every is not None and interval > batches
    too_often = isinstance(interval, int | float) and interval <= 0
    wrong = {
        "--trainer.max_epochs: 0 epochs train nothing. Choose 1 or more.": epochs == 0 or trainer.max_steps == 0,
        f"--trainer.max_epochs: {epochs} never ends. Choose 1 or more.": endless and not timed,
        "--model.schedule: one_cycle needs to know its length. Set --trainer.max_epochs.": (
            endless and model.schedule == "one_cycle"
        ),
        "--trainer.limit_train_batches: 0 batches train nothing. Choose more.": trainer.limit_train_batches == 0,
        **{
            f"--trainer.{'overfit' if trainer.overfit_batches and stage != 'test' else f'limit_{stage}'}_batches: "
            f"{_share(trainer, stage)} of an epoch is not one batch. Choose more.": (
                0 < _share(trainer, stage) < 1 and not batches_an_epoch(trainer, datamodule, stage)
            )
            for stage in get_args(Stage)
            if not (stage == "val" and no_images)
        },
        **{
            f"--trainer.{name}: {getattr(trainer, name)} is below 1. Choose 1 or more.": getattr(trainer, name, 1) < 1
            for name in ("accumulate_grad_batches", "check_val_every_n_epoch")
            if getattr(trainer, name) is not None
        },
        f"--trainer.val_check_interval: {interval}, but an epoch has {batches} batches. Choose 1 to {batches} of them, "
        "or a part of the epoch such as 0.5.": too_rare or too_often,
        f"--trainer.check_val_every_n_epoch: {every}, but plateau looks at the validation of every epoch. Set it to 1, "
        "or choose another --model.schedule.": plateau and every != 1,
        f"{late} is there at an epoch's end, later than the validation after which it is looked at. Choose a val/ "
        "metric, or set save_on_train_epoch_end or check_on_train_epoch_end true.": late,
        _wrong_way(*backwards) if backwards else "": backwards,
        f"{unknown} is not logged. Choose one of {', '.join(metrics)}.": unknown,
        f"{without} leaves plateau nothing to watch. Choose another --model.schedule.": no_val and plateau,
        f"{without} leaves nothing to choose by. Set {watched} null or to a train/ metric too.": no_val and watched,
        **_misfits(trainer, datamodule, model),
    }
    for message, is_so in wrong.items():
        if is_so:
            raise ValueError(message)
    for callback in callbacks_of(trainer, Conv1Filters):
        if not callback.disabled(trainer):
            try:
                filters_of(model, callback.layer)
            except TypeError as error:
                raise ValueError(f"--conv1_filters.{error}") from None


def check_pass(trainer: Any, datamodule: CIFAR10DataModule, stage: Pass) -> None:
    """Refuse to test, validate or predict on nothing.

    Raises:
        ValueError: With a line that names the flag.
    """
    if stage == "val" and not len(datamodule.split.val):
        raise ValueError("--data.val_size: 0 leaves nothing to validate on. Choose more.")
    if not batches_an_epoch(trainer, datamodule, stage):
        share = _share(trainer, stage)
        raise ValueError(f"--trainer.limit_{stage}_batches: {share} of them is not one batch. Choose more.")


def _monitors(trainer: Any, best: ModelCheckpoint) -> list[tuple[str, str, Any]]:
    """What callbacks watch, each after what says so and before the callback."""
    return [
        ("--best_checkpoint.monitor" if c is best else f"--trainer.callbacks: {type(c).__name__}.monitor", c.monitor, c)
        for c in trainer.callbacks
        if isinstance(c, EarlyStopping | ModelCheckpoint) and c.monitor and getattr(c, "strict", True)
    ]


def _at_end(callback: Any, default: bool) -> bool:
    told = looks_at_epochs_end(callback)
    return default if told is None else told


def _mode(metric: str) -> str:
    return "min" if metric.endswith(("loss", "ece")) else "max"


def _wrong_way(flag: str, metric: str, mode: str) -> str:
    """What a run would say nothing of: ModelCheckpoint and EarlyStopping take ``min`` where they are not told."""
    better = {"min": "lower", "max": "higher"}[_mode(metric)]
    return (
        f"{flag.removesuffix('monitor')}mode: {mode}, but {metric} is better the {better} it is. Set {_mode(metric)}."
    )


def _is_known(callback: Any) -> bool:
    """Whether a callback is Lightning's or ours; another's may log metrics that we don't know of."""
    return type(callback).__module__.split(".")[0] in ("lightning", "callbacks")


def _misfits(trainer: Any, datamodule: CIFAR10DataModule, model: AlexNetClassifier) -> dict[str, bool]:
    """What does not go together, or does nothing, by what to say of it."""
    kinds = (LearningRateMonitor, DeviceStatsMonitor)
    loggers = [type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, kinds)]
    finder, sizes, accumulating, backbone = (
        bool(callbacks_of(trainer, kind))
        for kind in (LearningRateFinder, BatchSizeFinder, GradientAccumulationScheduler, BackboneFinetuning)
    )
    classes, names = model.num_classes, len(datamodule.class_names)
    return {
        "--trainer.callbacks: LearningRateFinder sets a rate that one_cycle does not heed. Choose another "
        "--model.schedule, or leave it out.": finder and model.schedule == "one_cycle",
        "--trainer.callbacks: BatchSizeFinder changes how many steps there are, which one_cycle is laid out by. Choose "
        "another --model.schedule, or leave it out.": sizes and model.schedule == "one_cycle",
        "--trainer.callbacks: GradientAccumulationScheduler changes how many steps there are, which one_cycle is laid "
        "out by. Choose another --model.schedule, or leave it out.": accumulating and model.schedule == "one_cycle",
        f"--trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches}, but GradientAccumulationScheduler sets "
        "it itself. Leave one of them out.": accumulating and trainer.accumulate_grad_batches != 1,
        "--trainer.callbacks: BackboneFinetuning needs a model with a backbone, which there is not. Leave it out.": (
            backbone
        ),
        "--trainer.callbacks: LearningRateFinder gives all weights one rate, where a small network's biases have twice "
        "the weights'. Leave it out.": finder and isinstance(model.net, CudaConvnet),
        f"--trainer.callbacks: {', '.join(loggers)} without a logger has nowhere to write. Set --trainer.logger "
        "true, or leave it out.": bool(loggers) and not trainer.loggers,
        f"--model.num_classes: {classes}, but the images are of {names} classes. Choose {names}.": classes != names,
    }


def batches_an_epoch(trainer: Any, datamodule: CIFAR10DataModule, stage: Pass = "train") -> int:
    """Batches that come to each process, within the trainer's limits."""
    if stage == "predict":
        count = len(datamodule.photos.images)
    else:
        count = len(datamodule.images_in("test")[0] if stage == "test" else getattr(datamodule.split, stage))
    batches, share = math.ceil(count / (datamodule.batch_size * trainer.world_size)), _share(trainer, stage)
    return min(batches, share) if isinstance(share, int) else int(batches * share)


def _share(trainer: Any, stage: Pass) -> int | float:
    share: int | float = getattr(trainer, f"limit_{stage}_batches")
    return share


def check_processes(trainer: Any) -> None:
    """Refuse processes that were started together and know nothing of each other, and on a CPU more than it has cores.

    Raises:
        ValueError: With a line that names the flag.
    """
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started > trainer.world_size:
        raise ValueError(
            f"--trainer.devices: {trainer.world_size} in all, but {started} processes were started (WORLD_SIZE), each "
            f"of which would do it all. Set --trainer.devices {started}, or start one."
        )
    # Some hundreds end the machine.
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        have = f"{trainer.num_devices} processes, but this machine has {cores} cores"
        raise ValueError(f"--trainer.devices: {have}. Choose {cores} or fewer.")


def check_nothing_in_the_way(trainer: Any, trains: bool, resumed: Path | None) -> None:
    """Refuse to write over another run's files: a run without versions, or with a fixed one, finds them in its place.

    Args:
        trainer: Before its run.
        trains: Whether checkpoints are written.
        resumed: The checkpoint that training goes on from, which may lie where its run goes on.

    Raises:
        ValueError: With a line that names the file.
    """
    folder = run_folder(trainer)  # a broadcast: every process takes part
    if trainer.fast_dev_run or not trainer.is_global_zero:
        return
    requeued = slurm_job() in folder.parts  # killed before its first checkpoint, maybe
    checkpoints = [
        Path(callback.dirpath or folder / "checkpoints") / f"{name}{callback.FILE_EXTENSION}"
        for callback in (callbacks_of(trainer, ModelCheckpoint) if trains else [])
        for name in {callback.filename, callback.CHECKPOINT_NAME_LAST if callback.save_last else None}
        if name and "{" not in name
    ]
    # Names that differ in case alone are the same file on some systems.
    places = [os.path.abspath(path).lower() for path in checkpoints]
    kept = [os.path.abspath(previous(path)).lower() for path in checkpoints]
    if twice := [path for path, place in zip(checkpoints, places, strict=True) if (places + kept).count(place) > 1]:
        raise ValueError(
            f"{twice[0]}: two callbacks' checkpoint, of which one would be left. Set another "
            "--best_checkpoint.filename or --last_checkpoint.filename, or leave out save_last."
        )
    if requeued or (resumed and resumed.absolute().parent in [path.absolute().parent for path in checkpoints]):
        return
    remedy = "--trainer.logger.init_args.save_dir or version" if trainer.loggers else "--trainer.default_root_dir"
    for path in (*(folder / name for name in ("config.yaml", "summary.json", "predictions.csv")), *checkpoints):
        if path.exists():
            own = remedy if path.is_relative_to(folder) else "another dirpath"
            raise ValueError(
                f"{path}: an earlier run's, expected a folder of this run's own. Set {own}, or move it away."
            )


def check_folders(trainer: Any) -> None:
    """Make a run's folders, and refuse those that can't be written to.

    Raises:
        OSError: If a folder can't be made or written to.
    """
    folders = {callback.dirpath: "another dirpath" for callback in callbacks_of(trainer, ModelCheckpoint)}
    flag = "--trainer.logger.init_args.save_dir" if trainer.loggers else "--trainer.default_root_dir"
    folders |= {trainer.log_dir: flag}
    for folder, remedy in folders.items():
        if not folder or not trainer.is_global_zero or trainer.fast_dev_run:
            continue
        verb = "made"
        try:
            os.makedirs(folder, exist_ok=True)
            verb = "written to"
            with tempfile.TemporaryFile(dir=folder):  # os.access would say yes to root on a read-only disk
                pass
        except OSError as error:
            raise OSError(f"{folder}: can't be {verb} ({error.strerror}). Set {remedy}.") from None


def announce_data(trainer: Any, datamodule: CIFAR10DataModule) -> None:
    """Say in the console and in TensorBoard's text tab which images the run is about to use."""
    split, tests = datamodule.split, datamodule.images_in("test")[0]
    text = (
        f"{datamodule.description}: {len(split.train):,} images to train on, {len(split.val):,} to validate, "
        f"{len(tests):,} to test"
    )
    train_images = datamodule.images_in("train")[0]
    for name, images in (("test", tests), ("validation", train_images[split.val])):
        common = count_overlap(train_images[split.train], images)
        if common:
            text += f"; {common:,} of the {len(images):,} {name} images are also among those to train on"
    if trainer.is_global_zero:
        print(f"data: {text}")
    if not trainer.fast_dev_run:
        add_to_tensorboards(trainer, "text", "data", text)
