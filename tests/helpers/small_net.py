"""A network of a few thousand numbers that offers callbacks what AlexNetClassifier does, and a Trainer around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn


class Layers(nn.Module):
    """24-pixel images to 10 classes, with layers of AlexNet's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=4)  # (B, 8, 5, 5)
        self.conv2 = nn.Conv2d(8, 6, 3, groups=2)  # (B, 6, 3, 3)
        self.fc7 = nn.Linear(54, 12)
        self.fc8 = nn.Linear(12, 10)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def embed(self, images: Tensor) -> Tensor:
        x = self.act(self.conv2(self.act(self.conv1(images))))
        return self.drop(self.act(self.fc7(x.flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc8(self.embed(images))


class SmallNet(LightningModule):
    """Dropout's masks betray a random number drawn elsewhere; ``modes`` whether a callback left evaluation mode on."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Layers()
        self.losses: list[Tensor] = []
        self.modes: list[bool] = []

    def embed(self, images: Tensor) -> Tensor:
        return self.net.embed(images)

    def log_probabilities(self, images: Tensor) -> Tensor:
        if images.dim() == 5:
            return F.log_softmax(self.net(images[:, 4]), dim=1)
        return F.log_softmax(self.net(images), dim=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.modes.append(self.training)
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


def trainer_for(folder: Path, *callbacks: Callback, logger: Any = None, epochs: int = 2, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
        if logger is None
        else logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, "log_every_n_steps": 1} | options,
    )


def run(folder: Path, data: LightningDataModule, *callbacks: Callback, **options: Any) -> tuple[SmallNet, Trainer]:
    """Fit; TensorBoard logs into ``folder`` unless told otherwise."""
    torch.manual_seed(1)
    model = SmallNet()
    trainer = trainer_for(folder, *callbacks, **options)
    trainer.fit(model, datamodule=data)
    return model, trainer


def events(folder: Path) -> EventAccumulator:
    guidance = {"images": 0, "scalars": 0, "tensors": 0, "histograms": 0}
    accumulator = EventAccumulator(str(folder), size_guidance=guidance)
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Step -> value."""
    return {e.step: e.value for e in events(folder).Scalars(tag)}


def png(path: Path) -> np.ndarray:
    from PIL import Image

    return np.array(Image.open(path))
