"""Loggers that can't write end no run."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from lightning.pytorch.loggers import Logger

from callbacks.base import or_left_out

WRITES = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")


def go_on_without(loggers: Iterable[Logger]) -> None:
    """Have what a logger can't write left out, with one warning: its own methods, which Lightning calls in each step.

    TensorBoard's thread, which raises in the main one what happened to it, says nothing more.
    """
    for logger in loggers:
        for name in WRITES:
            setattr(logger, name, or_left_out()(getattr(logger, name)))
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
