"""CIFAR-10.1's files: read as they are, or refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.sources import DataError
from datamodules.sources.arrays import load_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 9], np.int32)
DATA = Path("cifar10.1_v6_data.npy")


def save(images: Any, labels: Any, name: str = "cifar10.1_v6") -> None:
    np.save(f"{name}_data.npy", images)
    np.save(f"{name}_labels.npy", labels)


def test_a_pair_of_files() -> None:
    assert load_arrays(Path()) is None
    save(IMAGES, LABELS)
    found = load_arrays(Path())
    assert found is not None
    assert np.array_equal(found.images.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert found.images.is_contiguous()
    assert found.targets.tolist() == [3, 0, 9]


@pytest.mark.parametrize(
    ("images", "labels", "wrong"),
    [
        (IMAGES.astype(np.float32), LABELS, "_data.npy: float32 (3, 32, 32, 3), expected uint8 (n, 32, 32, 3)"),
        (IMAGES[:, :31], LABELS, "_data.npy: uint8 (3, 31, 32, 3), expected"),
        (IMAGES[:0], LABELS[:0], "_data.npy: uint8 (0, 32, 32, 3), expected"),
        (IMAGES, LABELS[:2], "_labels.npy: int32 (2,), expected (3,) labels from 0 to 9"),
        (IMAGES, LABELS + 1, "_labels.npy: int32 (3,), expected (3,) labels from 0 to 9"),
        (IMAGES, LABELS.astype(np.float32), "_labels.npy: float32 (3,), expected"),
        (np.array([{"a": 1}], dtype=object), LABELS, "_data.npy: can't be read (Object arrays cannot be loaded"),
    ],
)
def test_others_are_refused(images: Any, labels: Any, wrong: str) -> None:
    save(images, labels)
    with pytest.raises(DataError, match=re.escape(wrong)):
        load_arrays(Path())


def test_two_sets_and_a_file_that_is_cut_off() -> None:
    save(IMAGES, LABELS)
    DATA.write_bytes(DATA.read_bytes()[:500])
    with pytest.raises(DataError, match="can't be read"):
        load_arrays(Path())
    save(IMAGES, LABELS, "other")
    with pytest.raises(DataError, match=r"several sets \(cifar10\.1_v6_data\.npy, other_data\.npy\), expected one"):
        load_arrays(Path())
