"""Runs of two processes, and what many epochs leave behind. All slow."""

from __future__ import annotations

import csv
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load, slow_fit
from helpers.ablation import SLOW_FIT, TINY
from helpers.small import small_net as small_net
from helpers.small_net import events
from PIL import Image

from lightning_modules import AlexNetClassifier

pytestmark = pytest.mark.slow

TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
SMALL = [*TINY, "--data.batch_size=16", "--trainer.max_epochs=2", *TWO]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
RUNS = Path("logs/alexnet-shapes10")


def start(*words: str, fail: str = "9:0:", subcommand: str = "fit") -> BaseProcess:
    """Fork the first process, which has everything imported already; Lightning starts the second, as ever."""

    def run() -> None:
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        os.environ |= {"FAIL": fail, "OMP_NUM_THREADS": "1", "FIRST_PROCESS": str(os.getpid())}
        sys.modules["__main__"].__spec__ = None  # pytest's: the second is started by argv
        sys.argv = [str(SLOW_FIT), subcommand, *SMALL, *words]
        slow_fit.main()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def finished(process: BaseProcess, status: int | None = 0) -> str:
    """What both said at their end, with that status or with any but 0. When one is gone, the other has 30 seconds."""
    end = deadline = time.monotonic() + 200
    try:
        while left := process.is_alive() + len(ours()):
            if left == 2:
                deadline = min(end, time.monotonic() + 30)
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
    said = Path("said.txt").read_text(encoding="utf-8")
    assert (process.exitcode and status is None) or process.exitcode == status, said
    return said


def ours() -> list[Path]:
    """Processes that were started with the script in this test's folder: the second one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, folder = (process / "cmdline").read_bytes(), (process / "cwd").resolve()
            if SLOW_FIT.name.encode() in words and folder == Path().resolve():
                found.append(process)
    return found


def scalars(run: Path) -> dict[str, float]:
    log = events(run)
    return {tag: log.Scalars(tag)[-1].value for tag in log.Tags()["scalars"] if tag.startswith("test/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert "63 to test" in finished(start("--best_checkpoint.monitor=null"))  # the last is the tested one
    return folder / RUNS / "version_0"


def test_63_images_in_two_processes(whole: Path, fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other for ever, each image counts once, and pictures are drawn once, as by one process."""
    slow_fit.shrink(monkeypatch.setattr)
    assert fit("test", "--ckpt_path", str(whole / "checkpoints/last.ckpt"), "--data.batch_size=16") == 0
    one, two = scalars(RUNS / "version_0"), scalars(whole)
    assert one.keys() == two.keys()
    assert {"test/top1", "test/top5", "test/loss", "test/ece", "test/retrieval_p5"} <= one.keys()
    assert two == pytest.approx(one, abs=1e-6)
    files, theirs = (
        {str(path.relative_to(run)): path.read_bytes() for path in run.glob("*/test_epoch_*")}
        for run in (RUNS / "version_0", whole)
    )
    kinds = sorted(name.split("_epoch")[0] + Path(name).suffix for name in files)
    drawn = ("calibration", "confusion", "explanations", "predictions", "retrieval", "top_losses")
    assert kinds == sorted(["confusion/test.md", *(f"{name}/test.png" for name in drawn)])
    assert files == theirs
    lines, others = ((run / "predictions_test.csv").read_text().splitlines() for run in (RUNS / "version_0", whole))
    assert len(lines) == len(others) == 64
    for line, other in zip(lines[1:], others[1:], strict=True):
        assert line.split(",")[:3] == other.split(",")[:3]
        assert [*map(float, line.split(",")[3:])] == pytest.approx([*map(float, other.split(",")[3:])], abs=1e-5)

    assert [path.name for path in whole.parent.iterdir()] == ["version_0"]
    names = [str(path.relative_to(whole)) for path in whole.rglob("*.png")]
    # Three predictions, two matrices, a map and a diagram.
    assert sum("/val_epoch" in name for name in names) == 7
    assert "| all | 40 |" in (whole / "confusion/val_epoch_002.md").read_text()
    assert "| all | 63 |" in next(whole.glob("confusion/test*.md")).read_text()
    assert len(events(whole).Scalars("health/images_per_second")) == 2


@pytest.mark.parametrize("count", [5, 1])
def test_pictures_in_two_processes(
    whole: Path, fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Some of them in batches of one come in their order, as by one process; of a single one the second has none."""
    Path("photos").mkdir()
    for place in range(count):
        Image.effect_noise((40 + place, 50), 100).save(f"photos/{place}.png")
    words = ["--ckpt_path", str(whole / "checkpoints/last.ckpt"), "--data.predict_folder=photos", "--data.batch_size=1"]
    finished(start(*words, subcommand="predict"))
    slow_fit.shrink(monkeypatch.setattr)
    assert fit("predict", *words) == 0
    two, one = (list(csv.reader((RUNS / f"version_{i}/predictions.csv").open(encoding="utf-8"))) for i in range(2))
    assert [row[:4] for row in two] == [row[:4] for row in one]
    assert [float(row[4]) for row in two[1:]] == pytest.approx([float(row[4]) for row in one[1:]], abs=1e-5)
    assert len(two) == 1 + 5 * count


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("fail", ["0:3:raise", "1:3:raise", "0:3:kill", "1:3:kill"])
def test_one_failing_ends_both(fail: str) -> None:
    said = finished(start("--looks=false", fail=fail), status=None)
    assert "made to fail" in said or "kill" in fail


def test_sigterm_stops_two_after_the_same_batch(whole: Path) -> None:
    """And the run that goes on from there ends like the one that was left alone."""
    stopped = start()
    run = RUNS / "version_0"
    while not list(run.glob("checkpoints/last.ckpt")) and stopped.is_alive():
        time.sleep(0.05)
    stopped.terminate()
    finished(stopped, 143)
    finished(start("--ckpt_path", str(run / "checkpoints/last.ckpt")))
    a, b = (load(folder / "checkpoints/last.ckpt") for folder in (whole, RUNS / "version_1"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.usefixtures("small_net")
def test_16_epochs_leave_nothing_behind(fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory grows by at most 0.5 MB an epoch; no figure and no more files are open."""
    import matplotlib.pyplot as plt

    memory: list[float] = []
    files: list[int] = []
    original: Any = AlexNetClassifier.on_train_epoch_start

    def on_train_epoch_start(self: AlexNetClassifier) -> None:
        original(self)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        files.append(len(list(Path("/proc/self/fd").iterdir())))

    monkeypatch.setattr(AlexNetClassifier, "on_train_epoch_start", on_train_epoch_start)
    often = ("conv1_filters", "nearest_neighbours", "embedding_projector", "top_patches")  # the others do so anyway
    assert fit("--trainer.max_epochs=16", *(f"--{name}.every_n_epochs=1" for name in often)) == 0
    assert not plt.get_fignums()
    assert len(set(files[2:])) == 1
    # The allocator takes some MB at once now and then; what is left behind by every epoch grows over any four of them.
    assert min(later - earlier for earlier, later in zip(memory[4:], memory[8:], strict=False)) < 0.5 * 4
