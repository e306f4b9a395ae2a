"""Calibration: whether the network is as often right as it is sure."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.base import EveryNEpochs, Stage, gather_rows, log_probabilities_in
from callbacks.pure.reliability_diagram import calibration_error, reliability_diagram


class Calibration(EveryNEpochs):
    """Log the expected calibration error of validation and test, and draw reliability diagrams.

    It takes what validation and test predict anyway, of ten crops too: no image goes through the network for it. For
    that ``validation_step`` and ``test_step`` must return a mapping with ``log_probabilities`` ``(B, C)``.

    ``val/ece`` and ``test/ece``, in ``[0, 1]``, are Lightning's metrics like ``val/top1``, after every validation. The
    diagram goes to every logger as ``calibration/val`` or ``calibration/test`` and to
    ``calibration/val_epoch_010.png`` in the run's folder.

    Args:
        every_n_epochs: 1 draws after every epoch; 0 only at the end of fit. Validation runs of its own and tests are
            always drawn.
        enabled: False switches the callback off.

    Raises:
        TypeError: If the model's steps return no log-probabilities (at the first batch).

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks"; see ``calibration_error`` for its bins.
    """

    at_start = False

    def __init__(self, every_n_epochs: int = 0, enabled: bool = True) -> None:
        super().__init__(every_n_epochs, enabled)
        self._rows: list[Tensor] = []  # this process's, of each batch: (B, 2) float32, confidence, and 1 where right
        # A validation in fit that waits to be drawn: after how many epochs, and the rows of all processes.
        self._undrawn: tuple[int, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._undrawn = None

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        """Draw the newest validation, unless there was none since the last look."""
        if self._undrawn is not None:
            self._draw(trainer, stage, *self._undrawn)
            self._undrawn = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if not self.disabled(trainer) and not trainer.sanity_checking:
            highest, predicted = log_probabilities_in(outputs, self, pl_module).max(1)
            self._rows.append(torch.stack([highest.float().exp(), (predicted == batch[1]).float()], 1))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the error, over all processes. In fit it is drawn at the epoch's end, if that is its turn."""
        if self.disabled(trainer) or trainer.sanity_checking:
            return
        rows = gather_rows(trainer, torch.cat([torch.zeros(0, 2), *(rows.cpu() for rows in self._rows)]))
        stage: Stage = "test" if trainer.testing else "val"
        pl_module.log(f"{stage}/ece", calibration_error(*rows.T), sync_dist=True)  # the same in all processes
        if trainer.state.fn == "fit":
            self._undrawn = trainer.current_epoch + 1, rows
        else:
            self._draw(trainer, stage, self.epochs_under_test(trainer), rows)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _draw(self, trainer: Trainer, stage: Stage, epochs: int, rows: Tensor) -> None:
        if bool(rows.isnan().any()):
            self.warn(f"probabilities are NaN after epoch {epochs}: nothing shown.")
            return
        confidences, right = rows.T
        image = reliability_diagram(confidences, right, f"{len(rows):,} {stage} images after epoch {epochs}")
        self.draw(trainer, "calibration", stage, epochs, image)
