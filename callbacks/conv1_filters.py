"""Conv1Filters: the filters of the first layer as they form, like the paper's Figure 3."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from callbacks.pure.filter_grid import filter_grid, full_colour
from callbacks.writing import write_image, write_scalars


class HasConv1(Protocol):
    """What the callback asks of the LightningModule."""

    def get_submodule(self, target: str) -> nn.Module:
        """``net.conv1``, a Conv2d of RGB filters; ``net.conv2``, a Conv2d whose ``groups`` are the paper's GPUs."""


def conv1_of(module: HasConv1) -> tuple[Tensor, int]:
    """The filters and how they are shared out.

    Args:
        module: The network's LightningModule.

    Returns:
        ``(N, 3, h, w)`` weights of conv1, and the number of groups that conv2 splits conv1's outputs into: in the paper
        2, one for each GPU.

    Raises:
        TypeError: If one of the two layers is no Conv2d.
    """
    conv1, conv2 = module.get_submodule("net.conv1"), module.get_submodule("net.conv2")
    if not isinstance(conv1, nn.Conv2d) or not isinstance(conv2, nn.Conv2d):
        raise TypeError(
            f"net.conv1 and net.conv2 must be Conv2d, got {type(conv1).__name__} and {type(conv2).__name__}"
        )
    return conv1.weight.detach(), conv2.groups


def distances_moved(weights: Tensor, start: Tensor) -> Tensor:
    """How far filters are from where they started, each in units of its own length at the start.

    Args:
        weights: ``(N, ...)`` float.
        start: The same shape; no filter is all zeros.

    Returns:
        ``(N,)`` float32: 0 has not moved; 1 is as far from its start as that was from zero.
    """
    first = start.detach().float().flatten(1)
    return (weights.detach().float().flatten(1) - first).norm(dim=1) / first.norm(dim=1)


class Conv1Filters(Callback):
    """Draw conv1's filters before the first step, every few epochs, and at the end of training.

    The image goes to every TensorBoard logger as ``filters/conv1`` and to ``conv1_filters/epoch_003.png`` in the run's
    folder, where 3 is the number of epochs done; so ``epoch_000.png`` shows the initial weights.

    ``filters/moved_mean`` and ``filters/moved_max`` tell how far the filters moved from the first image's, see
    :func:`distances_moved`; TensorBoard's histogram ``filters/moved`` tells it of each. A resumed run goes on from the
    first image of the run that it resumes.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the start and at the end.
        scale: The weight that is shown as full colour. ``first``: chosen for the run's first image and kept, so that
            the slider shows filters form and nothing else; what grows beyond is cut, and the legend says so. ``each``:
            chosen for each image, see ``images.full_colour``. Or a number, which makes several runs comparable.
        enabled: False switches the callback off.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Krizhevsky et al. 2012, Figure 3.
    """

    def __init__(
        self, every_n_epochs: int = 1, scale: float | Literal["first", "each"] = "first", enabled: bool = True
    ) -> None:
        super().__init__()
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs must be 0 (start and end only) or more, got {every_n_epochs}")
        if scale not in ("first", "each") and (isinstance(scale, str) or not 0 < scale < float("inf")):
            raise ValueError(f"scale must be above 0 and finite, or 'first' or 'each', got {scale!r}")
        self.every_n_epochs = every_n_epochs
        self.scale = scale
        self.enabled = enabled
        self._drawn: int | None = None  # step of the newest image
        self._start: Tensor | None = None  # the weights of the first image, on the CPU

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run; what a checkpoint remembers comes after this."""
        if stage == "fit":
            self._start = None

    def state_dict(self) -> dict[str, Any]:
        """The start, for the run that goes on from a checkpoint."""
        return {} if self._start is None else {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the start from a checkpoint."""
        self._start = state_dict.get("start")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the initial weights, or those that training goes on from."""
        self._drawn = None
        self._draw(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw if it is this epoch's turn."""
        done = trainer.current_epoch + 1
        if self.every_n_epochs and done % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final weights, unless the last epoch's turn just did."""
        self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        step = trainer.global_step
        if not self.enabled or getattr(trainer, "fast_dev_run", False) or step == self._drawn:
            return
        self._drawn = step
        weights, groups = conv1_of(cast(HasConv1, pl_module))
        if not bool(weights.isfinite().all()):
            rank_zero_warn(f"conv1 holds NaN or infinite weights at step {step}: its filters are not drawn.")
            return
        if self._start is None or self._start.shape != weights.shape:
            self._start = weights.float().cpu().clone()
        scale = self.scale
        if isinstance(scale, str):
            scale = full_colour(self._start if scale == "first" else weights)
        moved = distances_moved(weights.cpu(), self._start)
        write_scalars(trainer, {"filters/moved_mean": moved.mean().item(), "filters/moved_max": moved.max().item()})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram("filters/moved", moved, global_step=step)
        title = f"conv1 after epoch {epochs} (step {step})" if step else "conv1 before training"
        image = filter_grid(weights, groups, scale, title)
        write_image(trainer, "filters/conv1", f"conv1_filters/epoch_{epochs:03d}.png", image)
