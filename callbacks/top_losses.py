"""TopLosses: the test images that the network is most wrong about, and what it says of each one, as CSV."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.base import (
    Looking,
    check_at_least,
    datamodule_of,
    fetch,
    gather_rows,
    log_probabilities_in,
    or_left_out,
    rgb_of,
    run_folder,
)
from callbacks.checkpoints.files import write_whole
from callbacks.pure.loss_panel import Scored, highest_losses, loss_panel, predictions_csv


class TopLosses(Looking):
    """Draw the test images of the highest loss, and write down the predictions of all test images.

    It takes what the test predicts anyway, of ten crops too: no image goes through the network for it. For that the
    LightningModule's ``test_step`` must return a mapping with ``log_probabilities`` ``(B, C)``.

    The picture goes to every logger as ``top_losses/test`` and to ``top_losses/test_epoch_010.png`` in the
    run's folder, the predictions to ``predictions_test.csv`` there: a line for each image that was tested, by its place
    in the test split from 0, which is its place in what ``Trainer.predict`` returns.

    Args:
        num_images: How many images are drawn; 0 writes the predictions alone.
        enabled: False switches the callback off.

    Raises:
        TypeError: If ``test_step`` returns no log-probabilities (at the first batch).
    """

    of_datamodule = ("class_names", "query_dataloader", "to_rgb")

    def __init__(self, num_images: int = 20, enabled: bool = True) -> None:
        super().__init__(enabled)
        check_at_least(0, num_images=num_images)
        self.num_images = num_images
        # This process's, of each batch: (B, 4) float32, target, prediction, and the log-probabilities of both.
        self._rows: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if not self.disabled(trainer):
            log_probabilities, targets = log_probabilities_in(outputs, self, pl_module), batch[1]
            highest, predicted = log_probabilities.max(1)
            right = log_probabilities.gather(1, targets[:, None])[:, 0]
            self._rows.append(torch.stack([c.float() for c in (targets, predicted, right, highest)], 1))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.disabled(trainer):
            return
        scored = self._gathered(trainer)
        datamodule, folder = datamodule_of(trainer), run_folder(trainer)
        if trainer.is_global_zero:
            with or_left_out():
                write_whole(folder / "predictions_test.csv", predictions_csv(scored, datamodule.class_names))
        epochs = self.epochs_under_test(trainer)
        if bool(scored.losses.isnan().any()):
            self.warn(f"losses are NaN after epoch {epochs}: no image shown.")
        elif self.num_images:
            worst = highest_losses(scored, self.num_images)
            images, _ = fetch(trainer, datamodule.query_dataloader("test"), worst.places.tolist())
            title = f"test images after epoch {epochs}: highest losses of {len(scored.places):,}"
            panel = loss_panel(rgb_of(trainer, images), worst, datamodule.class_names, title)
            self.draw(trainer, "top_losses", "test", epochs, panel)

    def _gathered(self, trainer: Trainer) -> Scored:
        """All processes' images, in the order of the test split."""
        loader: Any = trainer.test_dataloaders
        rows = torch.cat([torch.zeros(0, 4), *(rows.cpu() for rows in self._rows)])  # none: more processes than images
        in_set = torch.tensor(list(loader.sampler)[: len(rows)], dtype=torch.int64)
        places = torch.as_tensor(getattr(loader.dataset, "indices", range(len(loader.dataset))))[in_set]
        # float32 holds every integer up to 16 million.
        rows = gather_rows(trainer, torch.cat([places[:, None].float(), rows], 1))
        place, target, predicted, right, highest = rows[rows[:, 0].argsort()].T
        return Scored(place.long(), target.long(), predicted.long(), highest.exp(), 0 - right)  # no loss of -0
