"""EmbeddingProjector: fc7's features of a few hundred images, for TensorBoard's projector and as a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer

from callbacks import base
from callbacks.base import EveryNEpochs, Stage
from callbacks.pure.embedding_map import SPRITE, embedding_map, principal_axes

_BATCH = 128


class EmbeddingProjector(EveryNEpochs):
    """Write fc7's features of some validation images, at the end of fit.

    Every TensorBoard logger's projector tab gets them with their images as sprites and the names of their classes, as
    ``fc7``; they are turned by :func:`principal_axes`, which leaves distances as they are. The same on two axes goes to
    the images tab as ``embedding/val`` and to ``embedding/val_epoch_010.png`` in the run's folder.

    Args:
        every_n_epochs: 0 writes at the end of fit only; 5 also after every fifth epoch.
        num_images: The same in the whole run, spread evenly over the validation images.
        enabled: False switches the callback off.

    Source:
        Krizhevsky et al. 2012, section 6.1: images are alike if their fc7 activations are near.
    """

    at_start = False
    of_datamodule = ("class_names", "query_dataloader", "to_rgb")
    of_model = ("embed",)

    def __init__(self, every_n_epochs: int = 0, num_images: int = 300, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        base.check_at_least(2, num_images=num_images)
        self.num_images = num_images

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        with base.looking(pl_module):
            fetched = base.evenly_spaced_images(trainer, stage, self.num_images)
            if fetched is None:
                self.warn("no validation images to embed.")
                return
            images, targets = fetched
            embed = base.model_of(pl_module).embed
            features = [base.forward(trainer, embed, part).flatten(1) for part in images.split(_BATCH)]
            rgb = base.rgb_of(trainer, images)
            sprites = F.interpolate(rgb, (SPRITE, SPRITE), mode="bilinear", antialias=True).clamp(0, 1).cpu()
        embeddings = torch.cat(features).cpu()
        if not bool(embeddings.isfinite().all()):
            self.warn(f"features are NaN or infinite after epoch {epochs}: nothing shown.")
            return
        points = principal_axes(embeddings)
        classes, names = targets.tolist(), base.datamodule_of(trainer).class_names
        base.add_to_tensorboards(
            trainer,
            "embedding",
            points,
            metadata=[names[target] for target in classes],
            label_img=sprites,  # float in [0, 1]: uint8 would come out white
            global_step=trainer.global_step,
            tag="fc7",
        )
        flat = F.pad(points, (0, max(0, 2 - points.shape[1])))[:, :2]
        picture = embedding_map(flat, sprites, classes, names, f"{stage} images after epoch {epochs}")
        self.draw(trainer, "embedding", stage, epochs, picture)
