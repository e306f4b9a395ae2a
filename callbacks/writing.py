"""Look without touching, and write down what was seen: what the callbacks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor


@contextmanager
def looking(pl_module: LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and all random-number states are as before.

    Iterating a ``DataLoader`` draws a random number, which is why the states are kept too: a training run with a
    callback and one without it must stay the same, bit for bit.
    """
    modes = [(module, module.training) for module in pl_module.modules()]
    with isolate_rng(), torch.no_grad():
        pl_module.eval()
        try:
            yield
        finally:
            for module, mode in modes:  # one by one: a frozen part may be in evaluation mode during training
                module.training = mode


def write_image(trainer: Trainer, tag: str, filename: str, image: Tensor) -> None:
    """Give an image to every TensorBoard logger, at the trainer's step, and save it as PNG in the run's folder.

    To be called in every process: they agree on the folder, then the first one writes.

    Args:
        trainer: Its ``log_dir`` is the run's folder; without a logger that is ``default_root_dir``.
        tag: TensorBoard's name of the image.
        filename: Path of the PNG file below the run's folder; folders are made, an older file is replaced.
        image: ``(3, H, W)`` uint8.
    """
    folder = trainer.log_dir  # a broadcast
    if not trainer.is_global_zero:
        return
    # Loggers of other kinds may have no folder.
    path = Path(folder if folder is not None else trainer.default_root_dir) / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, global_step=trainer.global_step)


def write_scalars(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give values to every logger, at the trainer's step. Loggers themselves write in the first process only."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)


def write_text(trainer: Trainer, tag: str, text: str, filename: str | None = None) -> None:
    """Give markdown to every TensorBoard logger, at the trainer's step; save it in the run's folder if it has a name.

    To be called in every process, like :func:`write_image`.
    """
    folder = trainer.log_dir  # a broadcast
    if not trainer.is_global_zero:
        return
    if filename is not None:
        path = Path(folder if folder is not None else trainer.default_root_dir) / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, global_step=trainer.global_step)
