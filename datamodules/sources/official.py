"""CIFAR-10's official files, unpacked or in their archive. Their MD5 is checked before anything in them is used.

The binary version has none to be checked, so its sizes and labels are.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.sources.common import (
    BATCHES,
    CLASSES,
    DataError,
    LabelledImages,
    Split,
    open_regular,
    printable,
    reason,
)

# As in torchvision.datasets.CIFAR10. `batches.meta` is left out: it only repeats the class names.
BATCH_MD5S: dict[str, dict[str, str]] = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}

LARGEST = 2**25  # bytes; an official file has 31 million
BINARY_IMAGES = 10_000  # in each file of the binary version


def load_batches(folder: Path, split: Split) -> LabelledImages:
    """Read the pickles in ``folder``."""
    # The folder, not the file: without one file the folder would still be found, and never downloaded again.
    remedy = f"Delete the folder {folder} and run again to download it anew"
    files: dict[str, bytes] = {}
    for name in BATCH_MD5S[split]:
        try:
            with open_regular(folder / name, LARGEST) as file:
                files[name] = file.read()
        except OSError as error:
            raise DataError(folder / name, f"{reason(error)}, expected an official file", remedy) from error
    return _parse(files, split, folder, remedy)


def load_archive(archive: Path, split: Split) -> LabelledImages:
    """Read the pickles out of the .tar.gz, unpacking nothing to the disk."""
    remedy = f"Delete {archive} and run again to download it anew"
    wanted = {f"{BATCHES}/{name}": name for name in BATCH_MD5S[split]}
    files: dict[str, bytes] = {}
    try:
        # In the archive's own order: gzip can't jump, going back means decompressing from the start.
        with _Unpacked(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for member in tar:
                if member.size > LARGEST:  # a megabyte can unpack to a gigabyte
                    raise tarfile.TarError(f"{member.size} bytes of {printable(member.name)}")
                if member.name in wanted and member.isreg() and (content := tar.extractfile(member)):
                    files[wanted[member.name]] = content.read()
                if len(files) == len(wanted):
                    break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(archive, f"can't be read ({reason(error)}), expected the official archive", remedy) from error
    for name in sorted(wanted.values() - files.keys()):
        raise DataError(archive, f"holds no file {BATCHES}/{name}, expected the official archive", remedy)
    return _parse(files, split, archive / BATCHES, remedy)


class _Unpacked(gzip.GzipFile):
    """An archive as it is unpacked, never much of it at once: tarfile reads a header whole, of whatever size."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST:
            raise tarfile.TarError(f"{size} bytes at once")
        return super().read(size)


def load_binary(folder: Path, split: Split) -> LabelledImages:
    """Read the binary version's files in ``folder``: for each image a byte of its label, then those of a pickle."""
    remedy = f"Unpack the binary version anew, or delete the folder {folder} and run again to download the other"
    batches = []
    for path in (folder / f"{name}.bin" for name in BATCH_MD5S[split]):
        try:
            with open_regular(path, LARGEST) as file:
                raw = np.frombuffer(file.read(), np.uint8)
        except OSError as error:
            raise DataError(path, f"{reason(error)}, expected an official file", remedy) from error
        if raw.size != BINARY_IMAGES * 3073:
            raise DataError(path, f"damaged, {raw.size} bytes, expected {BINARY_IMAGES * 3073}", remedy)
        batches.append(raw.reshape(-1, 3073))
        if (top := batches[-1][:, 0].max()) >= len(CLASSES):
            raise DataError(path, f"damaged, a label is {top}, expected 0 to {len(CLASSES) - 1}", remedy)
    rows = torch.from_numpy(np.concatenate(batches))
    return LabelledImages(rows[:, 1:].contiguous().view(-1, 3, 32, 32), rows[:, 0].long())


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names a pickled array needs and refuses every other, so that no pickle can run code."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy", "ndarray" | "dtype":
                return getattr(np, name)
            case "numpy.core.multiarray", "_reconstruct":  # from a live array: numpy moved it to numpy._core
                return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _parse(files: dict[str, bytes], split: Split, where: Path, remedy: str) -> LabelledImages:
    # Popped, so that the next file's pixels take the room of this one's bytes: new room takes longer than the copy.
    batches = [_parse_batch(files.pop(name), md5, where / name, remedy) for name, md5 in BATCH_MD5S[split].items()]
    images = torch.cat([torch.from_numpy(data) for data, _ in batches])  # (N, 3, 32, 32)
    targets = torch.tensor([label for _, labels in batches for label in labels], dtype=torch.int64)  # (N,)
    return LabelledImages(images, targets)


def _parse_batch(raw: bytes, md5: str, where: Path, remedy: str) -> tuple[np.ndarray, list[int]]:
    """One official file's bytes to images ``(n, 3, 32, 32)`` uint8 and ``n`` labels."""
    # The MD5 of the very bytes that are unpickled: a file that changes in between can't slip through.
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(where, f"damaged, its MD5 is {found}, expected {md5}", remedy)
    try:
        entry = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        data, labels = entry[b"data"], entry[b"labels"]
        got = f"{data.dtype} {data.shape} with {len(labels)} labels from {min(labels)} to {max(labels)}"
        good = data.dtype == np.uint8 and data.shape == (len(labels), 3072) and set(labels) <= set(range(len(CLASSES)))
    except Exception as error:  # a hostile pickle can raise anything
        wrong = f"not a CIFAR-10 batch ({type(error).__name__}: {reason(error)}), expected a pickle of one"
        raise DataError(where, wrong, remedy) from error
    if not good:
        raise DataError(where, f"{got}, expected uint8 (n, 3072) with n labels from 0 to {len(CLASSES) - 1}", remedy)
    return data.reshape(-1, 3, 32, 32), labels  # a row holds the red plane, then green, then blue
