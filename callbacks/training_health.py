"""TrainingHealth: whether training goes well, in a few curves: learning rate, gradients, speed, memory."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from callbacks.base import Looking, write_scalars


def process_memory() -> float | None:
    """GiB that this process holds: on Linux now, elsewhere on Unix its peak so far, on other systems None."""
    try:
        import resource
    except ImportError:
        return None
    try:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize() / 2**30
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def gradient_norm(module: torch.nn.Module) -> float:
    """Euclidean length of all gradients as one vector; 0 without any."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


class TrainingHealth(Looking):
    """Log learning rate and gradient norm at the trainer's ``log_every_n_steps``, speed and memory once an epoch.

    - ``train/lr``: of the step, of the optimiser's first group.
    - ``health/gradient_norm``: of the step, before clipping. It comes from this process' parameters: with DDP those are
      everybody's, with strategies that shard them a part.
    - ``health/images_per_second``: training images of all processes, over the time from the epoch's start to its last
      step's end, less validation.
    - ``health/epoch_seconds``: from one epoch's end to the next, with validation and all callbacks before this one.
    - ``health/memory_gib``: what the first process holds; ``health/cuda_peak_gib``: the largest so far that it had in
      use on its GPU.

    Args:
        enabled: False switches the callback off.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__(enabled)
        self._epoch_end = self._mark = 0.0  # when the last epoch ended; since when training is not yet counted
        self._training = 0.0  # seconds of this epoch
        self._images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_end = self._mark = perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = perf_counter()
        self._training = 0.0
        self._images = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        every = getattr(trainer, "log_every_n_steps", 0)
        if self.disabled(trainer) or not every or (trainer.global_step + 1) % every:
            return
        norm = gradient_norm(pl_module)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm /= scaler.get_scale()  # a fused optimiser divides in its own step, which is still to come
        write_scalars(trainer, {"train/lr": optimizer.param_groups[0]["lr"], "health/gradient_norm": norm})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = perf_counter()
        self._training += now - self._mark
        self._mark = now
        self._images += len(batch if isinstance(batch, Tensor) else batch[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = perf_counter()  # validation in mid-epoch is not training's time

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.disabled(trainer):
            return
        now = perf_counter()
        values = {"health/epoch_seconds": now - self._epoch_end}
        if self._training > 0:
            values["health/images_per_second"] = self._images * trainer.world_size / self._training
        memory = process_memory()
        if memory is not None:
            values["health/memory_gib"] = memory
        if pl_module.device.type == "cuda":
            values["health/cuda_peak_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        self._epoch_end = now
        write_scalars(trainer, values)
