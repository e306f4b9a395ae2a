"""Kaggle's files: numbered images and a list of their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official import check_message
from PIL import Image

from datamodules.sources import CLASSES, DataError, find_cifar10, load_cifar10


@pytest.fixture
def kaggle(tmp_path: Path) -> np.ndarray:
    """Twelve images as Kaggle has them; their pixels ``(12, 32, 32, 3)``, by id from 1."""
    (tmp_path / "train").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels, 1):
        Image.fromarray(image).save(tmp_path / "train" / f"{number}.png")
    # Not in the ids' order, as the files' names are not: 10.png comes before 2.png.
    lines = [f"{number},{CLASSES[number % 10]}" for number in range(12, 0, -1)]
    (tmp_path / "trainLabels.csv").write_text("\n".join(["id,label", *lines]) + "\n", encoding="utf-8")
    return pixels


def test_images_and_labels_by_id(kaggle: np.ndarray, tmp_path: Path) -> None:
    """The last fifth of those with labels is the test. The second time they come from the cache."""
    layout = find_cifar10(tmp_path)
    assert layout is not None
    assert "last fifth" in layout.description
    for _ in range(2):
        for split, places in (("train", range(10)), ("test", range(10, 12))):
            images, targets = load_cifar10(layout, split)  # type: ignore[arg-type]
            assert torch.equal(images, torch.from_numpy(kaggle[places.start : places.stop].transpose(0, 3, 1, 2)))
            assert targets.tolist() == [(place + 1) % 10 for place in places]
    assert (tmp_path / ".cache/train.npz").is_file()


def test_the_official_files_and_class_folders_win(kaggle: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "train/cat").mkdir()
    assert (find_cifar10(tmp_path) or ("", ""))[0] == "folders"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert (find_cifar10(tmp_path) or ("", ""))[0] == "batches"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("id,label\n1,lizard\n", "can't be read"),
        ("id,label\none,cat\n", "can't be read"),
        ("name,class\n1,cat\n", "can't be read"),
        ("id,label\n1\n", "can't be read"),
        ("", "0 images, expected 50,000"),
        ("\xff\0", "can't be read"),
    ],
)
def test_a_list_that_is_none(kaggle: np.ndarray, tmp_path: Path, text: str, wrong: str) -> None:
    layout = find_cifar10(tmp_path)
    assert layout is not None
    (tmp_path / "trainLabels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=wrong) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, tmp_path / "trainLabels.csv")


@pytest.mark.parametrize("harm", ["missing", "folder", "text"])
def test_an_image_that_is_none(kaggle: np.ndarray, tmp_path: Path, harm: str) -> None:
    layout, path = find_cifar10(tmp_path), tmp_path / "train/3.png"
    assert layout is not None
    path.unlink()
    path.mkdir() if harm == "folder" else path.write_text("no image", encoding="utf-8") if harm == "text" else None
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, path)
