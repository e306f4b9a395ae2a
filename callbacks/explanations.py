"""Explanations: where in eight images the evidence for the network's answer lies."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks import base
from callbacks.base import EveryNEpochs, Stage
from callbacks.pure.heat import grad_cam, occlusion
from callbacks.pure.heat_panel import heat_panel


class Explanations(EveryNEpochs):
    """Draw heat maps over the images of :class:`~callbacks.predictions.Predictions`, by captum, at the end.

    *Grad-CAM*: the last convolution's maps, each weighted by how much the label's log-probability rises with it.
    *Occlusion*: how far the log-probability falls where a square of a quarter of the image's width is grey. Both are of
    the label that the network says, right or wrong. The image goes to every logger as
    ``explanations/test`` and to ``explanations/test_epoch_010.png`` in the run's folder; ``val`` likewise.

    Args:
        every_n_epochs: 1 draws after every epoch too; 0 only at the end of ``fit`` and of ``test``.
        after_fit: False leaves out the look at the end of fit, where a test of the best checkpoint follows anyway.
        num_images: How many.
        enabled: False switches the callback off. Without captum (``pip install -e ".[explain]"``) it warns.

    Source:
        Selvaraju et al. 2017 (Grad-CAM); Zeiler and Fergus 2014, section 4.2 (occlusion).
    """

    at_start = False
    at_test = True
    of_datamodule = ("class_names", "query_dataloader", "to_rgb")
    of_model = ("net", "log_probabilities")

    def __init__(
        self, every_n_epochs: int = 0, after_fit: bool = True, num_images: int = 8, enabled: bool = True
    ) -> None:
        super().__init__(every_n_epochs, enabled)
        base.check_at_least(1, num_images=num_images)
        self.at_end = after_fit
        self.num_images = num_images

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        if find_spec("captum") is None:
            self.warn('captum is not there, so nothing is explained. Run pip install -e ".[explain]".')
            return
        model = base.model_of(pl_module)
        # The test's tensors are of no use to a gradient unless made outside of its inference mode.
        with torch.inference_mode(False), base.looking(pl_module):
            fetched = base.varied_images(trainer, stage, self.num_images)
            if fetched is None:
                self.warn(f"no {stage} images to explain.")
                return
            images, targets = fetched
            probabilities = base.forward(trainer, model.log_probabilities, images).exp()
            if bool(probabilities.isnan().any()):
                self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
                return
            labels = probabilities.argmax(1)

            def log_probabilities(images: Tensor) -> Tensor:
                return base.forward(trainer, model.log_probabilities, images)

            heats = {
                "Grad-CAM": grad_cam(log_probabilities, model.net, images, labels),
                "occlusion": occlusion(log_probabilities, images, labels),
            }
            said = [(label, float(probabilities[i, label])) for i, label in enumerate(labels.tolist())]
            rgb = base.rgb_of(trainer, images).cpu()
        names, title = base.datamodule_of(trainer).class_names, f"{stage} images after epoch {epochs}"
        self.draw(trainer, "explanations", stage, epochs, heat_panel(rgb, heats, said, targets.tolist(), names, title))
