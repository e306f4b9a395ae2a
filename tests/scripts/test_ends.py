"""An end of any kind keeps what was done, and says in a line why it came."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, error_line
from helpers.ablation import SLOW_FIT, TINY
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from running import report
from running.start import Screen, script, unfailing
from tensorboard.summary.writer.record_writer import RecordWriter

from callbacks import base
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
RUN = Path("logs/alexnet-shapes10/version_0")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def summary() -> Any:
    return json.loads((RUN / "summary.json").read_text(encoding="utf-8"))


# ---- signals -----------------------------------------------------------------------------------------------


def start(name: str, torch_does: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script with a stand-in for torch, which is imported early and does what it is told instead."""
    Path("path").mkdir(exist_ok=True)
    Path("path/torch.py").write_text(f"import os, time\n{torch_does}\n", encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / name), "all", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["path", str(ROOT)]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_signal_while_modules_are_imported(name: str, signum: signal.Signals) -> None:
    """No traceback of the import system; the status that shells show as 128 and the signal's number."""
    process = start(name, f"os.kill(os.getpid(), {int(signum)}); time.sleep(9)")
    said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said, complaint) == (-signum, "", "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_while_a_script_works(signum: signal.Signals) -> None:
    """Its own children are ended by what Python does on its way out, and a library's other error is not shown."""
    before = signal.getsignal(signum)

    def work() -> None:
        try:
            os.kill(os.getpid(), signum)
        except BaseException:
            raise RuntimeError("unexpected pos") from None  # as torch.save makes of it

    with pytest.raises(SystemExit) as exit_, script():
        work()
    assert exit_.value.code == 128 + signum
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_what_the_parent_has_it_ignore_is_ignored(signum: signal.Signals) -> None:
    """SIGHUP under nohup, SIGINT in the background of a shell's script."""
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with script():
            os.kill(os.getpid(), signum)
            assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_the_first_of_two_processes_is_killed_while_the_second_starts(wait: float) -> None:
    """It imports, and then waits for the first: for as long as that lives."""
    words = "import os, subprocess, sys, time; os.environ.update(FIRST_PROCESS=str(os.getpid()), LOCAL_RANK='1'); "
    words += "print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(99)"
    start("fit.py", "time.sleep(99)").kill()
    first = subprocess.Popen(
        [sys.executable, "-c", words, sys.executable, str(ROOT / "scripts/fit.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["path", str(ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    second = Path("/proc", first.stdout.readline().strip())
    time.sleep(wait)
    first.kill()
    first.communicate()
    deadline = time.monotonic() + 10
    with suppress(FileNotFoundError):
        while " Z " not in (second / "stat").read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# ---- the screen --------------------------------------------------------------------------------------------


SCREENS = ["closed pipe", "full disk", "ascii"]


@contextmanager
def screen(kind: str) -> Iterator[None]:
    """Standard output and error on which something can't be printed; within a test, which pytest has set up."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stdout", "stderr"):
            place = {"closed pipe": writer, "full disk": "/dev/full", "ascii": f"{name}.txt"}[kind]
            raw = io.FileIO(place, "w", closefd=place != writer)
            stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="ascii", write_through=True)
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        yield
    os.close(writer)


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("kind", SCREENS)
def test_a_run_s_result_does_not_depend_on_the_screen(fit: Fit, kind: str) -> None:
    if kind == "full disk" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with screen(kind):
        looks = "true" if kind == "ascii" else "false"
        status = fit("--trainer.enable_progress_bar=true", "--trainer.enable_model_summary=true", f"--looks={looks}")
    assert status == 0
    assert {"history", "test_top1"} <= summary().keys()
    assert (RUN / "summary.md").is_file()
    if kind == "ascii":
        assert "| test top-1" in Path("stdout.txt").read_text(encoding="ascii")


@pytest.mark.slow
def test_head_closes_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``fit.py | head -1``, whole processes."""
    process = subprocess.Popen(
        [sys.executable, SLOW_FIT, *TINY, "--trainer.max_epochs=1", "--looks=false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=200) == 0
    assert summary()["epochs"] == 1


def test_streams_that_are_not_there_or_are_another_s() -> None:
    print("nothing", file=unfailing(None))
    stream = io.StringIO()
    assert unfailing(stream) is stream
    with open("said.txt", "w", encoding="utf-8") as file:
        through = Screen(file)
        assert (through.fileno(), through.isatty()) == (file.fileno(), False)


# ---- the disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was warned of being left out, once for each cause."""
    said: list[str] = []
    monkeypatch.setattr(base, "warn_once", lambda message: said.append(message) if message not in said else None)
    return said


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("small_net")
def test_logs_and_pictures_that_can_not_be_written_end_no_run(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], warned: list[str]
) -> None:
    """Of TensorBoard, whose thread fails, of Lightning's loggers and of ours: said once, and no half is left."""
    Path("csv.yaml").write_text(
        "trainer: {logger: [{class_path: TensorBoardLogger, init_args: {save_dir: logs, name: alexnet}}, "
        "{class_path: CSVLogger, init_args: {save_dir: csv}}]}",
        encoding="utf-8",
    )
    written: list[None] = []
    original, opened = RecordWriter.write, open

    def write(self: RecordWriter, data: bytes) -> None:
        written.append(None)
        return full() if len(written) > 20 else original(self, data)

    def no_files(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        fails = len(written) > 20 and "w" in mode and str(path).endswith((".png", ".csv", ".tsv"))
        return full() if fails else opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(RecordWriter, "write", write)
    monkeypatch.setattr("builtins.open", no_files)
    assert fit("-c", "csv.yaml", "--trainer.log_every_n_steps=1") == 0
    assert warned == ["logs or pictures can't be written (No space left on device) and are left out; the run goes on"]
    assert "Traceback" not in capfd.readouterr().err
    assert summary()["test_images"] == 60
    assert all(path.stat().st_size for path in RUN.rglob("*.png"))


@pytest.mark.usefixtures("small_net")
def test_a_disk_that_is_full_from_the_start(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecordWriter, "write", full)
    assert fit(*UNSEEN) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if re.search("error|Traceback", line)]
    assert line.startswith(f"error: {RUN}: can't be written (No space left on device), expected some space. ")


@pytest.mark.usefixtures("small_net")
def test_the_log_folder_is_deleted(fit: Fit, monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    original = AlexNetClassifier.on_train_epoch_start

    def on_train_epoch_start(self: AlexNetClassifier) -> None:
        if self.current_epoch == 1:
            shutil.rmtree("logs")
        original(self)

    monkeypatch.setattr(AlexNetClassifier, "on_train_epoch_start", on_train_epoch_start)
    assert fit("--best_checkpoint.monitor=null") == 0
    assert len(warned) <= 1
    assert summary()["epochs"] == 2
    assert (RUN / "checkpoints/last.ckpt").is_file()


@pytest.mark.usefixtures("small_net")
def test_a_summary_that_can_not_be_written_is_on_the_screen(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write_whole", full)
    assert fit(*UNSEEN) == 1
    said = capsys.readouterr()
    assert "test top-1" in said.out
    line = error_line(said.err)
    assert re.search(r"summary.json: can't be written \(No space left on device\), expected .+\. Free some", line)


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_memory_that_runs_out(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    monkeypatch.setattr(AlexNetClassifier, step, lambda self, *_: torch.empty(2**50))
    assert fit(*UNSEEN) == 1
    said = capsys.readouterr().err
    line = error_line(said)
    assert "--data.batch_size: memory ran out after step " in line
    assert "Lower it, or --model.image_size." in line
    assert "Traceback" not in said
