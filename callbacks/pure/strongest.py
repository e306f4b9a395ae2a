"""The strongest activations of each unit and where they are, found while images go by. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Strongest(NamedTuple):
    """The k strongest activations of each of C units, the strongest first; of equal ones the earlier image's.

    Each is of another image. Only activations above 0 count: where these are fewer than k, values of 0 and images of -1
    follow.
    """

    values: Tensor  # (C, k) float32
    images: Tensor  # (C, k) int64, the images' numbers
    rows: Tensor  # (C, k) int64, where in the layer's map
    columns: Tensor  # (C, k) int64


def nothing_strong(units: int, k: int, device: torch.device | None = None) -> Strongest:
    """What :func:`strongest` starts from."""
    none = torch.full((units, k), -1, device=device)
    return Strongest(torch.zeros(units, k, device=device), none, none, none)


def strongest(activations: Tensor, images: Tensor, found: Strongest) -> Strongest:
    """Look for stronger activations in one batch of images that come batch by batch and are not kept.

    Args:
        activations: ``(B, C, H, W)``, after the activation function.
        images: ``(B,)`` int64, the images' numbers: ascending, and above those of earlier batches.
        found: The strongest of earlier batches, as this function or :func:`nothing_strong` returned them.

    Returns:
        The strongest of all batches so far. NaN counts as the strongest of all.
    """
    values, places = activations.float().flatten(2).max(2)  # (B, C): an image counts once for a unit
    width, k = activations.shape[3], found.values.shape[1]
    new = Strongest(values, images[:, None].expand_as(places), places // width, places % width)
    both = Strongest(*(torch.cat([old, part.T], 1) for old, part in zip(found, new, strict=True)))  # (C, k + B)
    order = both.values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Strongest(*(part.gather(1, order) for part in both))
