"""Files that a kill, a full disk or a flipped bit does not take away.

A file is written beside its place, brought to the disk, and only then given its name. A checkpoint's SHA-256 goes into
``last.ckpt.sha256`` (``sha256sum -c`` reads it too) and is checked on reading. What can be resumed keeps its
predecessor as ``last.previous.ckpt``, to fall back on when the newest file turns out to be damaged.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

LARGEST = 2**35  # bytes; a checkpoint of the largest network here has a tenth of them


class CheckpointError(OSError):
    """A checkpoint that could not be written. The one before it is whole."""


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written."""


class NotFiniteError(RuntimeError):
    """Weights that are NaN or infinite, which no file is to hold."""


class Opened(NamedTuple):
    """What was read from a checkpoint's place.

    Attributes:
        contents: The file's bytes.
        path: The file: the one asked for, or the one before it.
        digest: The contents' SHA-256.
        wrong: What is wrong with the one asked for, if it is not ``path``.
    """

    contents: bytes
    path: Path
    digest: str
    wrong: str | None = None


def sidecar(path: Path) -> Path:
    """Where a checkpoint's SHA-256 is: ``last.ckpt.sha256``."""
    return path.with_name(f"{path.name}.sha256")


def previous(path: Path) -> Path:
    """Where the checkpoint is that was at ``path`` before: ``last.previous.ckpt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


# ---- writing -----------------------------------------------------------------------------------------------


def write_whole(path: Path, contents: bytes | memoryview | str) -> None:
    """Write a file whole or not at all; text as UTF-8. Its folder is made.

    Raises:
        OSError: If the system refuses. What was at ``path`` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_beside(path, contents)
    _rename(_partial(path), path)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that at any moment there is a whole one at ``path``, if there was one before.

    Args:
        checkpoint: What ``torch.save`` takes.
        path: Where to. With ``optimizer_states`` in the checkpoint, what is there becomes ``previous(path)``.

    Raises:
        CheckpointError: If the system refuses, say because the disk is full. What was at ``path`` is untouched.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, buffer.getbuffer())
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


def _partial(path: Path) -> Path:
    # Always the same, so that a file which a kill left behind is overwritten by the next save.
    return path.with_name(f".{path.name}.partial")


def _write_beside(path: Path, contents: bytes | memoryview | str) -> None:
    """A new file at ``_partial(path)``, on the disk; gone if that fails."""
    if _partial(path).is_symlink():  # whoever put it there wants another file to be written to
        _partial(path).unlink()
    try:
        with _partial(path).open("wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            _partial(path).unlink(missing_ok=True)
        raise


def _rename(source: Path, path: Path) -> None:
    """Rename, and bring that to the disk where the system has a way."""
    os.replace(source, path)
    with suppress(OSError):  # Windows can't open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put(source: Path, path: Path, digests: list[str]) -> None:
    """Rename, and renew the SHA-256 beside it so that at any moment it names the file that is there."""
    _write_digests(path, [*digests, *(_known_digests(path) or [])])
    _rename(source, path)
    _write_digests(path, digests)


def _write_digests(path: Path, digests: list[str]) -> None:
    if path.name.startswith("hpc_ckpt_"):  # Lightning's under SLURM: it takes a file beside it for another of them
        return
    write_whole(sidecar(path), "".join(f"{digest}  {path.name}\n" for digest in digests))


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


# ---- reading -----------------------------------------------------------------------------------------------


def open_intact(path: Path) -> Opened:
    """Read the checkpoint at ``path``, or where it is damaged the one before it.

    Raises:
        DamagedCheckpointError: If there is none that is intact.
    """
    opened, wrong = _read(path)
    if opened is not None:
        return opened
    before, _ = _read(previous(path))
    if before is not None:
        return before._replace(wrong=wrong)
    raise DamagedCheckpointError(f"{path}: {wrong}, and there is no earlier one beside it. Use another checkpoint.")


def load_plain(contents: bytes, map_location: Any = "cpu") -> Any:
    """Tensors and plain values from a checkpoint's bytes, without running any code of theirs.

    Raises:
        pickle.UnpicklingError: If there is more in it.
        ValueError: If it is no zip file, or one that unpacks to more than it is.
    """
    file = io.BytesIO(contents)
    if not zipfile.is_zipfile(file):
        raise ValueError("no zip file")
    with zipfile.ZipFile(file) as parts:  # as torch stores them; packed, three megabytes can be three gigabytes
        if sum(part.file_size for part in parts.infolist()) > len(contents):
            raise ValueError("it is packed")
    return torch.load(io.BytesIO(contents), map_location, weights_only=True)


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint's file; None where nothing shows."""
    return _read(path)[1]


def copy_intact(path: Path, copy: Path | None) -> str | None:
    """Copy a checkpoint with its SHA-256, unless something is wrong with it, which is returned; None only looks.

    A link, or what does not begin like a checkpoint, is none: whoever names it may want to see another file.
    """
    opened, wrong = _read(path)
    if path.is_symlink() or (opened is not None and not opened.contents.startswith(b"PK")):
        return "no checkpoint of its folder"
    if opened is not None and copy is not None:
        write_whole(copy, opened.contents)
        _write_digests(copy, [opened.digest])
    return wrong


def read_regular(path: Path, most: int = LARGEST) -> bytes:
    """A regular file's bytes: a pipe would be waited for, and a device may never end.

    Raises:
        OSError: If it is none, or larger than ``most`` bytes.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "no file", str(path))
        if info.st_size > most:
            raise OSError(errno.EFBIG, f"{info.st_size:,} bytes, expected at most {most:,}", str(path))
        return file.read()


def _read(path: Path) -> tuple[Opened | None, str | None]:
    """A file, or what is wrong with it. Without a SHA-256 beside it, it can only be missing or empty."""
    try:
        contents, digests = read_regular(path), _known_digests(path)
    except FileNotFoundError:
        return None, "missing"
    except IsADirectoryError:
        return None, "no file"
    except OSError as error:
        return None, error.strerror or str(error)
    if not contents:
        return None, "empty"
    digest = hashlib.sha256(contents).hexdigest()
    if digests is not None and digest not in digests:
        return None, f"damaged, its SHA-256 is {digest[:12]}..., expected {(digests or ['?'])[0][:12]}..."
    return Opened(contents, path, digest), None


def _known_digests(path: Path) -> list[str] | None:
    """What the file beside a checkpoint says; None where there is none, empty where it says nothing."""
    try:
        lines = read_regular(sidecar(path), 10_000).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError:  # such as a pipe
        return []
    return [line.split()[0] for line in lines if line.split()]
