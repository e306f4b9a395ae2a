"""What the sources share: what CIFAR-10 is, what they return, how they say what is wrong."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from torch import Tensor
from tqdm import tqdm

Split = Literal["train", "test"]

# The official label order. A label is an index into this tuple, whatever order the disk lists folders in.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLIT_SIZES: dict[str, int] = {"train": 50_000, "test": 10_000}
BATCHES = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
BINARY = "cifar-10-batches-bin"
LABELS = "trainLabels.csv"
QUICKSTART = "python scripts/fit.py -c configs/quickstart.yaml"
# CIFAR-10 in forms that are not read, and why.
FOREIGN = {
    LABELS: "Kaggle's, whose train.7z is to be unpacked beside it",
    "*.parquet": "not unpacked",
    "*/*.parquet": "not unpacked",
    "cifar-10*": "another form",
    "cifar10?*": "another form",
}


class LabelledImages(NamedTuple):
    """One split of CIFAR-10."""

    images: Tensor  # (N, 3, 32, 32) uint8 RGB
    targets: Tensor  # (N,) int64, indices into CLASSES


class Layout(NamedTuple):
    """Where CIFAR-10 was found: official pickles, their .tar.gz, the binary version, class folders, Kaggle's files."""

    kind: Literal["batches", "archive", "binary", "folders", "kaggle"]
    path: Path  # the folder of the files, the archive, or the folder that holds train/

    @property
    def description(self) -> str:
        """The source in words, for console and logs; tells the lossless pixels from a JPEG copy's."""
        if self.kind == "kaggle":
            return "CIFAR-10 (Kaggle's labelled images, the last fifth of them to test)"
        if self.kind != "folders":
            official = {"batches": "files", "archive": "archive", "binary": "binary version"}
            return f"CIFAR-10 (official {official[self.kind]})"
        folders = [folder for split in SPLIT_SIZES for folder in class_folders(self.path / split)]
        suffixes = {Path(file).suffix.lower() for folder in folders for file in glob("*", root_dir=folder)}
        formats = [name for name, theirs in (("JPEG", {".jpg", ".jpeg"}), ("PNG", {".png"})) if theirs & suffixes]
        return f"CIFAR-10 ({' and '.join(formats) or 'image'} copy in class folders)"


def class_folders(folder: Path) -> list[Path]:
    """A split's ten folders, in label order: each by the class's name, in any case, or else by its number.

    Where a class has none, the one it should have.
    """
    try:
        entries = os.listdir(folder)
    except OSError:  # not there, or not to be read: who reads it says so
        entries = []
    found = {entry.lower(): entry for entry in sorted(entries)}  # airplane wins over Airplane
    return [folder / found.get(name, found.get(str(label), name)) for label, name in enumerate(CLASSES)]


class DataError(ValueError):
    """Data that is missing or can't be used: one line of the file or argument, what is wrong, and what to do."""

    def __init__(self, where: str | Path, wrong: str, remedy: str) -> None:
        super().__init__(printable(f"{where}: {wrong}. {remedy}."))
        self.problem = printable(f"{where}: {wrong}.")  # for a caller that has a remedy of its own


def printable(text: object) -> str:
    """Text that fits on one line of any terminal: a file's name may hold anything but a slash, so escapes too."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).splitlines()))


def no_data(root: Path, why: str) -> DataError:
    """The error where ``root`` holds no CIFAR-10; ``why`` none was fetched either."""
    found = [
        f"{path} is not read ({form})"
        for base in (root, root / "cifar10")
        for pattern, form in FOREIGN.items()
        for path in sorted(base.glob(pattern))[:1]
    ]
    # The absolute path, because a relative root seen from the wrong folder is the likeliest mistake.
    return DataError(
        "root",
        f"no CIFAR-10 in {root.absolute()} or its subfolder cifar10, expected {BATCHES}/, {ARCHIVE}, {BINARY}/, "
        f"train/<class>/*.{{png,jpg,jpeg}} with test/<class>/..., a class by its name or number, or Kaggle's {LABELS} "
        "with train/; "
        f"{'; '.join([*found, why])}",
        f"Put one of these there, or start without CIFAR-10: {QUICKSTART}",
    )


def reason(error: BaseException) -> str:
    """An exception in a few words: ``timed out``, ``HTTP Error 404: Not Found``, ``No such file or directory``."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, Exception):  # urllib's wrapper
        return reason(inner)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def open_regular(path: Path, most: int) -> Iterator[BinaryIO]:
    """Open a regular file to read: a pipe would be waited for, and a device may never end.

    Raises:
        OSError: If it is none, or larger than ``most`` bytes.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if info.st_size > most:
            raise OSError(errno.EFBIG, f"damaged, {info.st_size} bytes, at most {most} were due", str(path))
        yield file


def count_overlap(a: Tensor, b: Tensor) -> int:
    """How many of the images ``b`` ``(M, 3, H, W)`` uint8 are also among ``a`` ``(N, 3, H, W)``, pixel by pixel."""
    # Digests, not the images: 50,000 of them would be 150 MB once more.
    seen, asked = ([blake2b(image.tobytes(), digest_size=16).digest() for image in x.cpu().numpy()] for x in (a, b))
    return sum(map(set(seen).__contains__, asked))


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Show tqdm's bar on a terminal, and nowhere else."""
    return tqdm(*args, leave=False, disable=None, **options)


@contextmanager
def write_then_replace(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes ``path``'s place if the block ends well, and vanishes if it doesn't (Ctrl-C too)."""
    # A name of its own: with several processes at it, the last one done wins, and each wrote a whole file.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with partial.open("xb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
