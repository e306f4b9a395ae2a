"""ConfusionMatrix: which classes the network takes for which, how often it is right on each, and on which images."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from callbacks.base import (
    OfPredictions,
    Stage,
    check_at_least,
    datamodule_of,
    gather_rows,
    rgb_of,
    write_text,
)
from callbacks.pure.canvas import to_uint8
from callbacks.pure.confusion_panel import Pair, confusion_panel, confusion_text, most_confused

THUMBNAIL = 32  # pixels: CIFAR-10's own size, so hundreds of kept images are nothing


class ConfusionMatrix(OfPredictions):
    """Draw and write down the confusion matrix, per-class accuracy and the most confused pairs, of val and of test.

    It counts what validation and test predict anyway: see :class:`~callbacks.base.OfPredictions`. Batches must be
    (images, targets), images ``(B, 3, H, W)`` or ``(B, crops, 3, H, W)`` like section 4.1's.

    The picture goes to every logger as ``confusion/val`` or ``confusion/test``, the tables to TensorBoard's
    text tab under the same name; both to ``confusion/val_epoch_003.png`` and ``.md`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the end of fit. Validation runs of its own and tests are
            always drawn.
        pairs: How many of the most confused pairs are shown.
        examples: How many images of each, those of whose wrong class the network was surest.
        enabled: False switches the callback off.

    Attributes:
        counts: ``(C, C)`` int64 on the CPU, of the newest complete validation or test, over all processes; row: right
            class, column: predicted class. None before the first.
    """

    of_datamodule = ("class_names", "to_rgb")

    def __init__(self, every_n_epochs: int = 1, pairs: int = 3, examples: int = 5, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        check_at_least(0, pairs=pairs, examples=examples)
        self.pairs = pairs
        self.examples = examples
        self.counts: Tensor | None = None
        self._counting: Tensor | None = None  # this process's, of the pass that goes on
        # (target, predicted) -> the wrong class's probability and the image's thumbnail, surest first
        self._examples: dict[tuple[int, int], list[tuple[float, Tensor]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.counts = None

    def begin(self) -> None:
        self._counting = None
        self._examples = {}

    def take(self, trainer: Trainer, images: Tensor, targets: Tensor, log_probabilities: Tensor) -> None:
        classes = log_probabilities.shape[1]
        highest, predicted = log_probabilities.max(1)
        counts = multiclass_confusion_matrix(predicted, targets, classes, validate_args=False)
        self._counting = counts if self._counting is None else self._counting + counts
        if self.examples and self.pairs:
            self._keep(trainer, images, targets.tolist(), predicted.tolist(), highest.float().exp().tolist())

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        counting = self._counting
        if counting is None:  # more processes than images
            classes = len(datamodule_of(trainer).class_names)
            counting = torch.zeros((classes, classes), dtype=torch.int64, device=trainer.strategy.root_device)
        self.counts = cast(Tensor, trainer.strategy.reduce(counting, reduce_op="sum")).cpu()
        self._counting = None

    def _keep(
        self, trainer: Trainer, images: Tensor, targets: list[int], predicted: list[int], surest: list[float]
    ) -> None:
        """Keep the images of whose wrong class the network is surest: a few for each pair of classes."""
        if images.ndim == 5:  # the crop in the middle
            crops = images.shape[1]
            images = images[:, crops // 2 - (crops > 1)]
        for image, target, said, probability in zip(images, targets, predicted, surest, strict=True):
            kept = self._examples.setdefault((target, said), [])
            least = kept[-1][0] if len(kept) == self.examples else -1.0
            if target != said and probability > least:
                rgb = rgb_of(trainer, image[None])
                (small,) = F.interpolate(rgb, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
                kept.append((probability, to_uint8(small)))
                kept.sort(key=lambda example: -example[0])
                del kept[self.examples :]

    def show(self, trainer: Trainer, stage: Stage, epochs: int) -> None:
        assert self.counts is not None
        names = datamodule_of(trainer).class_names
        pairs = most_confused(self.counts, self.pairs)
        examples = self._gathered(trainer, pairs)
        right, total = int(self.counts.diagonal().sum()), int(self.counts.sum())
        accuracy = f"{right} of {total} right, {100 * right / max(total, 1):.2f} %"
        title = f"{stage} images after epoch {epochs}: {accuracy}"
        self.draw(trainer, "confusion", stage, epochs, confusion_panel(self.counts, names, examples, title))
        text = confusion_text(self.counts, names, pairs, title)
        write_text(trainer, f"confusion/{stage}", text, f"confusion/{stage}_epoch_{epochs:03d}.md")

    def _gathered(self, trainer: Trainer, pairs: list[Pair]) -> dict[Pair, list[Tensor]]:
        """The surest mistakes of all processes, for each pair: ``(3, h, w)`` float RGB in ``[0, 1]``."""
        if not pairs or not self.examples:
            return {}
        probabilities = torch.full((len(pairs), self.examples), -1.0)
        images = torch.zeros((len(pairs), self.examples, 3, THUMBNAIL, THUMBNAIL), dtype=torch.uint8)
        for row, pair in enumerate(pairs):
            for column, example in enumerate(self._examples.get(pair[:2], [])):
                probabilities[row, column], images[row, column] = example
        every_probability, every_image = (gather_rows(trainer, kept, 1) for kept in (probabilities, images))
        found = {}
        for pair, chances, pictures in zip(pairs, every_probability, every_image, strict=True):
            chances, order = chances.sort(descending=True, stable=True)
            found[pair] = list(pictures[order][chances >= 0][: self.examples].float() / 255)
        return found
