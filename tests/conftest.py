"""What several tests share: small data, a way to run the command line in this process, and the ``--slow`` switch."""

from __future__ import annotations

import gc
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import error_line

from datamodules import CIFAR10DataModule, shapes10
from lightning_modules import classifier

# Small tensors are quickest on one thread, and two would wait for each other on a busy machine.
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell's script: it is sent here
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # and under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_processes.py")  # the longest: begun last, one worker is left
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes to the working directory is gone with it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """shapes10 with 16 training and 6 test images a class."""
    monkeypatch.setattr(shapes10, "_DEFAULT_PER_CLASS", {"train": 16, "test": 6})


@pytest.fixture
def datamodule(small_shapes: None) -> CIFAR10DataModule:
    """100 training, 40 validation and 60 test images of shapes10, in batches of 32."""
    return CIFAR10DataModule(
        source="shapes10", subset_size=100, val_size=40, batch_size=32, crop_size=32, crop_padding=4, image_size=24
    )


@pytest.fixture(scope="session")
def _imported() -> None:
    """Runs collect garbage every epoch: what was imported is left out, which would take 0.2 s each time."""
    import fit  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _kept() -> dict[object, tuple[int, Path]]:
    return {}


@pytest.fixture
def fit(
    _imported: None,
    _kept: dict[object, tuple[int, Path]],
    small_shapes: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., int]:
    """Run ``fit.py`` with the given words in this process, on small data unless they say otherwise; its exit status.

    What many tests begin with, and what is so called by ``once``, runs once: then ``logs`` is a copy of what it left.
    """

    from running import cli

    monkeypatch.setattr(cli, "keep_memory", lambda: False)  # for the whole process: the next test would inherit it

    def run(*words: str, small: bool = True, once: str = "") -> int:
        from fit import main

        name = (once, classifier.AlexNet, words)
        if name in _kept:
            shutil.copytree(_kept[name][1], "logs")
            return _kept[name][0]
        if once:
            status = run(*words, small=small)
            _kept[name] = status, shutil.copytree("logs", tmp_path_factory.mktemp("kept") / "logs")
            return status
        shrink = [
            "--data.source=shapes10",
            "--data.subset_size=100",
            "--data.val_size=40",
            "--data.batch_size=32",
            "--model.image_size=24",
            "--trainer.max_epochs=2",
            "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--trainer.num_sanity_val_steps=0",
        ]
        subcommand = [words[0]] if words and not words[0].startswith("-") else []
        argv = [*subcommand, *(shrink if small else []), *words[len(subcommand) :]]
        monkeypatch.setattr(sys, "argv", ["scripts/fit.py", *argv])
        try:
            main()
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        return 0

    return run


@pytest.fixture
def refused(fit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``fit.py`` with words that it must refuse: status 2 and one line, which is returned, and nothing written."""

    def run(*words: str) -> str:
        def files() -> list[Path]:
            return sorted(path for path in Path().rglob("*") if ".cache" not in path.parts)

        before = files()
        capsys.readouterr()
        assert fit(*words) == 2
        said = capsys.readouterr().err
        line = error_line(said)
        assert re.fullmatch(r"error: \S.*?: .+\. \S.*", line)  # <file or flag>: <what is wrong>. <what to do>
        assert "Traceback" not in said
        assert files() == before
        return line

    return run


@pytest.fixture
def end_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """W&B without network, and what it keeps beside its runs in the test's folder. To be called to end a run."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")  # WandbLogger sets it for the whole process
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb_own"))

    def end() -> None:
        wandb.finish()
        wandb.teardown()  # returns once the process that writes has written

    yield end
    end()
