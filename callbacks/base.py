"""AtEpochs: when a callback looks at the network. And how it gets the few images that it looks at each time."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.checkpoints.progress import trained_epochs


class HasImages(Protocol):
    """What callbacks that show images ask of the DataModule: a part of ``retrieval.HasGallery``."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""

    def query_dataloader(self, stage: Literal["val", "test"]) -> DataLoader[Any]:
        """The validation or test images, in order, in every process. Its dataset fetches ``__getitems__(places)``."""

    def to_rgb(self, images: Tensor) -> Tensor:
        """Model-ready images ``(B, 3, H, W)`` to float RGB in ``[0, 1]``."""


def evenly_spaced(size: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``size`` things, ascending, spread evenly from the first on.

    Of images that are sorted by class they take as many from each class; the same for the same arguments.
    """
    count = min(count, size)
    return [i * size // count for i in range(count)]


def fetch(trainer: Trainer, loader: DataLoader[Any], places: list[int]) -> tuple[Tensor, Tensor]:
    """Fetch images of a loader's dataset as the network takes them, on its device and in its precision.

    Args:
        trainer: Moves the batch to the device.
        loader: One of :class:`HasImages`.
        places: B places in its dataset.

    Returns:
        Images ``(B, 3, H, W)`` and targets ``(B,)`` int64.
    """
    images, targets = trainer.strategy.batch_to_device(cast(Any, loader.dataset).__getitems__(places))
    return trainer.precision_plugin.convert_input(images), targets


def evenly_spaced_images(trainer: Trainer, stage: Literal["val", "test"], count: int) -> tuple[Tensor, Tensor] | None:
    """Fetch ``count`` images of the stage, the same at every call: see :func:`fetch`. None where there are none."""
    loader = cast(HasImages, cast(Any, trainer).datamodule).query_dataloader(stage)
    size = len(cast(Any, loader.dataset))
    return fetch(trainer, loader, evenly_spaced(size, count)) if size else None


class AtEpochs(Callback):
    """Call ``look`` before the first step, every few epochs and at the end of fit: at no step twice.

    A subclass says what there is to see. Nothing happens in ``fast_dev_run`` or where ``enabled`` is False.

    Args:
        every_n_epochs: 1 looks after every epoch; 0 only at the start and at the end.
        enabled: False switches the callback off.

    Raises:
        ValueError: If ``every_n_epochs`` is negative.
        TypeError: If model or DataModule lack what the subclass asks for (when fit or test begins).
    """

    at_start: ClassVar[bool] = True  # whether there is something to see before the first step
    of_datamodule: ClassVar[tuple[str, ...]] = ("class_names", "query_dataloader", "to_rgb")
    of_model: ClassVar[tuple[str, ...]] = ()

    def __init__(self, every_n_epochs: int, enabled: bool) -> None:
        super().__init__()
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must be 0 (start and end only) or more, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.enabled = enabled
        self._looked: int | None = None  # step of the newest look in fit
        self._loaded_epochs: int | None = None  # how long the checkpoint under test was trained

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        """Look at a network that was trained for so many epochs. Called in every process."""
        raise NotImplementedError

    def off(self, trainer: Trainer) -> bool:
        """Whether nothing is to be done."""
        return not self.enabled or bool(getattr(trainer, "fast_dev_run", False))

    def warn(self, message: str) -> None:
        """Warn, in the callback's name, in the first process."""
        rank_zero_warn(f"{type(self).__name__}: {message}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out at once, not after hours of training, if something is missing. Forget an earlier run."""
        self._looked = self._loaded_epochs = None
        if self.off(trainer):
            return
        name = type(self).__name__
        datamodule = getattr(trainer, "datamodule", None)
        if not all(hasattr(datamodule, wanted) for wanted in self.of_datamodule):
            raise TypeError(
                f"{name} needs a datamodule with {', '.join(self.of_datamodule)}, got {type(datamodule).__name__}"
            )
        if not all(callable(getattr(pl_module, wanted, None)) for wanted in self.of_model):
            raise TypeError(f"{name} needs a model with {', '.join(self.of_model)}, got {type(pl_module).__name__}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember how many epochs a checkpoint was trained for."""
        self._loaded_epochs = trained_epochs(checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the initial weights, or those that training goes on from."""
        if self.at_start:
            self._look_once(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look if it is this epoch's turn."""
        done = trainer.current_epoch + 1
        if self.every_n_epochs and done % self.every_n_epochs == 0:
            self._look_once(trainer, pl_module, done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the trained network, unless the last epoch's turn just did."""
        self._look_once(trainer, pl_module, trainer.current_epoch)

    def _look_once(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if not self.off(trainer) and self._looked != trainer.global_step:
            self._looked = trainer.global_step
            with torch.no_grad():
                self.look(trainer, pl_module, epochs)

    def epochs_under_test(self, trainer: Trainer) -> int:
        """How many epochs the network under test was trained for."""
        return trainer.current_epoch if self._loaded_epochs is None else self._loaded_epochs
