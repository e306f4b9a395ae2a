"""Predictions: what the network makes of eight images, with its five most probable labels: Figure 4, left."""

from __future__ import annotations

from lightning import LightningModule, Trainer

from callbacks.base import EveryNEpochs, Stage, check_at_least, datamodule_of, fetch, forward, looking, model_of, rgb_of
from callbacks.pure.choosing import evenly_spaced, spread_queries
from callbacks.pure.prediction_panel import prediction_panel


class Predictions(EveryNEpochs):
    """Draw eight images with their five most probable labels, before the first step, every few epochs and at the end.

    In ``fit`` they are validation images, in ``test`` test images; the same in the whole run, of classes spread over
    all, so TensorBoard's slider tells how the network's opinion changed. The image goes to every TensorBoard logger
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
        self._places: dict[str, list[int]] = {}  # stage -> which images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._places.clear()  # other data may lie in other places

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        datamodule = datamodule_of(trainer)
        loader = datamodule.query_dataloader(stage)
        size = len(loader.dataset)
        if not size:
            self.warn(f"no {stage} images to predict.")
            return
        with looking(pl_module):
            if stage not in self._places:  # classes are known once images are fetched: so choose among some
                places = evenly_spaced(size, 8 * self.num_images)
                chosen = spread_queries(fetch(trainer, loader, places)[1].tolist(), self.num_images)
                self._places[stage] = [places[i] for i in chosen]
            images, targets = fetch(trainer, loader, self._places[stage])
            probabilities = forward(trainer, model_of(pl_module).log_probabilities, images).exp()
            rgb = rgb_of(trainer, images).cpu()
        if bool(probabilities.isnan().any()):
            self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
            return
        title = f"{stage} images after epoch {epochs}"
        if stage == "val":
            title = f"{title} (step {trainer.global_step})" if trainer.global_step else "val images before training"
        panel = prediction_panel(rgb, probabilities, targets.tolist(), datamodule.class_names, title)
        self.draw(trainer, "predictions", stage, epochs, panel)
