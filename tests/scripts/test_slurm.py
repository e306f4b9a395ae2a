"""A SLURM job whose time is up: it saves, is queued again, and goes on with the same command."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load
from helpers.small import small_net as small_net

from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
RUNS = Path("logs/alexnet-shapes10")
JOB = {"JOB_NAME": "train", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
WORDS = ["--looks=false", "--trainer.log_every_n_steps=1"]
pytestmark = pytest.mark.usefixtures("small_net")


@pytest.fixture
def submit(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run ``fit.py`` as a job; with ``until`` SLURM warns in that call of a hook."""
    tools = Path("tools").absolute()
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n', encoding="utf-8")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")

    def run(job: int, *words: str, until: tuple[str, int] | None = None) -> int:
        with monkeypatch.context() as patch:
            for name, value in {**JOB, "JOB_ID": str(job)}.items():
                patch.setenv(f"SLURM_{name}", value)
            if until is not None:
                hook: Any = getattr(AlexNetClassifier, until[0])

                def warned(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
                    if batch_idx == until[1]:
                        os.kill(os.getpid(), signal.SIGUSR1)
                    return hook(self, batch, batch_idx)

                patch.setattr(AlexNetClassifier, until[0], warned)
            return fit(*WORDS, *words)

    return run


@pytest.mark.parametrize("until", [("training_step", 1), ("validation_step", 0), ("test_step", 1)])
@pytest.mark.parametrize("logger", [[], ["--trainer.logger=false"]], ids=["logger", "no logger"])
def test_a_job_whose_time_is_up_goes_on(
    fit: Fit, submit: Callable[..., int], until: tuple[str, int], logger: list[str]
) -> None:
    """To the end of the run that nothing happened to, in its folder, and past what another network left to requeue."""
    Path("hpc_ckpt_5.ckpt").write_bytes(b"another network's")
    assert fit(*WORDS, once="whole") == 0
    assert submit(77, *logger, until=until) == 128 + signal.SIGUSR1
    assert Path("scontrol.txt").read_text(encoding="utf-8") == "requeue 77\n"
    assert submit(77, *logger) == 0
    (folder,) = (Path("logs") if logger else RUNS).glob("job_77_*")
    a, b = (json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (RUNS / "version_0", folder))
    assert b["resumed"] == 1
    for key in ("epochs", "val_top1", "val_top5", "test_loss", "test_top1"):
        assert a[key] == b[key], key
    a, b = (load(run / "checkpoints/last.ckpt") for run in (RUNS / "version_0", folder))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert sorted(path.name for path in Path().glob("hpc_*")) == ["hpc_ckpt_5.ckpt"]


def summary(job: int) -> dict[str, Any]:
    """Of the newest run of a job."""
    newest = max(RUNS.glob(f"job_{job}_*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
    return found


def test_another_job_starts_anew(submit: Callable[..., int]) -> None:
    assert submit(77, until=("training_step", 1)) == 128 + signal.SIGUSR1
    assert submit(78, "--trainer.max_epochs=1") == 0
    assert summary(78)["resumed"] == 0


def test_a_second_command_of_a_job_does_not_go_on_with_the_first_s(submit: Callable[..., int]) -> None:
    for seed in (1, 2):
        assert submit(77, "--trainer.max_epochs=1", f"--seed_everything={seed}") == 0
        assert (summary(77)["seed"], summary(77)["resumed"]) == (seed, 0)
    assert len([*RUNS.iterdir()]) == 2


def test_a_job_that_was_killed_before_its_first_checkpoint_begins_again(submit: Callable[..., int]) -> None:
    """Its folder is there, and nothing in it to go on from."""
    assert submit(77) == 0
    (run,) = RUNS.iterdir()
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    assert submit(77) == 0
    assert summary(77)["resumed"] == 0
