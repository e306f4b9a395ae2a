"""StopOnDivergence: a run whose loss or gradients are no longer numbers ends before they reach the weights."""

from __future__ import annotations

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.checkpoints.files import NotFiniteError
from callbacks.stop_and_resume import resumable_path


def what_is_not_finite(loss: Tensor | None, gradients: list[Tensor]) -> str | None:
    """Name the loss, a scalar on the gradients' device, or the gradients' norm with its value, if it is not finite."""
    values = [] if loss is None else [("loss", loss.detach().float())]
    if gradients:
        values.append(("gradient norm", torch.nn.utils.get_total_norm(gradients).float()))
    if not values:
        return None
    found = torch.stack([value for _, value in values]).tolist()  # the step's only wait for the device
    return next((f"{name} is {x}" for (name, _), x in zip(values, found, strict=True) if x - x != 0), None)


def account(trainer: Trainer, what: str) -> str:
    """What the user is told: where it happened, at which learning rate, and which checkpoint is good."""
    optimizers = trainer.optimizers
    lr = f"{optimizers[0].param_groups[0]['lr']:g}" if optimizers else "?"
    path = resumable_path(trainer)
    good = path if path is not None and path.is_file() else "none yet"
    return (
        f"lr: {what}, after step {trainer.global_step} (epoch {trainer.current_epoch}), lr {lr}. "
        f"Last good checkpoint: {good}. Choose a lower one."
    )


class StopOnDivergence(Callback):
    """Raise ``NotFiniteError`` before an optimiser step whose loss or gradient norm is NaN or infinite.

    Under DDP the gradients are everybody's, and so is the loss where it alone is looked at: all processes see it in the
    same step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss until there are gradients, to look at both at once."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            gradients = []  # with precision 16-mixed infinite gradients are usual; the scaler leaves out such a step
            if trainer.world_size > 1 and self._loss is not None:  # the loss is this process's alone
                self._loss = trainer.strategy.reduce(self._loss.clone(), reduce_op="mean")
        what = what_is_not_finite(self._loss, gradients)
        self._loss = None
        if what is not None:
            raise NotFiniteError(f"{what} and was kept from the weights")
