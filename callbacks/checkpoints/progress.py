"""What a checkpoint says about where a run was: epochs and batches, by Lightning's own counters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast


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
    for counts in epochs.values():
        counts.update(ready=started, started=started, processed=epoch, completed=epoch)
    for name, counts in (("current", done), ("total", batches["total"]["processed"])):
        batches[name].update(ready=counts, started=counts, processed=counts, completed=counts)
    batches["is_last_batch"] = batches["is_last_batch"] and done > 0
    val_batches["current"].update(ready=0, started=0, processed=0, completed=0)
    val_batches["total"].update(ready=int(done > 0), started=int(done > 0), processed=0, completed=0)
    val_batches["is_last_batch"] = False
    if not done:
        state["epoch_loop.scheduler_progress"]["current"].update(ready=0, completed=0)
    return state


def epochs_and_batches(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """How many whole epochs a checkpoint was trained for, and how many batches of the next one."""
    state = settled(checkpoint["loops"]["fit_loop"])
    return state["epoch_progress"]["current"]["completed"], state["epoch_loop.batch_progress"]["current"]["completed"]


def trained_epochs(checkpoint: Mapping[str, Any]) -> int | None:
    """How many epochs a checkpoint was trained for, which ``trainer.current_epoch`` does not tell in test."""
    progress: Mapping[str, Any] = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {})
    return cast("int | None", progress.get("current", {}).get("started"))
