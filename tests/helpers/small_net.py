"""A network of a few thousand numbers that offers callbacks what AlexNetClassifier does, and a Trainer around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from datamodules import CIFAR10DataModule
from datamodules.augment import centre_crop
from helpers.small import SmallAlexNet


class SmallNet(LightningModule):
    """Dropout's masks betray a random number drawn elsewhere; ``modes`` whether a callback left another mode behind."""

    def __init__(self, lr: float = 0.1, groups: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = SmallAlexNet(groups=groups)
        self.frozen = nn.Dropout()  # stays in evaluation mode throughout
        self.losses: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def on_train_start(self) -> None:
        self.frozen.eval()

    def embed(self, images: Tensor) -> Tensor:
        return self.net.embed(images)

    def log_probabilities(self, images: Tensor) -> Tensor:
        if images.dim() == 5:
            return F.log_softmax(self.net(images[:, 4]), dim=1)
        return F.log_softmax(self.net(images), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.modes.append((self.training, self.frozen.training))
        loss = F.nll_loss(self.log_probabilities(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        log_probabilities = self.log_probabilities(batch[0])
        self.log("val/top1", (log_probabilities.argmax(1) == batch[1]).float().mean())
        return {"log_probabilities": log_probabilities}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"log_probabilities": self.log_probabilities(batch[0])}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def to_tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)


def trainer_for(folder: Path, *callbacks: Callback, logger: Any = None, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=to_tensorboard(folder) if logger is None else logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "log_every_n_steps": 1} | options,
    )


def new_net(**arguments: Any) -> SmallNet:
    """The network that a ``run`` starts from."""
    torch.manual_seed(1)
    return SmallNet(**arguments)


def run(
    folder: Path, data: LightningDataModule, *callbacks: Callback, model: SmallNet | None = None, **options: Any
) -> tuple[Any, Trainer]:
    """Fit; TensorBoard logs into ``folder`` unless told otherwise."""
    model, ckpt_path = model or new_net(), options.pop("ckpt_path", None)
    trainer = trainer_for(folder, *callbacks, **options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, trainer


def events(folder: Path) -> EventAccumulator:
    guidance = {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}
    accumulator = EventAccumulator(str(folder), size_guidance=guidance)
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Step -> value."""
    return {e.step: e.value for e in events(folder).Scalars(tag)}


def png(path: Any) -> np.ndarray:
    """Pixels of a file by its path, or open."""
    return np.array(Image.open(path))


def inputs_of(data: CIFAR10DataModule, stage: str, places: Any = slice(None)) -> tuple[Tensor, Tensor]:
    """The network's input for a stage's images at these places, and their targets."""
    raw, targets = data.images_in("test" if stage == "test" else "train")
    chosen = (torch.arange(len(raw)) if stage == "test" else getattr(data.split, stage))[places]
    return data._to_input(centre_crop(raw[chosen], data.crop_size)), targets[chosen]


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every call of a function from now on, which does what it did."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: calls.append(arguments) or real(*arguments))
    return calls
