"""RunHistory: what a run measured, epoch by epoch, so that its summary can hold it."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

METRICS = ("loss", "top1", "top5")


class RunHistory(Callback):
    """Keep every epoch's metrics, learning rate and time. A resumed run goes on with the history of before.

    Attributes:
        epochs: One entry an epoch: ``epoch`` from 1; ``train_loss``, ``train_top1``, ``train_top5``; ``val_loss``,
            ``val_top1``, ``val_top5`` of its last validation, if it had one; ``lr`` of its last step; ``seconds``, with
            validation and all callbacks before this one. Accuracies are in ``[0, 1]``.
        resumed: How often the run went on from a checkpoint.
        before: Seconds of training in the processes before this one.
        images: How many images the longest epoch of training, the newest validation and the test had, in all processes:
            ``train``, ``val`` and ``test``.
        validations: The ``val_loss``, ``val_top1`` and ``val_top5`` of each validation, by optimiser steps before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self.resumed = 0
        self.images: dict[str, int] = {}
        self.validations: dict[int, dict[str, float]] = {}
        self._validation: dict[str, float] = {}  # the newest of this epoch
        self._counted = {"train": 0, "val": 0, "test": 0}  # images of this process, in the pass that is going on
        self.before = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, in this process and in those before it."""
        return self.before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        passes = {"images": self.images, "counted": self._counted["train"], "validations": self.validations}
        newest = {"validation": self._validation}
        return {"epochs": self.epochs, "resumed": self.resumed, "seconds": self.seconds, **passes, **newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [dict(entry) for entry in state_dict["epochs"]]
        self.resumed = state_dict["resumed"] + 1
        self.before = state_dict["seconds"]
        if "images" in state_dict:  # not before this class counted them
            self.images, self.validations = dict(state_dict["images"]), dict(state_dict["validations"])
            self._validation, self._counted["train"] = dict(state_dict["validation"]), state_dict["counted"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counted["train"] = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counted["val"] = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counted["test"] = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, _: Any, batch: Any, *place: Any) -> None:
        self._counted["train"] += len(batch[0])

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, _: Any, batch: Any, *at: Any) -> None:
        self._counted["val"] += len(batch[0])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, _: Any, batch: Any, *place: Any) -> None:
        self._counted["test"] += len(batch[0])

    def _in_all_processes(self, trainer: Trainer, stage: str) -> int:
        counted = torch.tensor(self._counted[stage], device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(counted, reduce_op="sum"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation = self.validations[trainer.global_step] = _metrics(trainer, "val")
            self.images["val"] = self._in_all_processes(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images["test"] = self._in_all_processes(trainer, "test")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lr = {"lr": float(trainer.optimizers[0].param_groups[0]["lr"])} if trainer.optimizers else {}
        before = sum(entry["seconds"] for entry in self.epochs)
        entry = {"epoch": trainer.current_epoch + 1, **_metrics(trainer, "train"), **self._validation, **lr}
        self.epochs.append({**entry, "seconds": round(self.seconds - before, 3)})
        self._validation = {}
        self.images["train"] = max(self.images.get("train", 0), self._in_all_processes(trainer, "train"))


def _metrics(trainer: Trainer, stage: str) -> dict[str, float]:
    found = {name: trainer.callback_metrics.get(f"{stage}/{name}") for name in METRICS}
    return {f"{stage}_{name}": float(value) for name, value in found.items() if value is not None}
