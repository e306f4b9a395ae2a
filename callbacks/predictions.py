"""Predictions: what the network makes of eight images, with its five most probable labels: Figure 4, left."""

from __future__ import annotations

from lightning import LightningModule, Trainer

from callbacks.base import (
    EveryNEpochs,
    Stage,
    check_at_least,
    datamodule_of,
    forward,
    looking,
    model_of,
    rgb_of,
    varied_images,
)
from callbacks.pure.prediction_panel import prediction_panel


class Predictions(EveryNEpochs):
    """Draw eight images with their five most probable labels, before the first step, every few epochs and at the end.

    In ``fit`` they are validation images, in ``test`` test images; the same in the whole run, of classes spread over
    all, so TensorBoard's slider tells how the network's opinion changed. The image goes to every logger
    as ``predictions/val`` or ``predictions/test`` and to ``predictions/val_epoch_003.png`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the start and at the end.
        num_images: 8 in the paper.
        enabled: False switches the callback off.

    Source:
        Krizhevsky et al. 2012, Figure 4, left.
    """

    at_test = True
    of_datamodule = ("class_names", "query_dataloader", "to_rgb")
    of_model = ("log_probabilities",)

    def __init__(self, every_n_epochs: int = 1, num_images: int = 8, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        check_at_least(1, num_images=num_images)
        self.num_images = num_images

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        with looking(pl_module):
            fetched = varied_images(trainer, stage, self.num_images)
            if fetched is None:
                self.warn(f"no {stage} images to predict.")
                return
            images, targets = fetched
            probabilities = forward(trainer, model_of(pl_module).log_probabilities, images).exp()
            rgb = rgb_of(trainer, images).cpu()
        if bool(probabilities.isnan().any()):
            self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
            return
        title = f"{stage} images after epoch {epochs}"
        if stage == "val":
            title = f"{title} (step {trainer.global_step})" if trainer.global_step else "val images before training"
        panel = prediction_panel(rgb, probabilities, targets.tolist(), datamodule_of(trainer).class_names, title)
        self.draw(trainer, "predictions", stage, epochs, panel)
