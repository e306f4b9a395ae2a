"""Where a run is, by Lightning's own counters: in a checkpoint, and in a trainer.

This is the one file that touches what Lightning keeps to itself (names with an underscore, and fields that its
documentation does not list). ``tests/callbacks/checkpoints/test_progress.py`` names each of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

# ---- in a checkpoint ---------------------------------------------------------------------------------------


def settled(fit_loop: dict[str, Any], validated: bool = False) -> dict[str, Any]:
    """A fit loop's state from a checkpoint, as if it had been saved between two hooks.

    Lightning saves its counters half way through a step or an epoch, and guesses on loading which half. Whatever the
    hook was, ``processed`` batches are those that are in the weights: here all counters are made to agree with it.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``.
        validated: Whether validation that was due after the last batch is over. If not, it runs from its beginning.

    Returns:
        The same, for the start of an epoch or for after any of its batches.
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
    due = int(done > 0 and not validated)
    val_batches["total"].update(ready=due, started=due, processed=0, completed=0)
    val_batches["is_last_batch"] = False
    if not done:
        state["epoch_loop.scheduler_progress"]["current"].update(ready=0, completed=0)
    return state


def epochs_and_batches(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """How many whole epochs a checkpoint was trained for, and how many batches of the next one."""
    state = settled(checkpoint["loops"]["fit_loop"])
    return state["epoch_progress"]["current"]["completed"], state["epoch_loop.batch_progress"]["current"]["completed"]


def trained_epochs(checkpoint: Mapping[str, Any]) -> int | None:
    """How many whole epochs a checkpoint was trained for, which ``trainer.current_epoch`` does not tell in test."""
    if "fit_loop" not in checkpoint.get("loops", {}):
        return None
    state = settled(checkpoint["loops"]["fit_loop"])
    last: bool = state["epoch_loop.batch_progress"]["is_last_batch"]  # saved after validation, the epoch's end to come
    return int(state["epoch_progress"]["current"]["completed"]) + last


# ---- in a trainer ------------------------------------------------------------------------------------------


def progress_of(trainer: Trainer) -> tuple[int, int]:
    """How many whole epochs a trainer has trained for, and how many batches of the next one."""
    return epochs_and_batches({"loops": {"fit_loop": trainer.fit_loop.state_dict()}})


def loops_of(trainer: Trainer) -> dict[str, Any]:
    """The loops' states as a checkpoint has them, by the loops' names."""
    names = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
    return {name: getattr(trainer, name).state_dict() for name in names}


def skip_batches(trainer: Trainer, all_of_them: bool = False) -> int:
    """Leave out what the epoch has had before, whichever sampler orders it, when training begins; how many batches.

    With ``all_of_them`` nothing is left of the epoch but its end.
    """
    fetcher: Any = trainer.fit_loop._data_fetcher
    for loader in fetcher.combined_loader.flattened:
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(trainer.current_epoch)  # Lightning's turn comes when the order is already fixed
    done = int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
    for _ in range(done):
        next(fetcher.iterator)
    # Lightning would take one more batch than there are where no validation is due.
    fetcher.done = all_of_them or done >= trainer.num_training_batches
    return done


def raise_max_steps(trainer: Trainer, by: int) -> None:
    """Move the limit of steps: Lightning does not end an epoch, nor validate, where it is reached at the start."""
    trainer.fit_loop.epoch_loop.max_steps += by


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients of the last batch still wait for their optimiser step."""
    return trainer.fit_loop._should_accumulate()


def count_steps_anew(trainer: Trainer) -> None:
    """Count logged steps like an unbroken run; Lightning's loading is one off, depending on the hook."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def looks_at_epochs_end(callback: Callback) -> bool | None:
    """Whether what saves or stops by a metric is told to look at it as training's epochs end; None where it is not."""
    told: bool | None = getattr(callback, "_save_on_train_epoch_end", None)
    return getattr(callback, "_check_on_train_epoch_end", told)


def remember_best(callback: ModelCheckpoint, scores: Mapping[Path, Tensor]) -> None:
    """Have a callback that has saved nothing yet go on from the best of an earlier run, by their files."""
    models = {str(path): torch.as_tensor(score) for path, score in scores.items()}
    best, worst = (max, min) if callback.mode == "max" else (min, max)
    callback.best_k_models, callback.best_model_path = models, best(models, key=models.__getitem__)
    callback.best_model_score = models[callback.best_model_path]
    if len(models) == callback.save_top_k:
        callback.kth_best_model_path = worst(models, key=models.__getitem__)
        callback.kth_value = models[callback.kth_best_model_path]
