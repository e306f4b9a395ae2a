"""Overview: what a run is, in TensorBoard: its settings, its HPARAMS row, its plots side by side, its network."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, cast

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from callbacks.base import Looking, evenly_spaced_images, looking, or_left_out, run_folder, tensorboards, write_text

Layout = dict[str, dict[str, tuple[str, list[str]]]]


def shared_plots() -> Layout:
    """TensorBoard's custom scalars: train and val on one plot for each metric, all layers on one for each measure.

    Tags are regular expressions that TensorBoard matches from a tag's start on: without the ``$``, ``train/loss``
    would take ``train/loss_step`` along.
    """

    metrics = {"loss": "loss", "top-1": "top1", "top-5": "top5"}
    layers = {
        "dead units": "dead/",
        "activation scale": "activation_scale/",
        "conv1: how far filters moved": "filters/moved_(mean|max)",
    }
    return {
        "train and val": {name: ("Multiline", [f"train/{tag}$", f"val/{tag}$"]) for name, tag in metrics.items()},
        "layers": {name: ("Multiline", [tags]) for name, tags in layers.items()},
    }


def hparams_of(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """The settings of model and data under their own names, and the trainer's ``max_epochs``."""
    settings: dict[str, Any] = {"max_epochs": trainer.max_epochs}
    for part in (getattr(trainer, "datamodule", None), pl_module):
        settings |= dict(getattr(part, "hparams_initial", None) or {})
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def add_graph(logger: TensorBoardLogger, network: nn.Module, images: Tensor) -> None:
    """Give TensorBoard the graph of a network in evaluation mode; a RuntimeError if it can't be traced."""
    eager = copy.copy(network)  # the same layers; what torch.compile made of them, which can't be traced, stays behind
    with or_left_out(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that is checked, and of being deprecated
        logger.experiment.add_graph(eager, images)


class Overview(Looking):
    """Write down once what a run is, for every TensorBoard logger; other loggers have what Lightning gives them.

    - Custom scalars: see :func:`shared_plots`.
    - Text, ``config``: the ``config.yaml`` that LightningCLI saved in the run's folder; without one, the settings that
      model and DataModule saved.
    - Graphs: the network (``net``), traced on one validation image.
    - HPARAMS: a row for the run, from its first validation on, with its settings and ``hp/val_top1``: the best
      validation top-1 so far, so that of the checkpoint that is tested.

    Args:
        metric: Which metric, larger is better, becomes ``hp/val_top1``: a slash in its name turns into ``_``.
        graph: False leaves the graph out.
        enabled: False switches the callback off.
    """

    def __init__(self, metric: str = "val/top1", graph: bool = True, enabled: bool = True) -> None:
        super().__init__(enabled)
        self.metric = metric
        self.graph = graph
        self._best: float | None = None
        self._row = False  # whether this run has its row

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run; what a checkpoint remembers comes after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._best, self._row = None, False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self._best = None if best is None else float(best)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.disabled(trainer):
            return
        write_text(trainer, "config", f"```yaml\n{_config(trainer, pl_module).strip()}\n```")
        loggers = tensorboards(trainer)
        for logger in loggers:
            with or_left_out():
                logger.experiment.add_custom_scalars(shared_plots())
        if not (loggers and self.graph and hasattr(getattr(trainer, "datamodule", None), "query_dataloader")):
            return
        with looking(pl_module):
            fetched = evenly_spaced_images(trainer, "val", 1)
            if fetched is None:
                return
            try:
                for logger in loggers:
                    add_graph(logger, pl_module.get_submodule("net"), fetched[0])
            except (RuntimeError, AttributeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.warn(f"the network can't be traced, so there is no graph of it ({reason}).")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.disabled(trainer) or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.metric])
        if self._best is None or math.isnan(self._best) or value > self._best:
            self._best = value
        row = {f"hp/{self.metric.replace('/', '_')}": self._best}
        for logger in tensorboards(trainer):
            with or_left_out():
                if self._row:
                    logger.log_metrics(row, step=trainer.global_step)
                else:
                    logger.log_hyperparams(hparams_of(trainer, pl_module), row, step=trainer.global_step)
        self._row = True


def _config(trainer: Trainer, pl_module: LightningModule) -> str:
    path = run_folder(trainer) / "config.yaml"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    settings = hparams_of(trainer, pl_module)
    plain = {k: v if isinstance(v, int | float | str | None) else str(v) for k, v in settings.items()}
    return cast(str, yaml.safe_dump(plain))
