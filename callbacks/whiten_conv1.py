"""WhitenConv1: conv1 begins with filters that whiten the training images' patches."""

from __future__ import annotations

from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from callbacks.base import check_at_least, check_contracts, datamodule_of, fetch, looking, model_of
from callbacks.pure.choosing import evenly_spaced
from callbacks.pure.whitening import whitening_filters

BATCH = 100  # images at a time: 60 MB at 224 pixels


class WhitenConv1(Callback):
    """Set conv1's weights to :func:`~callbacks.pure.whitening.whitening_filters` before a run's first step.

    Its biases are 0 then. The filters are trained on like all weights, and a run that goes on keeps what it has
    learned. Not the paper's initialisation: it takes the place of ``init``'s for this one layer.

    Args:
        images: Training images, evenly spaced, whose patches are looked at.

    Raises:
        ValueError: If ``images`` is below 1.
        TypeError: If the run has no DataModule with a gallery, or the model no ``net``.
    """

    of_datamodule = ("gallery_dataloader",)
    of_model = ("net",)

    def __init__(self, images: int = 2000) -> None:
        check_at_least(1, images=images)
        self.images = images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_contracts(self, trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path:
            return
        conv1 = cast(nn.Conv2d, model_of(pl_module).net.conv1)
        with looking(pl_module):
            gallery = datamodule_of(trainer).gallery_dataloader()
            places = evenly_spaced(len(gallery.dataset), self.images)
            batches = (fetch(trainer, gallery, places[i : i + BATCH])[0] for i in range(0, len(places), BATCH))
            size = conv1.kernel_size[0]
            filters = whitening_filters(batches, conv1.out_channels, size, max(1, size // 2))
            conv1.weight.copy_(trainer.strategy.broadcast(filters))
            if conv1.bias is not None:
                torch.nn.init.zeros_(conv1.bias)
