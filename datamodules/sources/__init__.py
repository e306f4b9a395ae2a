"""CIFAR-10 in the layouts people have it in: find it, fetch it, check it, return it as two tensors.

    layout = resolve_source(Path("data"), "cifar10")
    images, targets = load_cifar10(layout, "train")  # (50000, 3, 32, 32) uint8, (50000,) int64

Nothing is trusted before it is checked: the official files by their MD5, image files by their header. What is wrong
comes out as a one-line ``DataError`` that says what to do, never as a silent switch to other data.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal, get_args

from datamodules.sources.common import (
    ARCHIVE,
    BATCHES,
    BINARY,
    LABELS,
    SPLIT_SIZES,
    LabelledImages,
    Layout,
    Split,
    class_folders,
    no_data,
)
from datamodules.sources.common import CLASSES as CLASSES
from datamodules.sources.common import DataError as DataError
from datamodules.sources.common import count_overlap as count_overlap
from datamodules.sources.download import download_cifar10
from datamodules.sources.folders import load_folders
from datamodules.sources.kaggle import load_kaggle
from datamodules.sources.official import load_archive, load_batches, load_binary

log = logging.getLogger(__name__)

Source = Literal["cifar10", "shapes10", "auto"]
LOADERS = {
    "batches": load_batches,
    "archive": load_archive,
    "binary": load_binary,
    "folders": load_folders,
    "kaggle": load_kaggle,
}


def find_cifar10(root: Path) -> Layout | None:
    """Look for CIFAR-10 in ``root`` and in ``root/cifar10``; ``root`` need not exist.

    Only looks; ``load_cifar10`` checks. The official files win over the archive (no unpacking), these over the binary
    version (of which no MD5 is known), these over class folders, which may hold JPEG copies, and all over Kaggle's
    files, whose test images have no labels.
    """
    bases = (root, root / "cifar10")
    # os.path, not pathlib: it answers False where a folder can't be read or a link goes round in circles.
    found = [Layout("batches", base / BATCHES) for base in bases if os.path.isdir(base / BATCHES)]
    found += [Layout("archive", base / ARCHIVE) for base in bases if os.path.isfile(base / ARCHIVE)]
    found += [Layout("binary", base / BINARY) for base in bases if os.path.isdir(base / BINARY)]
    # One class folder is enough: what is missing is then an error of load_cifar10, not "nothing found".
    for base in bases:
        if any(os.path.isdir(folder) for split in SPLIT_SIZES for folder in class_folders(base / split)):
            found.append(Layout("folders", base))
    found += [
        Layout("kaggle", base) for base in bases if os.path.isfile(base / LABELS) and os.path.isdir(base / "train")
    ]
    return found[0] if found else None


def resolve_source(root: str | Path, source: Source, download: bool = True) -> Layout | None:
    """Decide which data a run uses.

    Args:
        root: The folder to search, and to download to.
        source: ``cifar10``; ``shapes10``, the stand-in the project draws itself; or ``auto``: CIFAR-10 where it is
            found or can be fetched, else shapes10 with a warning that says why.
        download: Whether CIFAR-10 may be fetched where it isn't found.

    Returns:
        The layout to load, or None for shapes10. Damage in it is an error of ``load_cifar10``, under ``auto`` too.

    Raises:
        DataError: If CIFAR-10 is a must and can't be had, if ``root`` is a file, or ``source`` none of the three.
    """
    root = Path(root)
    if source not in get_args(Source):
        raise DataError("source", f"{source!r}, expected {', '.join(get_args(Source))}", "Choose one of these")
    if source == "shapes10":
        return None
    if root.exists() and not root.is_dir():
        raise DataError("root", f"{root} is a file, expected a folder", "Give the folder that holds CIFAR-10")
    if layout := find_cifar10(root):
        return layout
    try:
        if not download:
            raise no_data(root, "downloading is off")
        return download_cifar10(root)
    except DataError as error:
        if source == "cifar10":
            raise
        log.warning("%s Using shapes10, the drawn stand-in, instead.", error.problem)
        return None


def load_cifar10(layout: Layout, split: Split) -> LabelledImages:
    """Read one split into memory (150 MB for train) and check it on the way; a bar on a terminal where it takes long.

    Official files keep their order; class folders come in label order, sorted by file name within a class.

    Raises:
        DataError: If anything is missing, damaged or not what CIFAR-10 looks like.
    """
    return LOADERS[layout.kind](layout.path, split)
