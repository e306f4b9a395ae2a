"""Where a run is, by Lightning's own counters: in a checkpoint, and in a trainer.

This is the one file that touches what Lightning keeps to itself (names with an underscore, and fields that its
documentation does not list). ``tests/callbacks/checkpoints/test_progress.py`` names each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

# ---- in a checkpoint ---------------------------------------------------------------------------------------


def settled(fit_loop: dict[str, Any]) -> dict[str, Any]:
    """A fit loop's state from a checkpoint, as if it had been saved between two hooks.

    Lightning saves its counters half way through a step or an epoch, and guesses on loading which half. Whatever the
    hook was, ``processed`` batches are those that are in the weights: here all counters are made to agree with it.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``.

    Returns:
        The same, for the start of an epoch or for after any of its batches. Validation that was due after that batch
        runs (again), because its metrics are in no checkpoint.
    """
    state = copy.deepcopy(fit_loop)
    epochs, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    val_batches = state["epoch_loop.val_loop.batch_progress"]
    epoch = epochs["current"]["processed"]
    done = batches["current"]["processed"] if epochs["current"]["started"] > epoch else 0  # batches of this epoch
    started = epoch + 1 if done else epoch
    # The flag is that of the batch that was fetched last, which may not be in the weights yet.
    last = batches["is_last_batch"] and batches["current"]["ready"] == done > 0
    for counts in epochs.values():
        counts.update(ready=started, started=started, processed=epoch, completed=epoch)
    for name, counts in (("current", done), ("total", batches["total"]["processed"])):
        batches[name].update(ready=counts, started=counts, processed=counts, completed=counts)
    batches["is_last_batch"] = last
    val_batches["current"].update(ready=0, started=0, processed=0, completed=0)
    val_batches["total"].update(ready=int(done > 0), started=int(done > 0), processed=0, completed=0)
    val_batches["is_last_batch"] = False
    if not done:
        state["epoch_loop.scheduler_progress"]["current"].update(ready=0, completed=0)
    return state


def epochs_and_batches(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """How many whole epochs a checkpoint was trained for, and how many batches of the next one."""
    state = settled(checkpoint["loops"]["fit_loop"])
    return state["epoch_progress"]["current"]["completed"], state["epoch_loop.batch_progress"]["current"]["completed"]


def trained_epochs(checkpoint: Mapping[str, Any]) -> int | None:
    """How many epochs a checkpoint was trained for, which ``trainer.current_epoch`` does not tell in test."""
    progress: Mapping[str, Any] = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    return cast("int | None", progress.get("current", {}).get("started"))


# ---- in a trainer ------------------------------------------------------------------------------------------


def progress_of(trainer: Trainer) -> tuple[int, int]:
    """How many whole epochs a trainer has trained for, and how many batches of the next one."""
    return epochs_and_batches({"loops": {"fit_loop": trainer.fit_loop.state_dict()}})


def loops_of(trainer: Trainer) -> dict[str, Any]:
    """The loops' states as a checkpoint has them, by the loops' names."""
    names = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    return {name: getattr(trainer, name).state_dict() for name in names}


def batches_done(trainer: Trainer) -> int:
    """How many batches of the next epoch to begin a resumed run has had before, when training begins.

    0 where all of an epoch's were done and only its end is to come.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.num_training_batches)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients of the last batch still wait for their optimiser step; no checkpoint holds them."""
    return trainer.fit_loop._should_accumulate()


def count_steps_anew(trainer: Trainer) -> None:
    """Count logged steps like an unbroken run; Lightning's loading is one off, depending on the hook."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def saved_at(callback: Checkpoint) -> int:
    """The step at which a callback saved last; -1 before it did."""
    return int(getattr(callback, "_last_global_step_saved", -1))


def remember_best(callback: ModelCheckpoint, path: Path, score: Tensor) -> None:
    """Have a callback that has saved nothing yet go on from the best of an earlier run."""
    callback.best_model_path = callback.kth_best_model_path = str(path)
    callback.best_model_score = callback.kth_value = torch.as_tensor(score)
    callback.best_k_models = {str(path): callback.best_model_score}
