"""Test images as NumPy files, the way CIFAR-10.1 (Recht et al. 2018) comes: ``*_data.npy`` and ``*_labels.npy``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.sources.common import CLASSES, DataError, LabelledImages, open_regular, reason

LARGEST = 2**30  # bytes


def load_arrays(folder: Path) -> LabelledImages | None:
    """Read the one pair of files in ``folder``; None where there is none.

    Raises:
        DataError: If there are several pairs, or they are no images of 32x32 pixels with labels from 0 to 9.
    """
    pairs = [path for path in sorted(folder.glob("*_data.npy")) if _labels(path).exists()]
    if not pairs:
        return None
    if len(pairs) > 1:
        names = ", ".join(path.name for path in pairs)
        raise DataError(folder, f"several sets ({names}), expected one", "Put each into a folder of its own")
    images, targets = (_read(path) for path in (pairs[0], _labels(pairs[0])))
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise DataError(
            pairs[0], f"{images.dtype} {images.shape}, expected uint8 (n, 32, 32, 3)", "Use CIFAR-10.1's file"
        )
    fits = targets.shape == (len(images),) and targets.dtype.kind in "iu" and set(targets) <= set(range(len(CLASSES)))
    if not fits:
        wrong = f"{targets.dtype} {targets.shape}, expected ({len(images)},) labels from 0 to {len(CLASSES) - 1}"
        raise DataError(_labels(pairs[0]), wrong, "Use the file that came with the images")
    return LabelledImages(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(targets.astype(np.int64))
    )


def _labels(data: Path) -> Path:
    return data.with_name(data.name.replace("_data.npy", "_labels.npy"))


def _read(path: Path) -> np.ndarray:
    try:
        with open_regular(path, LARGEST) as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(path, f"can't be read ({reason(error)}), expected a NumPy file", "Fetch it anew") from error
