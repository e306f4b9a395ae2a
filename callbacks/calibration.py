"""Calibration: whether the network is as often right as it is sure."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.base import OfPredictions, Stage, gather_rows
from callbacks.pure.reliability_diagram import calibration_error, reliability_diagram


class Calibration(OfPredictions):
    """Log the expected calibration error of validation and test, and draw reliability diagrams.

    It takes what validation and test predict anyway: see :class:`~callbacks.base.OfPredictions`.

    ``val/ece`` and ``test/ece``, in ``[0, 1]``, are Lightning's metrics like ``val/top1``, after every validation. The
    diagram goes to every logger as ``calibration/val`` or ``calibration/test`` and to
    ``calibration/val_epoch_010.png`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the end of fit. Validation runs of its own and tests are
            always drawn.
        enabled: False switches the callback off.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks"; see ``calibration_error`` for its bins.
    """

    def __init__(self, every_n_epochs: int = 0, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        self._rows: list[Tensor] = []  # this process's, of each batch: (B, 2) float32, confidence, and 1 where right
        self._gathered = torch.zeros(0, 2)  # those of all processes, of the pass that was finished last

    def begin(self) -> None:
        self._rows = []

    def take(self, trainer: Trainer, images: Tensor, targets: Tensor, log_probabilities: Tensor) -> None:
        highest, predicted = log_probabilities.max(1)
        self._rows.append(torch.stack([highest.float().exp(), (predicted == targets).float()], 1))

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Log the error, over all processes."""
        self._gathered = gather_rows(trainer, torch.cat([torch.zeros(0, 2), *(rows.cpu() for rows in self._rows)]))
        pl_module.log(f"{stage}/ece", calibration_error(*self._gathered.T), sync_dist=True)  # the same in all processes

    def show(self, trainer: Trainer, stage: Stage, epochs: int) -> None:
        if bool(self._gathered.isnan().any()):
            self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
            return
        confidences, right = self._gathered.T
        image = reliability_diagram(confidences, right, f"{len(right):,} {stage} images after epoch {epochs}")
        self.draw(trainer, "calibration", stage, epochs, image)
