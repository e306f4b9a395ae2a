"""What the ablations' tests share: a run's kept summary, and fit.py's part in a sweep."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

ABLATIONS = ROOT / "configs" / "ablations"
FAKE_FIT = Path(__file__).with_name("fake_fit.py")
SLOW_FIT = Path(__file__).with_name("slow_fit.py")
TINY = ["--data.source=shapes10", "--data.subset_size=100", "--data.val_size=40", "--data.batch_size=32"]
TINY += ["--model.image_size=24", "--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]


def a_run(variant: str, seed: int, test: float = 0.5, train: list[float] | None = None, **more: Any) -> dict[str, Any]:
    """What ``ablate.py`` keeps of a run."""
    train = train or [0.2, 0.4]
    changes = more.pop("changes", {} if variant == "baseline" else {f"model.{variant}": True})
    return {
        "variant": variant,
        "seed": seed,
        "settings": {"model.lr": 0.02, **changes},
        "changes": changes,
        "flags": [],
        "jobs": 1,
        "resumed": 0,
        "data": "CIFAR-10",
        "images": 5000,
        "test_images": 10_000,
        "epochs": len(train),
        "machine": "a CPU",
        "precision": "32-true",
        "train_top1": train[-1],
        "val_top1": test + 0.01,
        "test_top1": test,
        "seconds": 620.0,
        "history": [{"epoch": i + 1, "train_top1": top1, "val_top1": top1 / 2} for i, top1 in enumerate(train)],
        **more,
    }


def status(main: Callable[[list[str]], None], *words: str) -> int:
    """Run a script's main; its exit status."""
    try:
        main([*words])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was said."""
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def calls() -> list[dict[str, Any]]:
    """What the stand-in for ``fit.py`` was called with since the last time."""
    path = Path("calls.jsonl")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"results/ablations/{name}/summary.json").read_text(encoding="utf-8"))
    return found


def checkpoints() -> set[str]:
    return {str(path.relative_to("logs/ablations")) for path in Path("logs").rglob("*.ckpt")}


def when(condition: Callable[[], bool], then: Callable[[], Any]) -> threading.Thread:
    """In a thread, as soon as there is a reason."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
