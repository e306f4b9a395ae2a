"""What a run came to: a table, ``summary.md`` and ``summary.json``."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callbacks.base import run_folder
from callbacks.checkpoints.files import write_whole
from callbacks.conv1_filters import filters_of
from callbacks.pure.filter_structure import filter_structure
from callbacks.run_history import RunHistory, metrics_of
from datamodules import CIFAR10DataModule
from running.errors import refuse
from running.figures import duration, percent
from running.machine import computer, versions
from running.markdown import table as markdown_table


def summarise_fit(trainer: Trainer, history: RunHistory, chosen: ModelCheckpoint, path: str | None) -> dict[str, Any]:
    """What training came to: accuracies in ``[0, 1]``, times in seconds.

    Args:
        trainer: After ``fit``.
        history: Of all of its epochs.
        chosen: What chooses the checkpoint that is tested.
        path: The checkpoint that is tested; None for the weights as they are.
    """
    last = history.epochs[-1] if history.epochs else {}
    validated = history.validations.get(_steps(path) if path else trainer.global_step, {})
    by = f" by {chosen.monitor}" if chosen.monitor != "val/top1" else ""
    return {
        "epochs": trainer.current_epoch,
        "images": history.images.get("train", 0),
        "val_images": history.images.get("val", 0),
        "tested": f"best epoch{by}" if path and chosen.monitor else "last epoch",
        "train_top1": last.get("train_top1"),
        "train_loss": last.get("train_loss"),
        "val_top1": validated.get("val_top1"),
        "val_top5": validated.get("val_top5"),
        **{name: validated[name] for name in ("val_ece",) if name in validated},
        "fit_seconds": round(history.seconds, 1),
        "resumed": history.resumed,
        "history": history.epochs,
    }


def _steps(path: str) -> int:
    """Optimiser steps before a checkpoint, whose weights stay on the disk; -1 where another plugin wrote the file."""
    with suppress(Exception):
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    return -1


def measured(trainer: Trainer, history: RunHistory, stage: str) -> dict[str, float]:
    """``test_images``, ``test_top1``, ``test_top5`` and ``test_loss``, or ``val_...``, of the pass that just ended.

    ``test_ece`` where Calibration looks. And ``structured_filters``: how many of conv1's filters have formed, see
    ``filter_structure``.
    """
    images = {f"{stage}_images": history.images[stage]} if stage in history.images else {}
    figures: dict[str, float] = {**images, **metrics_of(trainer, stage)}
    with suppress(TypeError, ValueError, IndexError):  # no conv1 of RGB filters, or not finite, or in shards
        figures["structured_filters"] = int(filter_structure(filters_of(trainer.lightning_module)[0]).structured.sum())
    return figures


def report(trainer: Trainer, datamodule: CIFAR10DataModule, figures: dict[str, Any], config: Any) -> None:
    """Print the run's table and write it beside the run's other files, with all that is needed to repeat it.

    Args:
        trainer: The run's.
        datamodule: The run's.
        figures: What was measured; ``seconds`` among them.
        config: The run's settings.
    """
    folder = run_folder(trainer)  # a broadcast: every process takes part
    if not trainer.is_global_zero:
        return
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else trainer.accelerator.name()
    summary = {
        "data": datamodule.description,
        **figures,
        "precision": trainer.precision,
        "seed": config.seed_everything,
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{computer()}, {trainer.world_size} x {name}",
        "versions": versions("torch", "lightning"),
    }
    rows, refused = table_rows(summary), ""
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        try:  # before the screen, which may be gone
            write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
            write_whole(folder / "summary.md", markdown(rows, summary))
        except OSError as error:
            wrong = f"can't be written ({error.strerror}), expected some space"
            refused = f"{folder / 'summary.json'}: {wrong}. Free some; --ckpt_path last then tests again."
    table = Table("", "", show_header=False, title=Text(summary["data"]))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console = Console(markup=False, highlight=False)  # a folder may have brackets in its name
    console.print(table)
    if refused:
        refuse(refused, status=1)
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        console.print(f"run folder: {folder}", soft_wrap=True)


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The short table: a name and a value for people, of what was measured."""
    tested = f"{summary['tested']}, " if "tested" in summary else ""
    its = "that epoch's weights, " if "epoch" in tested else "the same weights, " if tested else ""
    shares = {
        "train_top1": "train top-1 (last epoch, augmented, with dropout)",
        "val_top1": f"val top-1 ({tested}{summary.get('val_images', 0):,} images)",
        "test_top1": f"test top-1 ({its}{summary.get('test_images', 0):,} images)",
        "test_top5": "test top-5",
    }
    return [
        ("epochs", str(summary["epochs"])),
        *([("training images", f"{summary['images']:,}")] if "images" in summary else []),
        *(
            (name, percent([v] if (v := summary[key]) is not None else []))
            for key, name in shares.items()
            if key in summary
        ),
        ("time", duration([summary["seconds"]])),
    ]


def markdown(rows: list[tuple[str, str]], summary: dict[str, Any]) -> str:
    """``summary.md``: the table, and under it what a number is nothing without."""
    lines = [f"# {summary['data']}", "", markdown_table(("", ""), rows)]
    said = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += [f"`{summary['command']}`, seed {summary['seed']}", "", f"{summary['machine']}; {said}", ""]
    return "\n".join(lines)
