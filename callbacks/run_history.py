"""RunHistory: what a run measured, epoch by epoch, so that its summary can hold it."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoints.progress import looks_at_epochs_end

METRICS = ("loss", "top1", "top5", "ece")  # the last is Calibration's, where that looks


class RunHistory(Callback):
    """Keep every epoch's metrics, learning rate and time. A resumed run goes on with the history of before.

    Attributes:
        epochs: One entry an epoch: ``epoch`` from 1; ``train_loss``, ``train_top1``, ``train_top5``; ``val_loss``,
            ``val_top1``, ``val_top5``, ``val_ece`` of its last validation, if it had one; ``lr`` after its last step;
            ``seconds``, with validation and all callbacks before this one. Accuracies are in ``[0, 1]``.
        resumed: How often the run went on from a checkpoint.
        before: Seconds of training in the processes before this one.
        images: How many images the longest epoch of training, the newest validation and the test had, in all processes:
            ``train``, ``val`` and ``test``.
        chosen: What chooses the best epoch, which its line on the terminal says; None where nothing does.
        validations: The ``val_loss``, ``val_top1`` and so on of each validation, by optimiser steps before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self.resumed = 0
        self.chosen: ModelCheckpoint | None = None
        self.images: dict[str, int] = {}
        self.validations: dict[int, dict[str, float]] = {}
        self._validated = 0  # validations before this epoch
        self._counted = {"train": 0, "val": 0, "test": 0}  # images of this process, in the pass that is going on
        self.before = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, in this process and in those before it."""
        return self.before + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        passes = {"images": self.images, "counted": self._counted["train"], "validations": self.validations}
        passes["validated"] = self._validated
        return {"epochs": self.epochs, "resumed": self.resumed, "seconds": self.seconds, **passes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [_figures(entry, "epoch", "seconds") for entry in state_dict["epochs"]]
        self.resumed = state_dict["resumed"] + 1
        self.before = state_dict["seconds"]
        if "images" in state_dict:  # not before this class counted them
            self.images = _figures(state_dict["images"])
            self.validations = {int(step): _figures(entry) for step, entry in state_dict["validations"].items()}
            self._counted["train"] = state_dict["counted"]
            self._validated = state_dict.get("validated", len(self.validations) - bool(state_dict.get("validation")))

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
            self.validations[trainer.global_step] = metrics_of(trainer, "val")
            self.images["val"] = self._in_all_processes(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images["test"] = self._in_all_processes(trainer, "test")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lr = {"lr": float(trainer.optimizers[0].param_groups[0]["lr"])} if trainer.optimizers else {}
        before = sum(entry["seconds"] for entry in self.epochs)
        validations = list(self.validations.values())[self._validated :]  # this epoch's
        newest = validations[-1] if validations else {}
        entry = {"epoch": trainer.current_epoch + 1, **metrics_of(trainer, "train"), **newest, **lr}
        self.epochs.append({**entry, "seconds": round(self.seconds - before, 3)})
        pl_module.print(epoch_line(self.epochs[-1], trainer.max_epochs, self._is_best(trainer)))
        sys.stdout.flush()  # a file's readers see it now
        self._validated = len(self.validations)
        self.images["train"] = max(self.images.get("train", 0), self._in_all_processes(trainer, "train"))

    def _is_best(self, trainer: Trainer) -> bool:
        """Whether the newest epoch had the best of all values so far of what the best checkpoint is chosen by."""
        key = ((self.chosen and self.chosen.monitor) or "").replace("/", "_")
        told = looks_at_epochs_end(self.chosen) if self.chosen else None
        measured, before = list(self.validations.values()), self._validated
        if not key.startswith("val_") or (trainer.val_check_interval == 1 if told is None else told):
            measured, before = self.epochs, len(self.epochs) - 1  # of several validations in an epoch the last
        sign = 1 if self.chosen and self.chosen.mode == "max" else -1
        earlier, now = ([sign * e[key] for e in part if key in e] for part in (measured[:before], measured[before:]))
        return max(now, default=-math.inf) > max(earlier, default=-math.inf)


def epoch_line(entry: dict[str, float], epochs: int | None, best: bool) -> str:
    """What the terminal says of an epoch: its entry in the history, with what was not measured left out."""
    of = f"/{epochs}" if epochs and epochs > 0 else ""
    words = [f"epoch {entry['epoch']:.0f}{of}:"]
    for stage in ("train", "val"):
        names = {"loss": "loss", "top1": "top-1"} if stage == "train" else {"top1": "top-1", "top5": "top-5"}
        values = {shown: entry[f"{stage}_{name}"] for name, shown in names.items() if f"{stage}_{name}" in entry}
        said = [f"{n} {v:.4f}" if n == "loss" else f"{n} {100 * v:.2f} %" for n, v in values.items()]
        words += [f"{stage} {' '.join(said)},"] if said else []
    return " ".join([*words, f"{entry['seconds']:.1f} s", *(["best"] if best else [])])


def _figures(entry: dict[str, Any], *needed: str) -> dict[str, Any]:
    """A copy of what a checkpoint holds of an epoch; a ValueError where that is no finite figures by name."""
    figures = all(isinstance(value, int | float) and not isinstance(value, bool) for value in entry.values())
    named = all(isinstance(name, str) for name in entry) and {*needed} <= entry.keys()
    if not (figures and named and all(map(math.isfinite, entry.values()))):
        raise ValueError(f"{entry}, expected an epoch's finite figures")
    return dict(entry)


def metrics_of(trainer: Trainer, stage: str) -> dict[str, float]:
    """What was measured in a stage, as ``val_top1``."""
    found = {name: trainer.callback_metrics.get(f"{stage}/{name}") for name in METRICS}
    return {f"{stage}_{name}": float(value) for name, value in found.items() if value is not None}
