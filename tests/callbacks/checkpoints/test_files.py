"""Checkpoints outlive kills, full disks and flipped bits. Small ones here; what is in them makes no difference."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.checkpoints import files as checkpoint_io
from callbacks.checkpoints.files import (
    CheckpointError,
    DamagedCheckpointError,
    NotFiniteError,
    damage,
    open_intact,
    previous,
    sidecar,
    write_checkpoint,
)
from callbacks.checkpoints.io import DurableCheckpointIO

PATH = Path("run/checkpoints/last.ckpt")


def checkpoint(step: int, size: int = 10_000) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((size,), float(step))}, "optimizer_states": [], "global_step": step}


def step_in(path: Path) -> int:
    found = torch.load(path, weights_only=True)
    assert found["state_dict"]["w"].eq(found["global_step"]).all()
    return int(found["global_step"])


def intact(path: Path) -> tuple[Path, str | None]:
    """Which file is taken, and what is wrong with the one asked for. Its contents are the file's."""
    opened = open_intact(path)
    assert opened.contents == opened.path.read_bytes()
    return opened.path, opened.wrong


def flip(path: Path, place: int = -5000) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_what_is_written_is_read() -> None:
    io = DurableCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(checkpoint(step), PATH)
    assert io.load_checkpoint(PATH)["global_step"] == step_in(PATH) == 3
    assert step_in(previous(PATH)) == 2
    assert sorted(p.name for p in PATH.parent.iterdir()) == [
        "last.ckpt",
        "last.ckpt.sha256",
        "last.previous.ckpt",
        "last.previous.ckpt.sha256",
    ]
    io.remove_checkpoint(PATH)
    assert not list(PATH.parent.iterdir())
    best = PATH.with_name("best.ckpt")
    for _ in range(2):
        io.save_checkpoint({"state_dict": {}}, best)
    assert not previous(best).exists()  # weights alone are not gone on from


def test_nothing_lies_beside_a_requeued_job_s_checkpoint() -> None:
    """Under SLURM Lightning numbers them by the names in the folder, and stumbles over any other."""
    path = PATH.with_name("hpc_ckpt_1.ckpt")
    for step in (1, 2):
        DurableCheckpointIO().save_checkpoint(checkpoint(step), path)
    assert [file.name for file in path.parent.iterdir()] == ["hpc_ckpt_1.ckpt"]
    assert intact(path) == (path, None)


def test_sha256sum_reads_it() -> None:
    write_checkpoint(checkpoint(1), PATH)
    assert sidecar(PATH).read_text() == f"{hashlib.sha256(PATH.read_bytes()).hexdigest()}  last.ckpt\n"


def test_a_flipped_bit_falls_back_to_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        write_checkpoint(checkpoint(step), PATH)
    flip(PATH)
    assert torch.load(PATH, weights_only=True)["global_step"] == 2  # torch does not see it
    with pytest.warns(UserWarning, match=r"last.ckpt: damaged, its SHA-256 is .* Took .*last.previous.ckpt instead"):
        assert DurableCheckpointIO().load_checkpoint(PATH)["global_step"] == 1
    flip(previous(PATH))
    with pytest.raises(DamagedCheckpointError, match=r"last.ckpt: damaged"):
        open_intact(PATH)


@pytest.mark.parametrize(("harm", "words"), [("empty", "empty"), ("missing", "missing"), ("half", "damaged")])
def test_other_damage(harm: str, words: str) -> None:
    for step in (1, 2):
        write_checkpoint(checkpoint(step), PATH)
    raw = PATH.read_bytes()
    PATH.write_bytes({"empty": b"", "half": raw[: len(raw) // 2]}.get(harm, raw))
    if harm == "missing":
        PATH.unlink()
    assert words in str(damage(PATH))
    assert open_intact(PATH).path == previous(PATH)


def test_one_from_elsewhere_has_no_digest() -> None:
    torch.save(checkpoint(7), "theirs.ckpt")
    assert intact(Path("theirs.ckpt")) == (Path("theirs.ckpt"), None)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran.txt", "w")


def test_no_code_of_theirs_runs() -> None:
    torch.save({"state_dict": {}, "x": Evil()}, "evil.ckpt")
    for weights_only in (None, False, True):
        with pytest.raises(pickle.UnpicklingError):
            DurableCheckpointIO().load_checkpoint("evil.ckpt", weights_only=weights_only)
    assert not Path("ran.txt").exists()


def test_nan_is_not_written() -> None:
    io = DurableCheckpointIO()
    io.save_checkpoint(checkpoint(1), PATH)
    for bad in (float("nan"), float("inf")):
        broken = checkpoint(2)
        broken["state_dict"]["w"][17] = bad
        with pytest.raises(NotFiniteError, match="w is NaN or infinite"):
            io.save_checkpoint(broken, PATH)
    big = checkpoint(3)
    big["state_dict"]["v"] = torch.full((10,), 3e38)  # finite, though their sum is not
    io.save_checkpoint(big, PATH)
    assert step_in(PATH) == 3


def test_a_full_disk_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(checkpoint(1), PATH)
    before = {p: p.read_bytes() for p in PATH.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"last.ckpt: can't be written \(No space left on device\)"):
        write_checkpoint(checkpoint(2), PATH)
    assert {p: p.read_bytes() for p in PATH.parent.iterdir()} == before
    assert damage(PATH) is None


def _in_a_child(work: Any) -> int:
    """A fork of this process, which has torch loaded already. Its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(1)


def test_a_real_limit_leaves_the_old_file() -> None:
    """The kernel refuses to let a file grow: ``ulimit -f``."""
    write_checkpoint(checkpoint(1), PATH)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_checkpoint(checkpoint(2, size=1_000_000), PATH)
        except CheckpointError:
            os._exit(0)

    assert os.waitpid(_in_a_child(work), 0)[1] == 0
    assert intact(PATH) == (PATH, None)
    assert step_in(PATH) == 1
    assert len(list(PATH.parent.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a file system")
def test_a_full_file_system() -> None:
    Path("small").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", "small"], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        path = Path("small/last.ckpt")
        write_checkpoint(checkpoint(1, 300_000), path)
        with pytest.raises(CheckpointError, match="No space left"):
            write_checkpoint(checkpoint(2, 600_000), path)
        assert step_in(open_intact(path).path) == 1
        assert sorted(p.name for p in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.sha256"]
    finally:
        subprocess.run(["umount", "small"], check=True)


@pytest.mark.parametrize("tmp", ["same", "other"])
def test_killed_while_saving(tmp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 SIGKILLs: nothing that a save returned for is lost, nothing has to be fallen back on."""
    folder = Path("tmp") if tmp == "same" else Path("/dev/shm")
    if not folder.is_dir() and tmp == "other":
        pytest.skip("no second file system")
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder.absolute()))
    rng, step, torn = random.Random(0), 0, 0
    for _ in range(20):
        reader, writer = os.pipe()
        first = step + 1

        def work(first: int = first, writer: int = writer) -> None:
            for number in range(first, first + 1000):
                write_checkpoint(checkpoint(number, size=500_000), PATH)
                os.write(writer, number.to_bytes(4, "big"))

        pid = _in_a_child(work)
        os.close(writer)
        step = int.from_bytes(os.read(reader, 4), "big")
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while number := os.read(reader, 4):
            step = int.from_bytes(number, "big")
        os.close(reader)
        torn += checkpoint_io._partial(PATH).exists()
        assert intact(PATH) == (PATH, None)
        assert step <= step_in(PATH) <= step + 1
        if previous(PATH).is_file():
            assert damage(previous(PATH)) is None
        step = step_in(PATH)
    assert torn  # some of them did hit a write
    assert not list(Path("tmp").glob("*"))
