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
from small import small_net as small_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules import AlexNetClassifier

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
# fit.py with the small network and 63 test images; `FAIL=1:3:raise` has process 1 fail in its step 3.
SCRIPT = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "scripts")!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from datamodules import CIFAR10DataModule, shapes10
from lightning_modules import AlexNetClassifier, classifier
from small import SmallAlexNet
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


def test_63_images_in_two_processes() -> None:
    """Each image counts once, and pictures are drawn once."""
    first = start(*SMALL)
    assert "63 to test" in first.communicate(timeout=200)[0]
    best = RUNS / "version_0/checkpoints/best.ckpt"
    for extra in ([], TWO):
        process = start("test", "--ckpt_path", str(best), *extra)
        out = process.communicate(timeout=200)[0]
        assert process.returncode == 0, out
    one, two = (scalars(RUNS / f"version_{i}") for i in (1, 2))
    assert one.keys() == two.keys()
    assert {"test/top1", "test/top5", "test/loss", "test/retrieval_p5"} <= one.keys()
    assert two == pytest.approx(one, abs=1e-6)
    assert len(list((RUNS / "version_2").rglob("*.png"))) == len(list((RUNS / "version_1").rglob("*.png")))
    assert not ours()


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


def test_sigterm_stops_two_after_the_same_batch() -> None:
    words = [*SMALL, *TWO, "--model.schedule=constant"]
    whole = start(*words)
    assert whole.communicate(timeout=200)[0]
    stopped = start(*words, fail="9:0:slow")
    events = RUNS / "version_1"
    while not list(events.glob("checkpoints/last.ckpt")) and stopped.poll() is None:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    out = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 143, out
    assert not ours()
    last = events / "checkpoints/last.ckpt"
    resumed = start(*words, "--ckpt_path", str(last))
    out = resumed.communicate(timeout=200)[0]
    assert resumed.returncode == 0, out
    a, b = (torch.load(RUNS / f"version_{i}/checkpoints/last.ckpt", weights_only=True) for i in (0, 2))
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
    every = ["--conv1_filters.every_n_epochs=1", "--nearest_neighbours.every_n_epochs=1"]
    assert fit("--trainer.max_epochs=30", *every) == 0
    assert not plt.get_fignums()
    assert len(set(files[2:])) == 1
    assert (memory[-1] - memory[10]) / (len(memory) - 11) < 0.5
