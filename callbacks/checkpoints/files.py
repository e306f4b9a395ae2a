"""DurableCheckpointIO: checkpoints that a kill, a full disk or a flipped bit does not take away.

A checkpoint is written to a file beside its place, brought to the disk, and only then given its name; its SHA-256 goes
into ``last.ckpt.sha256`` (``sha256sum -c`` reads it too) and is checked on load. What can be resumed keeps its
predecessor as ``last.previous.ckpt``, to fall back on when the newest file turns out to be damaged.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

_CHUNK = 2**20
_checked: dict[Path, tuple[int, int]] = {}  # size and time of files whose SHA-256 this process found to be right


class CheckpointError(OSError):
    """A checkpoint that could not be written. The one before it is whole."""


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written."""


class NotFiniteError(RuntimeError):
    """Weights that are NaN or infinite, which no file is to hold."""


# What lies beside a checkpoint


def sidecar(path: Path) -> Path:
    """Where a checkpoint's SHA-256 is: ``last.ckpt.sha256``."""
    return path.with_name(f"{path.name}.sha256")


def previous(path: Path) -> Path:
    """Where the checkpoint is that was at ``path`` before: ``last.previous.ckpt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _partial(path: Path) -> Path:
    # Always the same, so that a file which a kill left behind is overwritten by the next save.
    return path.with_name(f".{path.name}.partial")


# Writing


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``: on the disk at the block's end; gone if the block fails. The caller renames it."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, contents: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8. Its folder is made.

    Raises:
        OSError: If the system refuses. What was at ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)
    os.replace(_partial(path), path)


def _sync_folder(folder: Path) -> None:
    """Bring renames to the disk, where the system has a way."""
    with suppress(OSError):  # Windows can't open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _known_digests(path: Path) -> list[str] | None:
    """What the file beside a checkpoint says; None where there is none, empty where it says nothing."""
    try:
        lines = sidecar(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    return [line.split()[0] for line in lines if line.split()]


def _write_digests(path: Path, digests: list[str]) -> None:
    with _replacing(sidecar(path)) as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in digests).encode())
    os.replace(_partial(sidecar(path)), sidecar(path))
    _sync_folder(path.parent)


def _put(source: Path, path: Path, digests: list[str]) -> None:
    """Rename, and renew the SHA-256 beside it so that at any moment it names the file that is there."""
    _write_digests(path, [*digests, *(_known_digests(path) or [])])
    os.replace(source, path)
    _sync_folder(path.parent)
    _write_digests(path, digests)


def _keep_previous(path: Path) -> None:
    """Give the file at ``path`` a second name. Some file systems can't: then there is no previous one."""
    digests = _known_digests(path)
    if not digests or not path.is_file():
        return
    link = _partial(previous(path))
    with suppress(OSError):
        link.unlink(missing_ok=True)
        os.link(path, link)
        _put(link, previous(path), digests)


class _Hashing:
    """A file that also takes the SHA-256 of what is written to it, and remembers why it could not be."""

    def __init__(self, file: BinaryIO, helper: Executor) -> None:
        self.file, self.digest, self.helper = file, hashlib.sha256(), helper
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Lightning and torch write in one go, from the first byte to the last."""
        if self.error is None:
            hashed = self.helper.submit(self.digest.update, data)  # on another core, while this one writes
            try:
                return self.file.write(data)
            except OSError as error:
                self.error = error  # torch's writer would replace it by one without a reason
            finally:
                wait([hashed])  # the data are torch's, and gone after this
        raise self.error

    def flush(self) -> None:
        """Left to the one who opened the file."""


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> str:
    """Write a checkpoint so that at any moment there is a whole one at ``path``, if there was one before.

    Args:
        checkpoint: What ``torch.save`` takes.
        path: Where to. With ``optimizer_states`` in the checkpoint, what is there becomes ``previous(path)``.

    Returns:
        Its SHA-256.

    Raises:
        CheckpointError: If the system refuses, say because the disk is full. What was at ``path`` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file, ThreadPoolExecutor(1) as helper:
            hashing = _Hashing(file, helper)
            try:
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
            except Exception:
                if hashing.error is not None:
                    raise hashing.error from None
                raise
        digest = hashing.digest.hexdigest()
        if "optimizer_states" in checkpoint:
            _keep_previous(path)
        _put(_partial(path), path, [digest])
    except OSError as error:
        with suppress(OSError):
            _partial(path).unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: can't be written ({error.strerror or error}). What was there before is whole: free some space, "
            "then go on with the same command and --ckpt_path."
        ) from error
    info = path.stat()
    _checked[path.absolute()] = info.st_size, info.st_mtime_ns
    return digest


# Reading


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint's file; None where nothing shows.

    A file without a SHA-256 beside it, such as one from elsewhere, can only be missing or empty.
    """
    try:
        info = path.stat()
        if not path.is_file():
            return "no file"
        if not info.st_size:
            return "empty"
        digests = _known_digests(path)
        if digests is None or _checked.get(path.absolute()) == (info.st_size, info.st_mtime_ns):
            return None
        digest = sha256(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return error.strerror or str(error)
    if digest not in digests:
        return f"damaged, its SHA-256 is {digest[:12]}..., expected {(digests or ['?'])[0][:12]}..."
    _checked[path.absolute()] = info.st_size, info.st_mtime_ns
    return None


def sound_checkpoint(path: Path) -> tuple[Path, str | None]:
    """The checkpoint at ``path``, or where it is damaged the one before it, and what was wrong.

    Raises:
        DamagedCheckpointError: If there is none that is whole.
    """
    wrong = damage(path)
    if wrong is None:
        return path, None
    if previous(path).is_file() and damage(previous(path)) is None:
        return previous(path), wrong
    raise DamagedCheckpointError(f"{path}: {wrong}. Use another checkpoint; there is no earlier one beside it.")
