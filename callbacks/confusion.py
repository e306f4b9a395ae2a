"""ConfusionMatrix: which classes the network takes for which, how often it is right on each, and on which images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from callbacks.at_epochs import AtEpochs, HasImages
from callbacks.images import FRAME, INK, RIGHT, THUMB, WRONG, _Label, _lettered, _paste, _shortened
from callbacks.writing import write_image, write_text

MATRIX_LEFT, MATRIX_TOP = 110, 84  # pixels, of cell (0, 0)
CELL_WIDTH, CELL_HEIGHT = 62, 30
BARS_GAP, BAR_WIDTH, BAR_HEIGHT = 26, 130, 16  # right of the matrix
PAIRS_GAP, PAIR_HEIGHT, PAIR_LEFT = 64, THUMB + 2 * FRAME + 26, 170  # below it
TEXT_WIDTH = 140  # pixels of a line about a pair


class Pair(NamedTuple):
    """A class and another one that the network takes it for.

    Attributes:
        target: The right class.
        predicted: The other one.
        times: How many images.
    """

    target: int
    predicted: int
    times: int


class Example(NamedTuple):
    """An image that was taken for something else.

    Attributes:
        probability: That the network gave the wrong class, in ``[0, 1]``; -1 for no image.
        image: ``(3, h, w)`` uint8 RGB on the CPU.
    """

    probability: float
    image: Tensor


def most_confused(counts: Tensor, number: int) -> list[Pair]:
    """Find the pairs of classes that are confused most often.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        number: How many pairs at most.

    Returns:
        Pairs with at least one image, largest count first; of equals, the first in reading order.
    """
    wrong = counts.clone().cpu().fill_diagonal_(0)
    order = wrong.flatten().sort(descending=True, stable=True)
    classes = len(counts)
    found = zip(order.values.tolist(), order.indices.tolist(), strict=True)
    return [Pair(i // classes, i % classes, n) for n, i in list(found)[:number] if n > 0]


def class_accuracies(counts: Tensor) -> list[float | None]:
    """The fraction of each class's images that is predicted right: None for a class without images.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
    """
    return [
        right / total if total else None
        for right, total in zip(counts.diagonal().tolist(), counts.sum(1).tolist(), strict=True)
    ]


def confusion_panel(
    counts: Tensor, class_names: Sequence[str], examples: Mapping[Pair, Sequence[Tensor]] | None = None, title: str = ""
) -> Tensor:
    """Draw a confusion matrix, each class's accuracy as a bar at the end of its row, and below confused images.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        class_names: C names.
        examples: For each pair to be shown, its images ``(3, h, w)``: float RGB in ``[0, 1]``.
        title: Written above.

    Returns:
        ``(3, H, W)`` uint8. Cell ``(i, j)`` lies at row ``MATRIX_TOP + i * CELL_HEIGHT``, column
        ``MATRIX_LEFT + j * CELL_WIDTH``: the greener (diagonal) or redder, the larger the part of the row's images;
        red is full at half of them, so that common mistakes can be seen.

    Raises:
        ValueError: If the shapes don't fit.
    """
    classes = len(class_names)
    if counts.shape != (classes, classes) or not classes:
        raise ValueError(f"counts must be ({classes}, {classes}), got {tuple(counts.shape)}")
    counts, examples = counts.cpu(), examples or {}
    bars = MATRIX_LEFT + classes * CELL_WIDTH + BARS_GAP
    pairs_top = MATRIX_TOP + classes * CELL_HEIGHT + PAIRS_GAP
    most = max(map(len, examples.values()), default=0)
    width = max(bars + BAR_WIDTH + 70, PAIR_LEFT + most * (THUMB + 2 * FRAME + 8), 620)
    height = pairs_top + len(examples) * PAIR_HEIGHT if examples else pairs_top - 24
    canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
    labels = [
        _Label(16, 19, title, size=11, weight="bold"),
        _Label(16, 42, "rows: what it is, columns: what the network says; number of images"),
        _Label(bars, 42, "accuracy of each class"),
    ]

    parts = counts / counts.sum(1, keepdim=True).clamp_min(1)  # of each class's images
    for i in range(classes):
        y, name = MATRIX_TOP + i * CELL_HEIGHT, class_names[i]
        labels.append(_Label(MATRIX_LEFT - 8, y + CELL_HEIGHT / 2, _shortened(name), align="right"))
        short = name if len(name) <= 11 else name[:10] + "…"
        over = MATRIX_LEFT + i * CELL_WIDTH + CELL_WIDTH / 2
        labels.append(_Label(over, MATRIX_TOP - 12, short, size=7.5, align="center"))
        for j in range(classes):
            part = float(parts[i, j])
            strength = part if i == j else min(1.0, 2 * part)
            x = MATRIX_LEFT + j * CELL_WIDTH
            cell = canvas[:, y : y + CELL_HEIGHT - 1, x : x + CELL_WIDTH - 1]
            cell[:] = _tint(RIGHT if i == j else WRONG, strength)
            ink = (255, 255, 255) if strength > 0.6 else INK if counts[i, j] else (170, 170, 170)
            centre = (x + CELL_WIDTH / 2, y + CELL_HEIGHT / 2)
            labels.append(_Label(*centre, str(int(counts[i, j])), colour=ink, align="center"))
    for i, accuracy in enumerate(class_accuracies(counts)):
        y = MATRIX_TOP + i * CELL_HEIGHT + (CELL_HEIGHT - BAR_HEIGHT) // 2
        canvas[:, y : y + BAR_HEIGHT, bars : bars + BAR_WIDTH] = 240
        canvas[:, y : y + BAR_HEIGHT, bars : bars + round((accuracy or 0) * BAR_WIDTH)] = _tint(RIGHT, 1)
        text = "no image" if accuracy is None else f"{100 * accuracy:.1f} %"
        labels.append(_Label(bars + BAR_WIDTH + 8, y + BAR_HEIGHT / 2, text))

    if examples:
        text = "most confused, and the images of whose wrong class the network was surest"
        labels.append(_Label(16, pairs_top - 24, text, weight="bold"))
    for number, (pair, images) in enumerate(examples.items()):
        y = pairs_top + number * PAIR_HEIGHT
        middle = y + FRAME + THUMB / 2
        total = int(counts[pair.target].sum())
        labels.append(_Label(16, middle - 18, _shortened(class_names[pair.target]), size=9.5, weight="bold"))
        labels.append(_Label(16, middle, f"taken for {_shortened(class_names[pair.predicted])}", colour=WRONG))
        labels.append(_Label(16, middle + 18, f"{pair.times} of {total}"))
        for i, image in enumerate(images):
            _paste(canvas, image, y, PAIR_LEFT + i * (THUMB + 2 * FRAME + 8), frame=None)
    return _lettered(canvas, labels)


def _tint(colour: tuple[int, int, int], strength: float) -> Tensor:
    """A colour mixed with white, ``(3, 1, 1)`` uint8."""
    mixed = 255 + strength * (torch.tensor(colour, dtype=torch.float32) - 255)
    return mixed.round().to(torch.uint8)[:, None, None]


def confusion_text(counts: Tensor, class_names: Sequence[str], pairs: Sequence[Pair], title: str = "") -> str:
    """Write the same down as markdown: each class's accuracy, the confused pairs, the matrix.

    Args:
        counts: ``(C, C)`` int64; row: right class, column: predicted class.
        class_names: C names.
        pairs: The most confused.
        title: A line above.
    """
    names = [name.replace("|", "\\|") for name in class_names]  # a bar would end a table's cell
    totals = counts.sum(1).tolist()
    lines = [f"**{title}**", ""] if title else []
    lines += ["| class | images | right | accuracy |", "|---|--:|--:|--:|"]
    for name, total, right, accuracy in zip(
        names, totals, counts.diagonal().tolist(), class_accuracies(counts), strict=True
    ):
        lines.append(f"| {name} | {total} | {right} | {'-' if accuracy is None else f'{100 * accuracy:.1f} %'} |")
    if sum(totals):
        right = int(counts.diagonal().sum())
        lines.append(f"| all | {sum(totals)} | {right} | {100 * right / sum(totals):.1f} % |")
    if pairs:
        lines += ["", "Most confused:", ""]
        lines += [f"- {names[p.target]} taken for {names[p.predicted]}: {p.times} of {totals[p.target]}" for p in pairs]
    lines += ["", "| is \\ said | " + " | ".join(names) + " |", "|---" + "|--:" * len(names) + "|"]
    lines += [f"| {names[i]} | " + " | ".join(map(str, row)) + " |" for i, row in enumerate(counts.tolist())]
    return "\n".join(lines)


class ConfusionMatrix(AtEpochs):
    """Draw and write down the confusion matrix, per-class accuracy and the most confused pairs, of val and of test.

    It counts what validation and test predict anyway: no image goes through the network for it. For that the
    LightningModule's ``validation_step`` and ``test_step`` must return a mapping with ``log_probabilities`` ``(B, C)``,
    and batches must be (images, targets), images ``(B, 3, H, W)`` or ``(B, crops, 3, H, W)`` like section 4.1's.

    The picture goes to every TensorBoard logger's images tab as ``confusion/val`` or ``confusion/test``, the tables to
    its text tab under the same name; both to ``confusion/val_epoch_003.png`` and ``.md`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the end of fit. Validation runs of its own and tests are
            always drawn.
        pairs: How many of the most confused pairs are shown.
        examples: How many images of each, those of whose wrong class the network was surest.
        enabled: False switches the callback off.

    Attributes:
        counts: ``(C, C)`` int64 on the CPU, of the newest complete validation or test, over all processes; row: right
            class, column: predicted class. None before the first.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If the DataModule lacks what it needs (when fit or test begins), or if the model's steps return no
            log-probabilities (at the first batch).
    """

    at_start: ClassVar[bool] = False
    of_datamodule: ClassVar[tuple[str, ...]] = ("class_names", "to_rgb")

    def __init__(self, every_n_epochs: int = 1, pairs: int = 3, examples: int = 5, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        for name, value in {"pairs": pairs, "examples": examples}.items():
            if value < 0:
                raise ValueError(f"{name} must be 0 (none) or more, got {value}")
        self.pairs = pairs
        self.examples = examples
        self.counts: Tensor | None = None
        self._counting: Tensor | None = None  # this process's, of the pass that goes on
        self._examples: dict[tuple[int, int], list[Example]] = {}  # (target, predicted) -> surest first
        self._undrawn: int | None = None  # a validation in fit that waits to be drawn: after so many epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run."""
        super().setup(trainer, pl_module, stage)
        self.counts = self._undrawn = None

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Draw the newest validation, unless there was none since the last look."""
        if self._undrawn is not None:
            self._draw(trainer, "val", self._undrawn)
            self._undrawn = None

    # What is counted

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._counting = None
        self._examples = {}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        if self.off(trainer) or trainer.sanity_checking:
            return
        if not isinstance(outputs, Mapping) or "log_probabilities" not in outputs:
            raise TypeError(
                "ConfusionMatrix needs validation_step and test_step to return a mapping with log_probabilities, "
                f"got {type(outputs).__name__} from {type(pl_module).__name__}"
            )
        images, targets = batch
        with torch.no_grad():
            log_probabilities: Tensor = outputs["log_probabilities"]
            predicted = log_probabilities.argmax(1)
            classes = log_probabilities.shape[1]
            counts = multiclass_confusion_matrix(predicted, targets, classes, validate_args=False)
            self._counting = counts if self._counting is None else self._counting + counts
            if self.examples and self.pairs:
                surest = log_probabilities.float().amax(1).exp()
                self._keep(trainer, images, targets.tolist(), predicted.tolist(), surest.tolist())

    on_test_batch_end = on_validation_batch_end

    def _keep(
        self, trainer: Trainer, images: Tensor, targets: list[int], predicted: list[int], surest: list[float]
    ) -> None:
        """Keep the images of whose wrong class the network is surest: a few for each pair of classes."""
        best: dict[tuple[int, int], list[tuple[float, int]]] = {}
        for i, key in enumerate(zip(targets, predicted, strict=True)):
            if key[0] != key[1]:
                best.setdefault(key, []).append((surest[i], i))
        for key, wrong in best.items():
            kept = self._examples.get(key, [])
            least = kept[-1].probability if len(kept) == self.examples else -1.0
            wrong = [(p, i) for p, i in sorted(wrong, key=lambda entry: -entry[0])[: self.examples] if p > least]
            if wrong:
                picked = images[[i for _, i in wrong]]
                centres = picked if picked.ndim == 4 else picked[:, picked.shape[1] // 2 - (picked.shape[1] > 1)]
                thumbs = _thumbnails(cast(HasImages, cast(Any, trainer).datamodule).to_rgb(centres.float()))
                kept = kept + [Example(p, thumb) for (p, _), thumb in zip(wrong, thumbs, strict=True)]
                self._examples[key] = sorted(kept, key=lambda example: -example.probability)[: self.examples]

    # What is shown

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over processes. In fit it is drawn at the epoch's end, if that is its turn; otherwise at once."""
        if self.off(trainer) or trainer.sanity_checking:
            return
        self._sum(trainer)
        if trainer.state.fn == "fit":
            self._undrawn = trainer.current_epoch + 1
        else:
            self._draw(trainer, "val", self.epochs_under_test(trainer))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over processes, and draw."""
        if not self.off(trainer):
            self._sum(trainer)
            self._draw(trainer, "test", self.epochs_under_test(trainer))

    def _sum(self, trainer: Trainer) -> None:
        counting = self._counting
        if counting is None:  # more processes than images
            classes = len(cast(HasImages, cast(Any, trainer).datamodule).class_names)
            counting = torch.zeros((classes, classes), dtype=torch.int64, device=trainer.strategy.root_device)
        self.counts = cast(Tensor, trainer.strategy.reduce(counting, reduce_op="sum")).cpu()
        self._counting = None

    def _draw(self, trainer: Trainer, stage: str, epochs: int) -> None:
        assert self.counts is not None
        names = cast(HasImages, cast(Any, trainer).datamodule).class_names
        pairs = most_confused(self.counts, self.pairs)
        examples = self._gathered(trainer, pairs)
        title = f"{stage} images after epoch {epochs}"
        right, total = int(self.counts.diagonal().sum()), int(self.counts.sum())
        heading = f"{title}: {right} of {total} right, {100 * right / max(total, 1):.2f} %"
        name = f"confusion/{stage}_epoch_{epochs:03d}"
        write_image(
            trainer, f"confusion/{stage}", f"{name}.png", confusion_panel(self.counts, names, examples, heading)
        )
        write_text(trainer, f"confusion/{stage}", confusion_text(self.counts, names, pairs, heading), f"{name}.md")

    def _gathered(self, trainer: Trainer, pairs: list[Pair]) -> dict[Pair, list[Tensor]]:
        """The surest mistakes of all processes, for each pair: ``(3, h, w)`` float RGB in ``[0, 1]``."""
        if not pairs or not self.examples:
            return {}
        device = trainer.strategy.root_device
        side = THUMBNAIL
        probabilities = torch.full((len(pairs), self.examples), -1.0)
        images = torch.zeros((len(pairs), self.examples, 3, side, side), dtype=torch.uint8)
        for row, pair in enumerate(pairs):
            for column, example in enumerate(self._examples.get((pair.target, pair.predicted), [])):
                probabilities[row, column], images[row, column] = example
        # (processes, P, E, ...), or (P, E, ...) where there is one -> (P, processes * E, ...)
        every_probability, every_image = (
            trainer.strategy.all_gather(t.to(device)).view(-1, *t.shape).transpose(0, 1).flatten(1, 2).cpu()
            for t in (probabilities, images)
        )
        order = every_probability.sort(dim=1, descending=True, stable=True)
        return {
            pair: [
                every_image[row, place].float() / 255
                for probability, place in zip(order.values[row].tolist(), order.indices[row].tolist(), strict=True)
                if probability >= 0
            ][: self.examples]
            for row, pair in enumerate(pairs)
        }


THUMBNAIL = 32  # pixels: CIFAR-10's own size, so hundreds of kept images are nothing


def _thumbnails(rgb: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` float RGB in ``[0, 1]`` as ``(B, 3, THUMBNAIL, THUMBNAIL)`` uint8 on the CPU."""
    small = F.interpolate(rgb, (THUMBNAIL, THUMBNAIL), mode="bilinear", align_corners=False, antialias=True)
    return small.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
