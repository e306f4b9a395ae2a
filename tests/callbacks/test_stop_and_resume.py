"""A run that was stopped anywhere ends like one that was not, to the last bit."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from helpers.small_net import events
from lightning import Trainer
from running.checkpoint import steps_left

from callbacks.checkpoints.files import damage, previous, sidecar
from callbacks.stop_and_resume import StopAndResume
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
LOGS = Path("logs/alexnet-shapes10")
STEPS = 4  # an epoch: 100 images in batches of 32


def digest(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, optimiser and schedules."""
    checkpoint = torch.load(path, weights_only=True)
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add([checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")])
    return found.hexdigest()


def last(version: int) -> Path:
    return LOGS / f"version_{version}/checkpoints/last.ckpt"


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have this process send itself a signal in a step of training, or in a batch of an epoch's validation."""

    def arrange(step: int, signum: int = signal.SIGTERM, hook: str = "training_step") -> None:
        original = getattr(AlexNetClassifier, hook)

        def stopping(self: AlexNetClassifier, batch: Any, batch_idx: int) -> Any:
            now = self.trainer.global_step + (hook == "training_step")
            if now == step and not self.trainer.sanity_checking and batch_idx == now_batch(self, batch_idx):
                monkeypatch.setattr(AlexNetClassifier, hook, original)
                os.kill(os.getpid(), signum)
            return original(self, batch, batch_idx)

        def now_batch(self: AlexNetClassifier, batch_idx: int) -> int:
            return batch_idx if hook == "training_step" else 1

        monkeypatch.setattr(AlexNetClassifier, hook, stopping)

    return arrange


PLATEAU = [*UNSEEN, "--model.schedule=plateau", "--model.patience=0", "--trainer.max_epochs=3"]


HOOKS = ("training_step", "validation_step")
EVERY_STEP = [(n, hook) for n in range(1, 3 * STEPS + 1) for hook in (HOOKS[:1] if n % STEPS else HOOKS)]


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize(
    ("places", "signum"),
    [
        ([(2, HOOKS[0]), (STEPS, HOOKS[0]), (STEPS, HOOKS[1])], signal.SIGTERM),
        ([(1, HOOKS[0]), (2 * STEPS, HOOKS[1])], signal.SIGINT),
        pytest.param(EVERY_STEP, signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["three", "two", "all"],
)
def test_stopped_by_a_signal(
    fit: Fit, stop_at: Callable[..., None], places: list[tuple[int, str]], signum: signal.Signals
) -> None:
    """In steps of a run, and in validation, one after the other: exit status 143 or 130, and nothing is lost."""
    assert fit(*PLATEAU, once="whole") == 0
    resume: list[str] = []
    for version, (step, hook) in enumerate(places, 1):
        stop_at(step, signum, hook)
        assert fit(*PLATEAU, *resume) == 128 + signum, (step, hook)
        assert torch.load(last(version), weights_only=True)["global_step"] == step
        resume = ["--ckpt_path", str(last(version))]
    assert fit(*PLATEAU, *resume) == 0
    assert digest(last(len(places) + 1)) == digest(last(0))


def every_tensor(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by where they are in it, of callbacks and of the optimiser too."""
    found: dict[str, torch.Tensor] = {}

    def add(value: Any, place: str) -> None:
        if isinstance(value, torch.Tensor) and "/ModelCheckpoint" not in place:  # which has the run's folder in it
            found[place] = value
        for key, item in value.items() if isinstance(value, dict) else enumerate(value) if type(value) is list else []:
            add(item, f"{place}/{key}")

    add(torch.load(path, weights_only=True), "")
    return found


EMA = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
SWA = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
SWA += ["--trainer.callbacks.swa_epoch_start=1", "--model.schedule=constant"]


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("averaging", "kept"), [(EMA, "/current_model_state/"), (SWA, "average_model_state/")])
def test_averages_are_the_unbroken_run_s(
    fit: Fit, stop_at: Callable[..., None], averaging: list[str], kept: str, hook: str
) -> None:
    """Stopped within an epoch, and in validation, where Lightning has swapped the averaged weights in."""
    words = [*UNSEEN, "--trainer.max_epochs=3", *averaging]
    assert fit(*words, once="whole") == 0
    stop_at(STEPS + 2 if hook == "training_step" else 2 * STEPS, hook=hook)
    assert fit(*words) == 143
    stop_at(2 * STEPS + 1)
    assert fit(*words, "--ckpt_path", str(last(1))) == 143
    assert fit(*words, "--ckpt_path", str(last(2))) == 0
    for name in ("last.ckpt", "best.ckpt"):
        whole, resumed = (every_tensor(last(version).with_name(name)) for version in (0, 3))
        assert whole.keys() == resumed.keys()
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == [], name
    assert any(kept in key for key in every_tensor(last(0)))
    assert digest(last(3)) == digest(last(0))


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("schedule", ["one_cycle", "milestones"])
def test_ctrl_c(fit: Fit, stop_at: Callable[..., None], capsys: pytest.CaptureFixture[str], schedule: str) -> None:
    words = [*UNSEEN, f"--model.schedule={schedule}", "--model.milestones=[1]"]
    handler = signal.getsignal(signal.SIGINT)  # ignored where the tests run in a shell's background
    assert fit(*words, once="whole") == 0
    stop_at(3, signal.SIGINT)
    assert fit(*words) == 130
    assert f"stopped after 0 epochs and 3 batches: go on with the same command and --ckpt_path {last(1)}" in (
        capsys.readouterr().err.replace(f"{Path().absolute()}/", "")
    )
    assert signal.getsignal(signal.SIGINT) is handler
    assert fit(*words, "--ckpt_path", "last") == 0
    out = capsys.readouterr().out
    assert f"--ckpt_path last: {last(1)}" in out
    assert digest(last(2)) == digest(last(0))


@pytest.mark.usefixtures("small_net")
def test_the_best_of_the_whole_run_is_tested(fit: Fit, stop_at: Callable[..., None]) -> None:
    """What was best before the stop is still known after it, in the new run's own folder."""
    stop_at(STEPS + 1)
    assert fit(*UNSEEN) == 143
    before = torch.load(last(0).with_name("best.ckpt"), weights_only=True)
    assert fit(*UNSEEN, "--model.schedule=constant", "--model.lr=1e-9", "--ckpt_path", str(last(0))) == 0
    states = torch.load(last(1), weights_only=True)["callbacks"]
    best = next(s for name, s in states.items() if "'monitor': 'val/top1'" in name)
    assert Path(best["best_model_path"]).parent.absolute() == last(1).parent.absolute()
    assert last(1).with_name("best.ckpt").is_file()
    assert before["global_step"] == STEPS


@pytest.mark.usefixtures("small_net")
def test_what_can_not_go_on(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(*UNSEEN, once="whole") == 0
    runs = sorted(LOGS.iterdir())
    capsys.readouterr()

    for words, message in (
        (["--trainer.max_epochs=1"], f"--trainer.max_epochs: 1, but {last(0)} was trained for 2 epochs. Raise it, or"),
        (["--trainer.max_epochs=5"], "--trainer.max_epochs: 12 more steps are more than the 8 that the one_cycle"),
        (["--model.groups=1"], "net.conv2.weight is (8, 4, 3, 3) in the checkpoint and (8, 8, 3, 3) in the model"),
    ):
        assert fit(*UNSEEN, "--ckpt_path", "last", *words) == 2
        assert message in capsys.readouterr().err
    half = steps_left(Trainer(max_epochs=5, accumulate_grad_batches=2, logger=False), STEPS, 2, 0, 8)
    assert half == 6
    # All four batches of the third epoch are done: in two steps of three, of which the last is short.
    assert steps_left(Trainer(max_epochs=5, accumulate_grad_batches=3, logger=False), STEPS, 2, STEPS, 6) == 4
    assert fit(*UNSEEN, "--ckpt_path", str(last(0).with_name("best.ckpt"))) == 2
    assert "holds weights only, training can't go on from it" in capsys.readouterr().err

    flip = bytearray(last(0).read_bytes())
    flip[len(flip) // 2] ^= 1
    last(0).write_bytes(flip)
    assert fit(*UNSEEN, "--ckpt_path", "last", "--model.groups=1") == 2
    captured = capsys.readouterr()
    assert f"warning: {last(0)}: damaged, its SHA-256 is" in captured.err
    assert f"error: {previous(last(0))}: net.conv2.weight is" in captured.err
    previous(last(0)).write_bytes(b"")
    assert fit(*UNSEEN, "--ckpt_path", "last") == 2
    assert f"error: {last(0)}: damaged" in capsys.readouterr().err
    assert fit(*UNSEEN, "--ckpt_path", "last", "--trainer.logger.init_args.name=another") == 2
    assert "--ckpt_path last: no run in logs/another/" in capsys.readouterr().err
    assert sorted(LOGS.iterdir()) == runs
    assert sidecar(last(0)).is_file()


def summary(version: int) -> dict[str, Any]:
    """A run's ``summary.json`` without what differs from one run to the next."""
    found = json.loads((LOGS / f"version_{version}/summary.json").read_text())
    times = [entry.pop("seconds") for entry in found["history"]]
    assert found["fit_seconds"] >= sum(times) - 0.1
    return {key: value for key, value in found.items() if key not in ("command", "seconds", "fit_seconds", "resumed")}


@pytest.mark.usefixtures("small_net")
def test_a_finished_run_goes_on_to_its_test(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in its test, it has trained all there is; its summary is the unbroken run's."""
    assert fit(*UNSEEN, once="whole") == 0
    (LOGS / "version_0/summary.json").rename("whole.json")
    capsys.readouterr()
    assert fit(*UNSEEN, "--ckpt_path", "last") == 0
    said = capsys.readouterr().out
    assert f"nothing left to train: {last(0)} was trained for 2 epochs, 8 steps. On to the test." in said
    Path("whole.json").rename(LOGS / "version_0/summary.json")
    assert summary(1) == summary(0)
    assert json.loads((LOGS / "version_1/summary.json").read_text())["resumed"] == 1


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_in_its_test(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    assert fit(*UNSEEN, once="whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(AlexNetClassifier, "test_step", lambda *_: os.kill(os.getpid(), signum))
        assert fit(*UNSEEN) == 128 + signum
    assert not (LOGS / "version_1/summary.json").exists()
    assert fit(*UNSEEN, "--ckpt_path", "last") == 0
    assert "On to the test." in capsys.readouterr().out
    assert summary(2) == summary(0)


@pytest.mark.usefixtures("small_net")
def test_a_terminal_that_closes(fit: Fit, stop_at: Callable[..., None]) -> None:
    """SIGHUP stops as SIGTERM does; under nohup, which has it ignored, nothing happens."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop_at(3, signal.SIGHUP)
        assert fit(*UNSEEN) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    stop_at(3, signal.SIGHUP)
    assert fit(*UNSEEN) == 129
    assert fit(*UNSEEN, "--ckpt_path", str(last(1))) == 0
    assert digest(last(2)) == digest(last(0))


PLACES = {"torch.serialization._save": signal.SIGTERM, "hashlib.sha256": signal.SIGINT}
PLACES |= {"os.fsync": signal.SIGTERM, "os.replace": signal.SIGINT}


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize(("place", "signum"), PLACES.items())
def test_a_second_signal_while_the_checkpoint_is_written(
    fit: Fit,
    stop_at: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    signum: signal.Signals,
) -> None:
    """One line, the signal's status, and whole files to go on from."""
    assert fit(*UNSEEN, once="whole") == 0
    stop_at(STEPS + 2, signum)
    owner, _, name = place.rpartition(".")
    module: Any = importlib.import_module(owner)
    original, saving = getattr(module, name), StopAndResume._stop_if_asked

    def _stop_if_asked(self: StopAndResume, *args: Any, **kwargs: Any) -> None:
        def second(*words: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signum)
            return original(*words, **options)

        with monkeypatch.context() as patch:
            if self._signum is not None:
                patch.setattr(module, name, second)
            saving(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopAndResume, "_stop_if_asked", _stop_if_asked)
        capfd.readouterr()
        assert fit(*UNSEEN) == 128 + signum
    said = [
        line for line in capfd.readouterr().err.splitlines() if "saving" in line or "Trace" in line or "error" in line
    ]
    assert said == [f"{signum.name}: saving after this batch; once more stops at once"]
    assert [path for path in LOGS.rglob("*.ckpt") if damage(path)] == []
    assert fit(*UNSEEN, "--ckpt_path", str(last(1))) == 0
    assert digest(last(2)) == digest(last(0))


@pytest.mark.usefixtures("small_net")
def test_a_history_is_of_the_whole_run(fit: Fit, stop_at: Callable[..., None]) -> None:
    words = [*UNSEEN, "--trainer.max_epochs=3"]
    assert fit(*words, once="whole") == 0
    stop_at(2 * STEPS, signal.SIGTERM, "validation_step")
    assert fit(*words) == 143
    assert fit(*words, "--ckpt_path", str(last(1))) == 0
    whole, resumed = summary(0), summary(2)
    assert [entry["epoch"] for entry in resumed["history"]] == [1, 2, 3]
    for key in ("val_loss", "val_top1", "val_top5", "lr"):
        assert [entry[key] for entry in resumed["history"]] == [entry[key] for entry in whole["history"]]
    log = events(LOGS / "version_0")
    for tag, key in (("train/top1", "train_top1"), ("train/loss", "train_loss"), ("val/top5", "val_top5")):
        measured = [event.value for event in log.Scalars(tag)]
        assert [entry[key] for entry in whole["history"]] == pytest.approx(measured)


@pytest.mark.usefixtures("small_net")
def test_last_is_written_every_epoch(fit: Fit) -> None:
    """Whatever is monitored, and however rarely validation is."""
    assert fit(*UNSEEN, "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=3") == 0
    assert torch.load(last(0), weights_only=True)["global_step"] == 3 * STEPS
    assert torch.load(previous(last(0)), weights_only=True)["global_step"] == 2 * STEPS


@pytest.mark.usefixtures("small_net")
def test_a_full_disk_ends_the_run_in_one_line(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(*UNSEEN, once="whole") == 0
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if last(1).is_file():  # the first epoch's was written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert fit(*UNSEEN) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert ".ckpt: can't be written (No space left on device)" in errors[0]
    assert fit(*UNSEEN, "--ckpt_path", str(last(1))) == 0
    assert digest(last(2)) == digest(last(0))


@pytest.mark.slow
@pytest.mark.usefixtures("small_net")
def test_killed_at_any_moment(fit: Fit) -> None:
    """12 SIGKILLs while it trains, each followed by a resumed run: it ends like the run that was left alone."""
    words, epochs = [*PLATEAU, "--trainer.max_epochs=40"], 40  # three times what 12 take, should they be quicker
    start = time.monotonic()
    assert fit(*words, "--trainer.logger.init_args.name=whole") == 0
    epoch = (time.monotonic() - start) / epochs
    rng = random.Random(0)
    for kill in range(13):
        resume = ["--ckpt_path", "last"] if list(LOGS.glob("*/checkpoints/last.ckpt")) else []
        reader, writer = os.pipe()
        pid = os.fork()  # a child has everything imported already
        if not pid:
            AlexNetClassifier.on_train_start = lambda self, writer=writer: os.close(writer)  # type: ignore[assignment]
            os.close(reader)
            try:
                os._exit(fit(*words, *resume))
            finally:
                os._exit(99)
        os.close(writer)
        os.read(reader, 1)  # training begins
        os.close(reader)
        if kill < 12:
            time.sleep(2.5 * epoch * rng.random())
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        for path in LOGS.glob("*/checkpoints/*.ckpt"):
            assert damage(path) is None, path
        assert os.WIFSIGNALED(status) if kill < 12 else os.waitstatus_to_exitcode(status) == 0
    newest = max(LOGS.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    assert digest(newest) == digest(Path("logs/whole-shapes10/version_0/checkpoints/last.ckpt"))
