"""What callbacks that look at a run share: what they may ask for, where they write what they saw, when they look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import WarningCache, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from callbacks.checkpoints.files import write_whole
from callbacks.checkpoints.progress import trained_epochs
from callbacks.pure.choosing import evenly_spaced, spread_queries

Stage = Literal["val", "test"]


# ---- the two contracts -------------------------------------------------------------------------------------


class LookedAtModel(Protocol):
    """What callbacks ask of a LightningModule. Each asks for the part that its ``of_model`` names."""

    net: nn.Module
    """The network: its layers are submodules by the names of their paper's layers, ``conv1`` to ``fc8``."""

    def embed(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to features ``(B, D)``: fc7's activations."""

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` to log-probabilities ``(B, C)``."""


class LookedAtData(Protocol):
    """What callbacks ask of a DataModule. Each asks for the part that its ``of_datamodule`` names.

    Both loaders are a ``DataLoader`` of batches, of ``batch_size`` and in order, that :func:`to_model` takes. Their
    datasets have a length, and ``fetch(places)``, which gives the images at a list of places as one such batch.

    The test's own loader may go through the images in another order: its dataset's ``indices``, as torch's ``Subset``
    has them, say where they lie in ``query_dataloader("test")``.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""

    def gallery_dataloader(self) -> Any:
        """All training images, not augmented, in every process."""

    def query_dataloader(self, stage: Stage) -> Any:
        """The validation or test images, likewise."""

    def to_rgb(self, images: Tensor) -> Tensor:
        """Model-ready images ``(B, 3, H, W)`` to float RGB in ``[0, 1]``."""


def datamodule_of(trainer: Trainer) -> LookedAtData:
    """The run's DataModule; :class:`Looking` has checked at the start that it has what is asked of it."""
    return cast(LookedAtData, cast(Any, trainer).datamodule)


def model_of(pl_module: LightningModule) -> LookedAtModel:
    """The LightningModule as the contract has it; checked likewise."""
    return cast(LookedAtModel, pl_module)


# ---- images, and the network in evaluation mode ------------------------------------------------------------


def to_model(trainer: Trainer, batch: Any) -> tuple[Tensor, Tensor]:
    """A loader's batch on the network's device, in its precision: images ``(B, 3, H, W)``, int64 targets ``(B,)``."""
    images, targets = trainer.strategy.batch_to_device(batch)
    return trainer.precision_plugin.convert_input(images), targets


def fetch(trainer: Trainer, loader: Any, places: list[int]) -> tuple[Tensor, Tensor]:
    """The images at B places of a loader's dataset, and their targets: see :func:`to_model`."""
    return to_model(trainer, loader.dataset.fetch(places))


def evenly_spaced_images(trainer: Trainer, stage: Stage, count: int) -> tuple[Tensor, Tensor] | None:
    """Fetch ``count`` images of the stage, the same at every call; None where there are none. See :func:`fetch`."""
    loader = datamodule_of(trainer).query_dataloader(stage)
    places = evenly_spaced(len(loader.dataset), count)
    return fetch(trainer, loader, places) if places else None


def varied_images(trainer: Trainer, stage: Stage, count: int) -> tuple[Tensor, Tensor] | None:
    """Likewise ``count`` images, of classes spread over all: the paper's Figure 4 has eight."""
    fetched = evenly_spaced_images(trainer, stage, 8 * count)  # classes are known once images are fetched
    if fetched is None:
        return None
    images, targets = fetched
    chosen = spread_queries(targets.tolist(), count)
    return images[chosen], targets[chosen]


def rgb_of(trainer: Trainer, images: Tensor) -> Tensor:
    """What :func:`to_model` made of images, as float RGB in ``[0, 1]`` again."""
    return datamodule_of(trainer).to_rgb(images.float())


def forward(trainer: Trainer, part: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a part of the model, such as ``embed``, makes of images in the run's precision: float32."""
    with trainer.precision_plugin.forward_context():
        return part(images).float()


def log_probabilities_in(outputs: Any, callback: Callback, pl_module: LightningModule) -> Tensor:
    """What ``validation_step`` or ``test_step`` returned for a callback: ``(B, C)``, float32 or better, at most 0.

    Raises:
        TypeError: If there is no such thing in it.
    """
    if not isinstance(outputs, Mapping) or "log_probabilities" not in outputs:
        raise TypeError(
            f"{type(callback).__name__} needs validation_step and test_step to return a mapping with "
            f"log_probabilities, got {type(outputs).__name__} from {type(pl_module).__name__}"
        )
    found: Tensor = outputs["log_probabilities"].detach()
    return found.to(torch.promote_types(found.dtype, torch.float32)).clamp(max=0)  # rounding may lift ten crops' above


def gather_rows(trainer: Trainer, rows: Tensor, dim: int = 0) -> Tensor:
    """The rows ``(n, ...)`` of all processes, one's after another's, on the CPU; some may have fewer, or none.

    With another ``dim``, columns likewise.
    """
    if trainer.world_size > 1:
        rows = torch.cat(gather_all_tensors(rows.to(trainer.strategy.root_device)), dim)
    return rows.cpu()


@contextmanager
def looking(pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and all random-number states are as before.

    Even iterating a ``DataLoader`` draws a random number, and no callback may change a run.
    """
    modes = [(module, module.training) for module in pl_module.modules()]
    with isolate_rng(), torch.no_grad():
        pl_module.eval()
        try:
            yield
        finally:
            for module, mode in modes:  # one by one: a frozen part may be in evaluation mode during training
                module.training = mode


# ---- where it is written -----------------------------------------------------------------------------------

warn_once = WarningCache().warn


@contextmanager
def or_left_out(path: Path | None = None) -> Iterator[None]:
    """What the system refuses to write within, a picture or a log, is warned of once and left out: training goes on.

    Of a file at ``path`` no half is left.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        refused = error if isinstance(error, OSError) else error.__cause__  # as TensorBoardLogger raises it
        if not isinstance(refused, OSError):
            raise
        if path:
            with suppress(OSError):
                path.unlink()
        why = refused.strerror or str(refused)
        warn_once(f"logs or pictures can't be written ({why}) and are left out; the run goes on")


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files go. To be called in every process: they agree on it.

    It is the first logger's folder of this run, as TensorBoardLogger and CSVLogger name it. For another it is where
    Lightning's ModelCheckpoint has its ``checkpoints``: ``save_dir/name/version``, of W&B ``save_dir/project/id``.
    """
    logger, root = trainer.logger, trainer.default_root_dir
    if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(trainer.strategy.broadcast(logger.log_dir if logger else root))
    if logger.version is None:
        getattr(logger, "experiment", None)  # W&B and MLflow choose an id as they begin
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(trainer.strategy.broadcast(str(Path(logger.save_dir or root, str(logger.name), version))))


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The run's TensorBoard loggers; none but in the first process, which alone writes."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def add_to_tensorboards(trainer: Trainer, what: str, *args: Any, **kwargs: Any) -> None:
    """Call ``add_image`` or another ``add_<what>`` of every TensorBoard logger; what can't be written is left out."""
    for logger in tensorboards(trainer):
        with or_left_out():
            getattr(logger.experiment, f"add_{what}")(*args, **kwargs)


def write_image(trainer: Trainer, tag: str, filename: str, image: Tensor) -> None:
    """Give an image ``(3, H, W)`` uint8 to every logger that takes any, at the trainer's step, and save it as PNG.

    To be called in every process. ``filename`` is a path in the run's folder, where an older file is replaced.
    """
    path = run_folder(trainer) / filename
    add_to_tensorboards(trainer, "image", tag, image, global_step=trainer.global_step)
    if not trainer.is_global_zero:
        return
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    with or_left_out(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    for logger in trainer.loggers:
        with or_left_out():
            _log_picture(logger, tag, picture, trainer.global_step)


def _log_picture(logger: Logger, tag: str, picture: Image.Image, step: int) -> None:
    """Give a picture to a logger that takes any, but TensorBoard's."""
    if log_image := getattr(logger, "log_image", None):  # WandbLogger's, and whose else has learnt it
        log_image(key=tag, images=[picture], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(picture, name=tag, step=step)


def write_text(trainer: Trainer, tag: str, text: str, filename: str | None = None) -> None:
    """Give markdown to every TensorBoard logger, likewise, and save it if it has a file's name."""
    folder = run_folder(trainer)
    if filename and trainer.is_global_zero:
        with or_left_out():
            write_whole(folder / filename, text + "\n")
    add_to_tensorboards(trainer, "text", tag, text, global_step=trainer.global_step)


def write_scalars(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give values to every logger, at the trainer's step. Loggers themselves write in the first process only."""
    for logger in trainer.loggers:
        with or_left_out():
            logger.log_metrics(dict(values), step=trainer.global_step)


# ---- when --------------------------------------------------------------------------------------------------


def check_at_least(least: int, **arguments: int) -> None:
    """Raise a ``ValueError`` for the first argument, called by its name, that is below ``least``."""
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name}: {value} is below {least}, expected a count. Choose {least} or more.")


def check_contracts(callback: Any, trainer: Trainer, pl_module: LightningModule) -> None:
    """Raise a ``TypeError`` if the run's model or DataModule lack what ``of_model`` and ``of_datamodule`` name."""
    datamodule = getattr(trainer, "datamodule", None)
    asked = (("datamodule", datamodule, callback.of_datamodule), ("model", pl_module, callback.of_model))
    for what, owner, parts in asked:
        if any(getattr(owner, part, None) is None for part in parts):
            needs = f"{type(callback).__name__} needs a {what} with {', '.join(parts)}"
            raise TypeError(f"{needs}, got {type(owner).__name__}")


class Looking(Callback):
    """A callback that looks at a run and changes nothing of it. Subclasses do nothing while ``disabled``."""

    of_datamodule: ClassVar[tuple[str, ...]] = ()  # parts of LookedAtData
    of_model: ClassVar[tuple[str, ...]] = ()  # parts of LookedAtModel

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        self._loaded_epochs: int | None = None  # how long the checkpoint under test was trained

    def disabled(self, trainer: Trainer) -> bool:
        """Whether nothing is to be done: it is switched off, or ``fast_dev_run`` is on."""
        return not self.enabled or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]

    def warn(self, message: str) -> None:
        rank_zero_warn(f"{type(self).__name__}: {message}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a ``TypeError`` at once, not after hours of training, if model or DataModule lack what is asked for."""
        self._loaded_epochs = None
        if not self.disabled(trainer):
            check_contracts(self, trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded_epochs = trained_epochs(checkpoint)

    def epochs_under_test(self, trainer: Trainer) -> int:
        """How many epochs the network under test was trained for."""
        return trainer.current_epoch if self._loaded_epochs is None else self._loaded_epochs

    def draw(self, trainer: Trainer, name: str, stage: Stage, epochs: int, image: Tensor) -> None:
        """Write an image of a stage, such as ``name/val`` and ``name/val_epoch_003.png``: see :func:`write_image`."""
        write_image(trainer, f"{name}/{stage}", f"{name}/{stage}_epoch_{epochs:03d}.png", image)


class EveryNEpochs(Looking):
    """Call the subclass's ``look`` before the first step, every few epochs and at the end of fit: at no step twice.

    ``every_n_epochs``: 1 looks after every epoch; 0 after none, but at the start and at the end.
    """

    at_start: bool = True  # before the first step of fit
    at_end: bool = True  # after the last one
    at_test: bool = False  # at the end of test

    def __init__(self, every_n_epochs: int = 1, enabled: bool = True) -> None:
        super().__init__(enabled)
        check_at_least(0, every_n_epochs=every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._looked: int | None = None  # step of the newest look in fit

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        """Look, in every process, without gradients, at a network that was trained for so many epochs."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._looked = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_once(trainer, pl_module, trainer.current_epoch, self.at_start)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        self._look_once(trainer, pl_module, done, bool(self.every_n_epochs) and done % self.every_n_epochs == 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_once(trainer, pl_module, trainer.current_epoch, self.at_end)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_test and not self.disabled(trainer):  # gradients are off anyway
            self.look(trainer, pl_module, self.epochs_under_test(trainer), "test")

    def _look_once(self, trainer: Trainer, pl_module: LightningModule, epochs: int, wanted: bool) -> None:
        if wanted and not self.disabled(trainer) and self._looked != trainer.global_step:
            self._looked = trainer.global_step
            with torch.no_grad():
                self.look(trainer, pl_module, epochs, "val")


class OfPredictions(EveryNEpochs):
    """Look at what validation and test predict anyway, of ten crops too: no image goes through the network for it.

    For that ``validation_step`` and ``test_step`` must return a mapping with ``log_probabilities`` ``(B, C)``; else a
    ``TypeError`` is raised at the first batch. The subclass begins a pass, takes its batches, ends it and shows it. A
    validation in fit is shown at the epoch's end, if that is its turn; one of its own and a test at once.
    """

    at_start = False

    def begin(self) -> None:
        """Forget the pass before."""
        raise NotImplementedError

    def take(self, trainer: Trainer, images: Tensor, targets: Tensor, log_probabilities: Tensor) -> None:
        """Take a batch of this process: the model's images, targets ``(B,)`` and log-probabilities ``(B, C)``."""
        raise NotImplementedError

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Gather what was taken over all processes, and keep it to be shown until another pass is finished."""
        raise NotImplementedError

    def show(self, trainer: Trainer, stage: Stage, epochs: int) -> None:
        """Show the pass that was finished last, of a network that was trained for so many epochs."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._unshown: int | None = None  # a validation in fit that waits to be shown: after so many epochs

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        """Show the newest validation, unless there was none since the last look."""
        if self._unshown is not None:
            self.show(trainer, stage, self._unshown)
            self._unshown = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if not self.disabled(trainer) and not trainer.sanity_checking:
            self.take(trainer, batch[0], batch[1], log_probabilities_in(outputs, self, pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.disabled(trainer) or trainer.sanity_checking:
            return
        stage: Stage = "test" if trainer.testing else "val"
        self.finish(trainer, pl_module, stage)
        if trainer.state.fn == "fit":
            self._unshown = trainer.current_epoch + 1
        else:
            self.show(trainer, stage, self.epochs_under_test(trainer))

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
