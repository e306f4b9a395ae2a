"""CIFAR-10 as Kaggle's competition has it: ``train/1.png`` and so on, with their classes in ``trainLabels.csv``."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch

from datamodules.sources.common import CLASSES, LABELS, DataError, LabelledImages, Split, open_regular, reason
from datamodules.sources.folders import image_file, read_images

LARGEST = 10_000_000  # bytes of the list, which has 50,000 lines


def load_kaggle(root: Path, split: Split) -> LabelledImages:
    """Read ``root/train/<id>.png`` in the order of the ids.

    The competition's test images have no labels, so the last fifth of those that have is the test: 10,000 of 50,000.
    """
    labels = _labels(root / LABELS)
    training = len(labels) - len(labels) // 5
    chosen = labels[:training] if split == "train" else labels[training:]
    files = {}
    for number, _ in chosen:
        path = root / "train" / f"{number}.png"
        if (info := image_file(path)) is None:
            raise DataError(path, "a folder, expected an image", "Unpack train.7z again")
        files[path] = info
    return LabelledImages(read_images(files, root, split), torch.tensor([label for _, label in chosen]))


def _labels(path: Path) -> list[tuple[int, int]]:
    """Ids and labels, by id."""
    try:
        with open_regular(path, LARGEST) as file:
            rows = csv.DictReader(io.TextIOWrapper(file, "utf-8"))
            labels = {int(row["id"]): CLASSES.index(row["label"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        wrong = f"can't be read ({reason(error)}), expected lines such as id,label and 1,frog"
        raise DataError(path, wrong, "Download it again") from error
    if len(labels) < 5:
        raise DataError(path, f"{len(labels)} images, expected 50,000", "Download it again")
    return sorted(labels.items())
