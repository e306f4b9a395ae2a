"""CIFAR-10 on the disk, but small: official files of three images as Python 2 wrote them, and class folders."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.sources import ARCHIVE, BATCHES, BINARY, CLASSES, DataError, Layout, download
from datamodules.sources import official as files


def md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it in 2009, opcode by opcode: byte strings throughout, numpy.core names."""

    def string(raw: bytes) -> bytes:
        return b"U" + bytes([len(raw)]) + raw

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"".join(integer(n) for n in data.shape)
        + b"\x86cnumpy\ndtype\n"
        + string(data.dtype.str[1:].encode())
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", data.nbytes)
        + data.tobytes()
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + string(b"batch_label")
        + string(b"training batch 1 of 5")
        + string(b"labels")
        + b"]("
        + b"".join(integer(label) for label in labels)
        + b"e"
        + string(b"data")
        + array
        + b"u."
    )


class Official:
    """Small official files, with the checksums that datamodules.sources is made to expect."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        self.monkeypatch = monkeypatch
        self.data: dict[str, np.ndarray] = {}
        self.labels: dict[str, list[int]] = {}
        self.files: dict[str, bytes] = {}
        for name in [*files.BATCH_MD5S["train"], "test_batch"]:
            self.data[name] = rng.integers(0, 256, (3, 3072), dtype=np.uint8)
            self.labels[name] = rng.integers(0, 10, 3).tolist()
            self.files[name] = python2_pickle(self.data[name], self.labels[name])
        self.expect_these()

    def expect_these(self) -> None:
        table = {s: {n: md5(self.files[n]) for n in names} for s, names in files.BATCH_MD5S.items()}
        self.monkeypatch.setattr(files, "BATCH_MD5S", table)

    def write_batches(self, base: Path) -> Layout:
        folder = base / BATCHES
        folder.mkdir(parents=True)
        for name, raw in self.files.items():
            (folder / name).write_bytes(raw)
        return Layout("batches", folder)

    def write_binary(self, base: Path) -> Layout:
        self.monkeypatch.setattr(files, "BINARY_IMAGES", 3)
        (base / BINARY).mkdir(parents=True)
        for name, data in self.data.items():
            rows = zip(self.labels[name], data, strict=True)
            (base / BINARY / f"{name}.bin").write_bytes(b"".join(bytes([label]) + row.tobytes() for label, row in rows))
        return Layout("binary", base / BINARY)

    def archive_bytes(self, link: str | None = None, folder: str = BATCHES) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, raw in reversed(self.files.items()):  # like the official one: in no useful order
                member = tarfile.TarInfo(f"{folder}/{name}")
                if name == link:
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
                    tar.addfile(member)
                else:
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
        return buffer.getvalue()

    def write_archive(self, base: Path, raw: bytes | None = None) -> Layout:
        raw = self.archive_bytes() if raw is None else raw
        self.monkeypatch.setattr(download, "ARCHIVE_MD5", md5(raw))
        self.monkeypatch.setattr(download, "ARCHIVE_BYTES", len(raw))
        base.mkdir(parents=True, exist_ok=True)
        (base / ARCHIVE).write_bytes(raw)
        return Layout("archive", base / ARCHIVE)


def write_folders(base: Path, suffix: str = ".png", per_class: int = 2) -> Layout:
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in reversed(CLASSES):
            (base / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / split / name / f"{i:04}{suffix}")
    return Layout("folders", base)


class Evil:
    """Its pickle makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def check_message(error: DataError, *parts: object) -> None:
    """One line, ``<file or flag>: <what is wrong>. <what to do>``, with the parts in it."""
    message = str(error)
    assert "\n" not in message
    assert not message.startswith("error")
    where, rest = message.split(": ", 1)
    assert where
    assert ". " in rest
    for part in parts:
        assert str(part) in message
