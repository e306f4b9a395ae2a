"""What a run came to: a table, ``summary.md`` and ``summary.json``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.table import Table

from callbacks.base import run_folder
from callbacks.checkpoints.files import write_whole
from callbacks.run_history import METRICS, RunHistory
from datamodules import CIFAR10DataModule
from running.figures import duration, percent
from running.machine import processor, versions


def summarise_fit(
    trainer: Trainer, datamodule: CIFAR10DataModule, history: RunHistory, chosen: ModelCheckpoint
) -> dict[str, Any]:
    """What training came to: accuracies in ``[0, 1]``, times in seconds.

    Args:
        trainer: After ``fit``.
        datamodule: The run's.
        history: Of all of its epochs.
        chosen: What chose the checkpoint that is tested.
    """
    last = history.epochs[-1] if history.epochs else {}
    validated = next((entry for entry in reversed(history.epochs) if "val_top1" in entry), {})
    score = chosen.best_model_score if chosen.monitor == "val/top1" else None
    return {
        "epochs": trainer.current_epoch,
        "images": len(datamodule.split.train),
        "val_images": len(datamodule.split.val),
        "train_top1": last.get("train_top1"),
        "train_loss": last.get("train_loss"),
        "val_top1": validated.get("val_top1") if score is None else float(score),
        "val_top5": validated.get("val_top5"),
        "fit_seconds": round(history.seconds, 1),
        "resumed": history.resumed,
        "history": history.epochs,
    }


def measured(trainer: Trainer, stage: str) -> dict[str, float]:
    """``test_top1``, ``test_top5`` and ``test_loss``, or ``val_...``, of the pass that just ended."""
    found = {f"{stage}_{name}": trainer.callback_metrics.get(f"{stage}/{name}") for name in METRICS}
    return {name: float(value) for name, value in found.items() if value is not None}


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
    summary = {
        "data": datamodule.description,
        "test_images": len(datamodule.images_in("test")[0]),
        **figures,
        "seed": config.seed_everything,
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{processor()}, {os.cpu_count()} cores, {trainer.num_devices} x {trainer.accelerator.name()}",
        "versions": versions("torch", "lightning"),
    }
    rows = table_rows(summary)
    table = Table("", "", show_header=False, title=summary["data"])
    for name, value in rows:
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if getattr(trainer, "fast_dev_run", False):
        return
    write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_whole(folder / "summary.md", markdown(rows, summary))
    console.print(f"run folder: {folder}", soft_wrap=True)


def table_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The short table: a name and a value for people, of what was measured."""
    best, its = ("best epoch, ", "that epoch's weights, ") if "train_top1" in summary else ("", "")
    shares = {
        "train_top1": "train top-1 (last epoch, augmented, with dropout)",
        "val_top1": f"val top-1 ({best}{summary.get('val_images', 0):,} images)",
        "test_top1": f"test top-1 ({its}{summary['test_images']:,} images)",
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
    lines = [f"# {summary['data']}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    said = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines += [f"`{summary['command']}`, seed {summary['seed']}", "", f"{summary['machine']}; {said}", ""]
    return "\n".join(lines)
