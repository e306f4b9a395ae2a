"""Checkpoints from anywhere: whatever is in one, it is refused in one line or taken to the end of its run."""

from __future__ import annotations

import copy
import math
import os
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from running import errors

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
    assert fit(*UNSEEN, "--trainer.max_epochs=1", "--model.schedule=plateau", once="whole") == 0
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


@pytest.mark.parametrize("sample", [10, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
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


PRINTABLE = errors.printable
BUFFER = ("optimizer_states", 0, "state", 0, "momentum_buffer")


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        (BUFFER, torch.zeros(1), "optimizer_states.0.momentum_buffer: (1,), expected"),
        (BUFFER, torch.zeros(8, 3, 11, 11).to_sparse(), "optimizer_states.0.momentum_buffer"),
        (BUFFER, torch.zeros(8, 3, 11, 11, dtype=torch.complex64), "optimizer_states.0.momentum_buffer"),
        (BUFFER, torch.full((8, 3, 11, 11), math.nan), "optimizer_states.0.momentum_buffer: NaN or infinite"),
        (BUFFER, torch.zeros(1).expand(8, 3, 11, 11 * 10**9), "optimizer_states.0.momentum_buffer"),
        (BUFFER[:-1], {}, "optimizer_states.1: a dict, expected what the others have"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [1, 0, 2, 3, 4, 5, 6, 7], "param_groups"),
        (("optimizer_states", 0, "param_groups", 0, "maximize"), True, "optimizer_states.maximize"),
        (("lr_schedulers", 0, "step"), 5, "lr_schedulers"),
        (
            ("state_dict", "net.conv1.weight"),
            torch.full((8, 3, 11, 11), math.inf),
            "net.conv1.weight is NaN or infinite",
        ),
        (
            ("hyper_parameters", "num_classes"),
            10**9,
            "(10, 12) in the checkpoint and (1000000000, 12) in the model. Its settings make another network. Use a",
        ),
        (("CIFAR10DataModule", "std"), torch.tensor([-1.0, 1, 1]), "std: no statistics of RGB values"),
        (("loops", "fit_loop", "epoch_progress", "current", "processed"), 2**60, "processed: 1152921504606846976"),
        (("pytorch-lightning_version",), "\x1b]0;owned\x07", "?]0;owned?"),
    ],
    ids=str,
)
def test_refused_in_one_line(
    resumed: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    path: tuple[Any, ...],
    value: Any,
    wrong: str,
) -> None:
    """Of another shape than its parameter, a momentum buffer ended the process with SIGSEGV."""
    said: list[str] = []
    monkeypatch.setattr(errors, "printable", lambda text: said.append(real := PRINTABLE(text)) or real)
    assert resumed(mutated(torch.load(LAST, weights_only=True), path, value)) == "refused"
    assert wrong in said[0]
    assert "\x1b" not in said[0]


@pytest.mark.parametrize("subcommand", ["test", "validate"])
@pytest.mark.parametrize("sample", [5, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_mutations_of_what_is_tested(resumed: Callable[..., str], subcommand: str, sample: int) -> None:
    whole = torch.load(LAST, weights_only=True)
    trained = ("optimizer_states", "lr_schedulers")
    everything = [(path, name) for path in places(whole) if path[0] not in trained for name in MUTATIONS]
    for path, name in random.Random(1).sample(everything, sample):
        found = resumed(mutated(whole, path, MUTATIONS[name]), subcommand=subcommand)
        assert found in ("refused", "done"), (path, name)


SECRET = "-----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize("name", ["secret.pem", "../secret.pem", "link.ckpt", "..", "", "/etc/passwd"])
def test_what_was_best_is_no_way_to_other_files(resumed: Callable[..., str], name: str) -> None:
    """Taken over is what lies beside the checkpoint, is a checkpoint, and no link to something else."""
    whole = torch.load(LAST, weights_only=True)
    key = next(key for key in whole["callbacks"] if "'monitor': 'val/top1'" in key)
    whole["callbacks"][key]["best_model_path"] = name
    for folder in ("kept", "kept/checkpoints"):
        Path(folder, "secret.pem").write_text(SECRET, encoding="utf-8")
    os.symlink(Path("kept/secret.pem").absolute(), "kept/checkpoints/link.ckpt")
    assert resumed(whole, "--model.lr=1e-9") == "done"
    written = [path for path in (LOGS / "version_1").rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert {path.name for path in written if path.parent.name == "checkpoints"} <= {
        f"{name}.ckpt{end}" for name in ("best", "last", "last.previous") for end in ("", ".sha256")
    }


def test_what_was_best_is_no_way_to_delete_other_files(resumed: Callable[..., str]) -> None:
    """Lightning deletes what is no longer best, wherever a checkpoint of the same folder says that it lies."""
    whole = torch.load(LAST, weights_only=True)
    key = next(key for key in whole["callbacks"] if "'monitor': 'val/top1'" in key)
    folder = str((LOGS / "version_1/checkpoints").absolute())
    Path("precious.ckpt").write_text("precious", encoding="utf-8")
    best = f"{folder}/../../../../precious.ckpt"
    score = torch.tensor(-1.0)  # the next epoch is better
    whole["callbacks"][key] |= {"dirpath": folder, "kth_best_model_path": best, "best_k_models": {best: score}}
    whole["callbacks"][key] |= {"best_model_score": score, "kth_value": score, "best_model_path": best}
    assert resumed(whole) in ("refused", "done")
    assert Path("precious.ckpt").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("thing", ["pipe", "device", "packed"])
def test_what_is_no_checkpoint_is_not_waited_for(fit: Fit, capsys: pytest.CaptureFixture[str], thing: str) -> None:
    path = Path("last.ckpt")
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "device":
        path.symlink_to("/dev/zero")
    else:
        torch.save({"state_dict": {"w": torch.zeros(10**7)}}, "whole")
        with zipfile.ZipFile("whole") as parts, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for part in parts.infolist():
                packed.writestr(part.filename, parts.read(part))
        assert path.stat().st_size < 10**6
    assert fit("test", "--ckpt_path", "last.ckpt") == 2
    assert ("it is packed" if thing == "packed" else "last.ckpt: no file") in capsys.readouterr().err


def test_a_sidecar_that_is_a_pipe_is_not_waited_for(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("last.ckpt").write_bytes(b"PK")
    os.mkfifo("last.ckpt.sha256")
    assert fit("test", "--ckpt_path", "last.ckpt") == 2
    assert "last.ckpt: damaged" in capsys.readouterr().err
