"""Conv1Filters: the filters of the first layer as they form, like the paper's Figure 3."""

from __future__ import annotations

from typing import Any, Literal

from lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks.base import EveryNEpochs, Stage, add_to_tensorboards, write_image, write_scalars
from callbacks.pure.filter_grid import filter_grid, full_colour
from callbacks.pure.filter_structure import filter_structure


def filters_of(module: nn.Module, layer: str = "net.conv1") -> tuple[Tensor, int]:
    """The filters ``(N, 3, h, w)`` of a LightningModule's layer, and how they are shared out.

    That is the number of groups into which the next convolution of N channels splits them: in the paper 2, one for each
    GPU. A TypeError if there is no such layer, or it is no Conv2d of RGB filters.
    """
    modules = dict(module.named_modules())
    filters = modules.get(layer)
    if not isinstance(filters, nn.Conv2d) or filters.weight.shape[1] != 3:
        found = f"a {type(filters).__name__}" if layer in modules else f"not in {type(module).__name__}"
        raise TypeError(f"layer: {layer} is {found}, expected a Conv2d of RGB filters. Choose another layer's name.")
    later = list(modules.values())[list(modules).index(layer) + 1 :]
    convolutions = (each for each in later if isinstance(each, nn.Conv2d) and each.in_channels == filters.out_channels)
    return filters.weight.detach(), next((each.groups for each in convolutions), 1)


def distances_moved(weights: Tensor, start: Tensor) -> Tensor:
    """How far filters ``(N, ...)`` are from where they started, ``(N,)`` float32: 1 is as far as that was from zero."""
    first = start.detach().float().flatten(1)
    return (weights.detach().float().flatten(1) - first).norm(dim=1) / first.norm(dim=1)


class Conv1Filters(EveryNEpochs):
    """Draw conv1's filters before the first step, every few epochs, and at the end of training.

    The image goes to every logger as ``filters/conv1`` and to ``conv1_filters/epoch_003.png`` in the run's
    folder, where 3 is the number of epochs done; so ``epoch_000.png`` shows the initial weights.

    ``filters/moved_mean`` and ``filters/moved_max`` tell how far the filters moved from the first image's, see
    :func:`distances_moved`; TensorBoard's histogram ``filters/moved`` tells it of each. A resumed run goes on from the
    first image of the run that it resumes.

    ``filters/structured`` is the share of filters that have formed, in [0, 1], and ``filters/colour_group1`` and
    ``filters/colour_group2``, where the next convolution has groups, how colourful each one's are on average: see
    :func:`~callbacks.pure.filter_structure.filter_structure`.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the start and at the end.
        scale: The weight that is shown as full colour. ``first``: chosen for the run's first image and kept, so that
            the slider shows filters form and nothing else; what grows beyond is cut, and the legend says so. ``each``:
            chosen for each image, see :func:`full_colour`. Or a number, which makes several runs comparable.
        layer: Which layer it is, by its name in the LightningModule: a Conv2d of RGB filters.
        enabled: False switches the callback off.

    Source:
        Krizhevsky et al. 2012, Figure 3 and section 6.1: "the kernels on GPU 1 are largely color-agnostic, while the
        kernels on GPU 2 are largely color-specific".
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        scale: float | Literal["first", "each"] = "first",
        layer: str = "net.conv1",
        enabled: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, enabled)
        if scale not in ("first", "each") and (isinstance(scale, str) or not 0 < scale < float("inf")):
            raise ValueError(
                f"scale: {scale!r}, expected 'first', 'each' or a finite number above 0. Choose one, such as 'first'."
            )
        self.scale = scale
        self.layer = layer
        self._start: Tensor | None = None  # the weights of the first image, on the CPU

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out at once if there is no such layer. Forget an earlier run; a checkpoint's start comes after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._start = None
            if not self.disabled(trainer):
                filters_of(pl_module, self.layer)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._start is None else {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        start = state_dict.get("start")
        self._start = start if isinstance(start, Tensor) and bool(start.isfinite().all()) else None

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        step, name = trainer.global_step, self.layer.removeprefix("net.")
        weights, groups = filters_of(pl_module, self.layer)
        if not bool(weights.isfinite().all()):
            self.warn(f"{name} holds NaN or infinite weights at step {step}: its filters are not drawn.")
            return
        if self._start is None or self._start.shape != weights.shape:
            self._start = weights.float().cpu().clone()
        scale = self.scale
        if isinstance(scale, str):
            scale = full_colour(self._start if scale == "first" else weights)
        moved = distances_moved(weights.cpu(), self._start)
        values = {"filters/moved_mean": moved.mean().item(), "filters/moved_max": moved.max().item()}
        structure = filter_structure(weights)
        values["filters/structured"] = structure.structured.float().mean().item()
        for number, colour in enumerate(structure.colour.chunk(groups) if groups > 1 else (), start=1):
            values[f"filters/colour_group{number}"] = colour.mean().item()
        write_scalars(trainer, values)
        add_to_tensorboards(trainer, "histogram", "filters/moved", moved, global_step=step)
        title = f"{name} after epoch {epochs} (step {step})" if step else f"{name} before training"
        image = filter_grid(weights, groups, scale, title)
        write_image(trainer, "filters/conv1", f"conv1_filters/epoch_{epochs:03d}.png", image)
