"""What StochasticWeightAveraging came to: Lightning puts it into the model when all that is saved is over."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging

from callbacks.stop_and_resume import callbacks_of, resumable_path


def take_average(trainer: Any, model: LightningModule) -> bool:
    """Take over what StochasticWeightAveraging came to, if it did: training has neither validated nor saved it."""
    for callback in callbacks_of(trainer, StochasticWeightAveraging):
        state = callback.state_dict()
        if state["latest_update_epoch"] >= 0:
            model.load_state_dict(state["average_model_state"])
            return True
    return False


def save_average(trainer: Any) -> str | None:
    """Write the model's weights beside the run's checkpoints, if it keeps some: where they are."""
    last = None if trainer.fast_dev_run else resumable_path(trainer)
    if last is None:
        return None
    path = str(last.with_name("averaged.ckpt"))
    trainer.save_checkpoint(path, weights_only=True)
    return path
