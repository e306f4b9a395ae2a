"""Runs of two processes, each of its own interpreter, and what 30 epochs leave behind. All slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.small import small_net as small_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import CIFAR10DataModule, shapes10
from lightning_modules import AlexNetClassifier

pytestmark = pytest.mark.slow

TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
# fit.py with the small network and 63 test images; `FAIL=1:3:raise` has process 1 fail in its step 3.
SCRIPT = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from datamodules import CIFAR10DataModule, shapes10
from lightning_modules import AlexNetClassifier, classifier
from helpers.small import SmallAlexNet
classifier.AlexNet = SmallAlexNet
shapes10._DEFAULT_PER_CLASS = {{"train": 16, "test": 7}}
images_in = CIFAR10DataModule.images_in
def some(self, split):
    images, targets = images_in(self, split)
    return (images[:63], targets[:63]) if split == "test" else (images, targets)
CIFAR10DataModule.images_in = some
rank, step, how = os.environ.get("FAIL", "9:0:").split(":")
training_step = AlexNetClassifier.training_step
def failing(self, batch, batch_idx):
    if self.global_rank == int(rank) and self.trainer.global_step + 1 == int(step):
        if how == "raise":
            raise RuntimeError("made to fail")
        os.kill(os.getpid(), 9)
    if how == "slow":
        import time
        time.sleep(0.3)
    return training_step(self, batch, batch_idx)
AlexNetClassifier.training_step = failing
from fit import main
main()
"""
SMALL = [
    "--data.source=shapes10",
    "--data.subset_size=100",
    "--data.val_size=40",
    "--data.batch_size=16",
    "--model.image_size=24",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
RUNS = Path("logs/alexnet-shapes10")


def start(*words: str, fail: str = "9:0:") -> subprocess.Popen[str]:
    Path("small_fit.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "small_fit.py", *words],
        env={**os.environ, "FAIL": fail, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ours() -> list[int]:
    """Processes that run the script in this test's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"small_fit.py" in (process / "cmdline").read_bytes()
                and (process / "cwd").resolve() == Path().resolve()
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def scalars(run: Path) -> dict[str, float]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("test/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        process = start(*SMALL, *TWO)
        out = process.communicate(timeout=200)[0]
        assert process.returncode == 0, out
        assert "63 to test" in out
        assert not ours()
    return folder / RUNS / "version_0"


@pytest.mark.usefixtures("small_net")
def test_63_images_in_two_processes(
    whole: Path, fit: Callable[..., int], small_shapes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither waits for the other for ever, each image counts once, and pictures are drawn once."""
    monkeypatch.setattr(shapes10, "_DEFAULT_PER_CLASS", {"train": 16, "test": 7})
    images_in = CIFAR10DataModule.images_in
    monkeypatch.setattr(
        CIFAR10DataModule,
        "images_in",
        lambda s, split: tuple(t[:63] if split == "test" else t for t in images_in(s, split)),
    )
    assert fit("test", "--ckpt_path", str(whole / "checkpoints/best.ckpt"), "--data.batch_size=16") == 0
    one, two = scalars(RUNS / "version_0"), scalars(whole)
    assert one.keys() == two.keys()
    assert {"test/top1", "test/top5", "test/loss", "test/retrieval_p5"} <= one.keys()
    assert two == pytest.approx(one, abs=1e-6)

    assert [path.name for path in whole.parent.iterdir()] == ["version_0"]
    names = [str(path.relative_to(whole)) for path in whole.rglob("*.png")]
    assert sum("/val_epoch" in name for name in names) == 6  # three predictions, two matrices and a map
    assert sum("/test_epoch" in name for name in names) == 3
    assert "| all | 40 |" in (whole / "confusion/val_epoch_002.md").read_text()
    assert "| all | 63 |" in next(whole.glob("confusion/test*.md")).read_text()
    events = EventAccumulator(str(whole))
    events.Reload()
    assert len(events.Scalars("health/images_per_second")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("fail", ["0:3:raise", "1:3:raise", "0:3:kill", "1:3:kill"])
def test_one_failing_ends_both(fail: str) -> None:
    process = start(*SMALL, *TWO, fail=fail)
    seen = 0.0
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        # From the moment that one is gone, the other has 30 seconds.
        if len(ours()) == 2:
            seen = time.monotonic()
        time.sleep(0.1)
    assert process.returncode not in (0, None)
    while ours() and time.monotonic() < seen + 30:
        time.sleep(0.1)
    assert not ours()
    assert time.monotonic() - seen < 30


def test_sigterm_stops_two_after_the_same_batch(whole: Path) -> None:
    """And the run that goes on from there ends like the one that was left alone."""
    stopped = start(*SMALL, *TWO, fail="9:0:slow")
    run = RUNS / "version_0"
    while not list(run.glob("checkpoints/last.ckpt")) and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    out = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 143, out
    assert not ours()
    resumed = start(*SMALL, *TWO, "--ckpt_path", str(run / "checkpoints/last.ckpt"))
    out = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, out
    folders = whole, RUNS / "version_1"
    a, b = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in folders)
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.usefixtures("small_net")
def test_30_epochs_leave_nothing_behind(fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory grows by at most 0.5 MB an epoch after ten; no figure and no more files are open."""
    import matplotlib.pyplot as plt

    memory: list[float] = []
    files: list[int] = []
    original: Any = AlexNetClassifier.on_train_epoch_start

    def on_train_epoch_start(self: AlexNetClassifier) -> None:
        original(self)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        files.append(len(list(Path("/proc/self/fd").iterdir())))

    monkeypatch.setattr(AlexNetClassifier, "on_train_epoch_start", on_train_epoch_start)
    often = ("conv1_filters", "nearest_neighbours", "embedding_projector")  # the others look after every epoch anyway
    assert fit("--trainer.max_epochs=30", *(f"--{name}.every_n_epochs=1" for name in often)) == 0
    assert not plt.get_fignums()
    assert len(set(files[2:])) == 1
    assert (memory[-1] - memory[10]) / (len(memory) - 11) < 0.5
