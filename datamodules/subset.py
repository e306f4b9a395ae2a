"""Class-balanced splits and subsets: which images train, which validate, in which order. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Split(NamedTuple):
    """Positions in the training split, ascending: ``train`` and ``val``, both ``(n,)`` int64, without a common one."""

    train: Tensor
    val: Tensor


def balanced_split(targets: Tensor, subset_size: int | None, val_size: int, seed: int) -> Split:
    """Choose the same number of images from every class, for validation and for training.

    Every class is shuffled once. Validation takes the first images of each, training the next: so a validation set
    stays the same whatever ``subset_size`` is, and a smaller subset lies within a larger one.

    Args:
        targets: ``(N,)`` int64, the labels of the training split; every class at least once.
        subset_size: Images to train on, a multiple of the number of classes; ``None`` takes all that are left.
        val_size: Images to validate on, a multiple of the number of classes; 0 for none.
        seed: Chooses the images. The same ones on every machine: numpy has frozen ``RandomState``'s numbers for good,
            which it promises neither for ``Generator`` nor torch for ``randperm``.

    Returns:
        The split. With ``subset_size=None``, classes of unequal size stay unequal.

    Raises:
        ValueError: If a size is no multiple of the number of classes, out of range, or more than there is.
    """
    classes = int(targets.max()) + 1
    counts = torch.bincount(targets, minlength=classes)
    available = int(counts.min()) * classes
    for name, size, least in (("val_size", val_size, 0), ("subset_size", subset_size, classes)):
        if size is not None and (size < least or size % classes):
            raise ValueError(
                f"{name}: {size} images, expected a multiple of {classes} from {least} up. "
                f"Choose such a number: each of the {classes} classes gives as many."
            )
    if (subset_size or classes) + val_size > available:
        name, what, rest = "subset_size", f"{subset_size} images to train on", f"{val_size} to validate on"
        if subset_size is None:
            name, what, rest = "val_size", f"{val_size} images to validate on", f"{classes} to train on"
        raise ValueError(
            f"{name}: {what} and {rest}, expected at most {available}, as many in each class. Choose fewer."
        )
    random = np.random.RandomState(seed)
    train, val = [], []
    for c in range(classes):
        members = torch.from_numpy(random.permutation(np.flatnonzero(targets.numpy() == c)))
        cut = val_size // classes
        end = None if subset_size is None else cut + subset_size // classes
        val.append(members[:cut])
        train.append(members[cut:end])
    return Split(torch.cat(train).sort().values, torch.cat(val).sort().values)


def alternating(targets: Tensor, indices: Tensor) -> Tensor:
    """The same indices in an order in which classes alternate, so that the first images are a sample of all.

    Args:
        targets: ``(N,)`` int64 labels.
        indices: ``(n,)`` int64 positions in ``targets``.

    Returns:
        ``(n,)``: the first index of each class, in the order of the labels, then the second of each, and so on.
    """
    labels = targets[indices]
    by_class, counts = labels.argsort(stable=True), labels.bincount()
    turn = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]  # 0 for the first of its class
    return indices[by_class[turn.argsort(stable=True)]]
