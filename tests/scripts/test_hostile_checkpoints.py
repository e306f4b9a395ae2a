"""Checkpoints from anywhere: whatever is in one, it is refused in one line or taken to the end of its run."""

from __future__ import annotations

import copy
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import UNSEEN
from helpers.small import small_net as small_net

Fit = Callable[..., int]
LOGS = Path("logs/alexnet-shapes10")
LAST = LOGS / "version_0/checkpoints/last.ckpt"
DELETED = object()
MUTATIONS: dict[str, Any] = {
    "deleted": DELETED,
    "None": None,
    "text": "text",
    "-1": -1,
    "nan": math.nan,
    "empty list": [],
    "another shape": torch.ones(2, 3),
    "huge": 10**30,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a checkpoint."""
    if path:
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def mutated(checkpoint: Any, path: tuple[Any, ...], value: Any) -> Any:
    whole = copy.deepcopy(checkpoint)
    owner = whole
    for key in path[:-1]:
        owner = owner[key]
    if value is DELETED:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return whole


def outcome(fit: Fit, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """``refused``, ``diverged`` or ``done``; anything else is what went wrong."""
    capsys.readouterr()
    try:
        status = fit(*words)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said or len(errors) != bool(status):
        return f"status {status}: {said[-300:]}"
    return {0: "done", 2: "refused", 3: "diverged"}.get(status, f"status {status}")


@pytest.fixture
def resumed(fit: Fit, small_net: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What becomes of a checkpoint's contents that training goes on from."""
    assert fit(*UNSEEN, "--trainer.max_epochs=1", "--model.schedule=plateau") == 0
    shutil.copytree(LOGS / "version_0", "kept")

    def run(contents: Any, *words: str, subcommand: str = "fit") -> str:
        shutil.rmtree(LOGS)
        shutil.copytree("kept", LOGS / "version_0")
        torch.save(contents, LAST)
        LAST.with_name("last.ckpt.sha256").unlink()
        shrunk = subcommand == "fit"
        options = [*UNSEEN, "--trainer.limit_val_batches=1", *words] if shrunk else [subcommand]
        return outcome(fit, capsys, *options, "--ckpt_path", str(LAST))

    return run


def test_a_checkpoint_that_is_as_it_was_goes_on(resumed: Callable[..., str]) -> None:
    whole = torch.load(LAST, weights_only=True)
    assert resumed(whole) == "done"
    assert resumed(whole, subcommand="test") == "done"


@pytest.mark.parametrize("sample", [60, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_mutations(resumed: Callable[..., str], sample: int | None) -> None:
    """Every value deleted, or replaced by something else."""
    whole = torch.load(LAST, weights_only=True)
    everything = [(path, name) for path in places(whole) for name in MUTATIONS]
    chosen = random.Random(0).sample(everything, sample or len(everything))
    counts: Counter[str] = Counter()
    for path, name in chosen:
        found = resumed(mutated(whole, path, MUTATIONS[name]))
        counts[found if found in ("refused", "diverged", "done") else "wrong"] += 1
        if found not in ("refused", "diverged", "done"):
            print("WRONG", path, name, found, flush=True)
        if log := os.environ.get("HOSTILE_LOG"):
            with open(log, "a", encoding="utf-8") as file:
                print(found[:300], path, name, file=file, flush=True)
    print(counts)
    assert not counts["wrong"], counts
