"""Filters that whiten image patches: a first layer that begins where the data's own statistics put it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-2  # of the mean variance, added to each: what an axis hardly has, noise, is not blown up


def whitening_filters(batches: Iterable[Tensor], count: int, kernel_size: int, stride: int) -> Tensor:
    """The principal axes of the images' patches, each divided by its root mean square, and the negative of each.

    A filter and its negative lie side by side, because the ReLU after them keeps half of each. The outputs of a linear
    layer with these filters are uncorrelated but for the pairs and have a mean square of 2, as He's initialisation
    gives a layer before a ReLU. The mean patch is not subtracted: that of normalised images is near 0.

    Args:
        batches: Images ``(B, 3, H, W)`` float, as the network takes them, H and W from ``kernel_size`` up.
        count: Filters, at most twice the patch's ``3 * kernel_size**2`` numbers.
        kernel_size: Height and width of a patch in pixels.
        stride: Pixels from one patch to the next, in both directions.

    Returns:
        ``(count, 3, kernel_size, kernel_size)`` float32, by falling mean square; axes' signs are fixed.

    Raises:
        ValueError: If there are not so many axes.

    Source:
        Coates and Ng 2012, "Learning Feature Representations with K-means", section 3.1, for the whitening. Page 2019,
        "How to Train Your ResNet 8", for a first layer that is set to it. Not the paper's.
    """
    size = 3 * kernel_size**2
    if count > 2 * size:
        raise ValueError(
            f"count: {count}, expected at most {2 * size} filters of {kernel_size}x{kernel_size}. Lower it."
        )
    products, patches = torch.zeros(size, size, dtype=torch.float64), 0
    for images in batches:
        rows = F.unfold(images.float(), kernel_size, stride=stride).transpose(1, 2).reshape(-1, size)
        products += (rows.T @ rows).cpu().double()  # Apple GPUs have no float64
        patches += len(rows)
    variances, axes = torch.linalg.eigh(products / patches)  # ascending
    variances, axes = variances.flip(0).clamp_min(0), axes.flip(1)
    # An eigenvector's sign is LAPACK's whim; the pairs would swap.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    filters = (2**0.5 * axes / (variances + EPSILON * variances.mean()).sqrt()).T
    pairs = torch.stack([filters, -filters], dim=1).flatten(0, 1)[:count]
    return pairs.reshape(count, 3, kernel_size, kernel_size).float()
