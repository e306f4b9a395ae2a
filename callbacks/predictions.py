"""Predictions: what the network makes of eight images, with its five most probable labels: Figure 4, left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.at_epochs import AtEpochs, HasImages, evenly_spaced, fetch
from callbacks.images import FRAME, INK, RIGHT, THUMB, _Label, _lettered, _paste, _shortened
from callbacks.retrieval import spread_queries
from callbacks.writing import looking, write_image

OTHER = (141, 160, 203)  # a bar that is not the right label's: blue, which no pair of eyes takes for RIGHT's green
TRACK = (240, 240, 240)  # what a bar of probability 1 would fill
COLUMNS, LEFT, TOP = 4, 24, 62
BAR_HEIGHT, BAR_STEP, BAR_WIDTH, NAME_WIDTH = 15, 20, 84, 96  # pixels
CELL_WIDTH = NAME_WIDTH + BAR_WIDTH + 48
BARS_TOP = THUMB + 2 * FRAME + 30  # below the cell's upper edge: first the image and the name of what it shows


def prediction_panel(
    images: Tensor, probabilities: Tensor, targets: Sequence[int], class_names: Sequence[str], title: str = ""
) -> Tensor:
    """Draw images, each over its most probable labels as bars; the right label's bar is green.

    Args:
        images: ``(N, 3, h, w)`` float RGB in ``[0, 1]``.
        probabilities: ``(N, C)`` float in ``[0, 1]``.
        targets: N right labels.
        class_names: C names.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8. Cell ``i`` begins at column ``LEFT + (i % COLUMNS) * CELL_WIDTH``; in it bar ``b``, for
        the ``b``-th most probable of at most five labels, at row ``BARS_TOP + b * BAR_STEP`` and ``NAME_WIDTH`` pixels
        in; it is ``probability * BAR_WIDTH`` pixels long, at least 1.

    Raises:
        ValueError: If the shapes don't fit or a probability is NaN.

    Source:
        Krizhevsky et al. 2012, Figure 4, left: eight test images, the five labels most probable under the model.
    """
    count, classes = len(images), len(class_names)
    if images.ndim != 4 or images.shape[1] != 3 or not count:
        raise ValueError(f"images must be (N, 3, h, w), got {tuple(images.shape)}")
    if probabilities.shape != (count, classes) or len(targets) != count:
        raise ValueError(
            f"probabilities must be ({count}, {classes}) and targets {count} labels, got "
            f"{tuple(probabilities.shape)} and {len(targets)}"
        )
    if bool(probabilities.isnan().any()):
        raise ValueError("probabilities hold NaN")
    shown = min(5, classes)
    top = probabilities.float().cpu().sort(dim=1, descending=True, stable=True)
    cell_height = BARS_TOP + shown * BAR_STEP + 22
    rows, columns = -(-count // COLUMNS), min(COLUMNS, count)
    canvas = torch.full((3, TOP + rows * cell_height, max(LEFT + columns * CELL_WIDTH, 620)), 255, dtype=torch.uint8)
    labels = [
        _Label(LEFT, 19, title, size=11, weight="bold"),
        _Label(LEFT, 40, "the five most probable labels; green: the right one" if shown == 5 else "green: right"),
    ]
    for i in range(count):
        y, x = TOP + i // COLUMNS * cell_height, LEFT + i % COLUMNS * CELL_WIDTH
        middle = x + (NAME_WIDTH + BAR_WIDTH) / 2
        _paste(canvas, images[i], y, int(middle) - THUMB // 2 - FRAME, frame=None)
        name = _shortened(class_names[targets[i]])
        labels.append(_Label(middle, y + THUMB + 2 * FRAME + 10, name, size=9.5, align="center", weight="bold"))
        for bar in range(shown):
            label, probability = int(top.indices[i, bar]), float(top.values[i, bar])
            right = label == targets[i]
            row, column = y + BARS_TOP + bar * BAR_STEP, x + NAME_WIDTH
            _fill(canvas, row, column, BAR_WIDTH, TRACK)
            _fill(canvas, row, column, max(1, round(probability * BAR_WIDTH)), RIGHT if right else OTHER)
            style = {"colour": RIGHT if right else INK, "weight": "bold" if right else "normal"}
            name, line = _shortened(class_names[label]), row + BAR_HEIGHT / 2
            labels.append(_Label(column - 6, line, name, align="right", **style))  # type: ignore[arg-type]
            labels.append(_Label(column + BAR_WIDTH + 5, line, f"{100 * probability:.0f} %", size=7.5))
    return _lettered(canvas, labels)


def _fill(canvas: Tensor, top: int, left: int, width: int, colour: tuple[int, int, int]) -> None:
    canvas[:, top : top + BAR_HEIGHT, left : left + width] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]


class Predicts(Protocol):
    """What the callback asks of the LightningModule."""

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to log-probabilities ``(B, C)``."""


class Predictions(AtEpochs):
    """Draw eight images with their five most probable labels, before the first step, every few epochs and at the end.

    In ``fit`` they are validation images, in ``test`` test images; the same in the whole run, of classes spread over
    all, so TensorBoard's slider tells how the network's opinion changed. The image goes to every TensorBoard logger
    as ``predictions/val`` or ``predictions/test`` and to ``predictions/val_epoch_003.png`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the start and at the end.
        num_images: 8 in the paper.
        enabled: False switches the callback off.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If model or DataModule lack what it needs (when fit or test begins).

    Source:
        Krizhevsky et al. 2012, Figure 4, left.
    """

    of_model: ClassVar[tuple[str, ...]] = ("log_probabilities",)

    def __init__(self, every_n_epochs: int = 1, num_images: int = 8, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images
        self._places: dict[str, list[int]] = {}  # stage -> which images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Other data may lie in other places."""
        super().setup(trainer, pl_module, stage)
        self._places.clear()

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Draw the validation images."""
        when = f"after epoch {epochs} (step {trainer.global_step})" if trainer.global_step else "before training"
        self._draw(trainer, pl_module, "val", epochs, when)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test images."""
        if not self.off(trainer):
            epochs = self.epochs_under_test(trainer)
            self._draw(trainer, pl_module, "test", epochs, f"after epoch {epochs}")

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, stage: Literal["val", "test"], epochs: int, when: str
    ) -> None:
        datamodule = cast(HasImages, trainer.datamodule)  # type: ignore[attr-defined]
        loader = datamodule.query_dataloader(stage)
        size = len(loader.dataset)  # type: ignore[arg-type]
        if not size:
            self.warn(f"no {stage} images to predict.")
            return
        with looking(pl_module):
            if stage not in self._places:  # classes are known once images are fetched: so choose among some
                places = evenly_spaced(size, 8 * self.num_images)
                chosen = spread_queries(fetch(trainer, loader, places)[1].tolist(), self.num_images)
                self._places[stage] = [places[i] for i in chosen]
            images, targets = fetch(trainer, loader, self._places[stage])
            with trainer.precision_plugin.forward_context():  # the precision of training and validation
                probabilities = cast(Predicts, pl_module).log_probabilities(images).float().exp()
            rgb = datamodule.to_rgb(images.float()).cpu()
        if bool(probabilities.isnan().any()):
            self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
            return
        panel = prediction_panel(rgb, probabilities, targets.tolist(), datamodule.class_names, f"{stage} images {when}")
        write_image(trainer, f"predictions/{stage}", f"predictions/{stage}_epoch_{epochs:03d}.png", panel)
