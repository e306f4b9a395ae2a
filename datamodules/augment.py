"""Augmentation of whole batches with a draw of its own for every image. Pure functions.

Random numbers are drawn in one place (:func:`draw`), once an epoch for every image of the training set, and used in
another: what happens to an image depends on (seed, epoch, image) and not on its batch, the device or the processes.
torchvision's v2 transforms draw once for a whole batch, so they can't be used on batches for this.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Draws(NamedTuple):
    """What the augmentation does to each of ``N`` images.

    Attributes:
        top: ``(N,)`` int64, the crop's first row in the padded image.
        left: ``(N,)`` int64, its first column.
        flip: ``(N,)`` bool, mirrored left to right or not.
        alphas: ``(N, 3)`` float32, the lighting's draws, unitless.
        extent: ``(N, 2)`` float32, width and height of what is shown, in shares of the crop; above 1 it reaches beyond.
        hole: ``(N, 2)`` int64, row and column of the crop's pixel at the middle of the hole, if one is cut.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    alphas: Tensor
    extent: Tensor
    hole: Tensor

    def rows(self, index: Tensor) -> Draws:
        """The draws of the images at ``index``, which is on their device."""
        return Draws(*(table[index] for table in self))


def draw(
    n: int, crop_size: int, slack: int, flip: bool, lighting_std: float, scale_jitter: float, generator: torch.Generator
) -> Draws:
    """Draw an epoch's augmentation for ``n`` images.

    Every switch consumes the same numbers on or off, so an ablation changes what it names and nothing else.

    Args:
        n: Images.
        crop_size: Height and width of a crop in pixels.
        slack: Crops start at 0 to ``slack`` inclusive, in pixels: the padded image's size less the crop's.
        flip: Mirror half of the images.
        lighting_std: Standard deviation of ``alphas``; 0.1 in section 4.1, 0 for none.
        scale_jitter: Largest factor by which an image grows or shrinks, in width and in height apart; 1 for none. To
            grow by a factor is as likely as to shrink by it: its logarithm is uniform.
        generator: On the CPU.
    """
    top, left = torch.randint(0, slack + 1, (2, n), generator=generator)
    mirrored = torch.rand(n, generator=generator) < 0.5
    alphas = torch.randn(n, 3, generator=generator) * lighting_std
    extent = scale_jitter ** (2 * torch.rand(n, 2, generator=generator) - 1)
    hole = torch.randint(0, crop_size, (n, 2), generator=generator)
    return Draws(top, left, mirrored & flip, alphas, extent, hole)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, crop_size: int, padding: int) -> Tensor:
    """Cut a square out of each image, padded by reflection, and mirror it where asked: one gather.

    Args:
        images: ``(B, 3, H, W)``, any dtype.
        top: ``(B,)`` int64, first row in the padded image, 0 to ``H + 2 * padding - crop_size``.
        left: ``(B,)`` int64, first column likewise.
        flip: ``(B,)`` bool; the crop is mirrored, not the image, so ``left`` means the same either way.
        crop_size: Height and width of the result in pixels.
        padding: Pixels added on each side, less than ``H`` and ``W``. Reflected, because a black border would be a mark
            that says how an image was shifted.

    Returns:
        ``(B, 3, crop_size, crop_size)``, a new tensor of the same dtype.
    """
    batch, channels, height, width = images.shape
    span = torch.arange(crop_size, device=images.device)
    rows = _reflect(top[:, None] + span - padding, height)  # (B, crop)
    columns = torch.where(flip[:, None], span.flip(0), span)
    columns = _reflect(left[:, None] + columns - padding, width)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).reshape(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).view(batch, channels, crop_size, crop_size)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside ``[0, size)`` mirrored back in at the first and the last pixel."""
    return size - 1 - (size - 1 - position.abs()).abs()


def centre_crop(images: Tensor, crop_size: int) -> Tensor:
    """The middle ``crop_size`` pixels of ``(B, 3, H, W)``: a view."""
    top, left = ((size - crop_size) // 2 for size in images.shape[2:])
    return images[:, :, top : top + crop_size, left : left + crop_size]


def ten_crops(images: Tensor, crop_size: int, padding: int) -> Tensor:
    """Four corners, the centre, and their mirror images, as section 4.1 tests.

    Args:
        images: ``(B, 3, H, W)``, any dtype.
        crop_size: Height and width of a crop in pixels.
        padding: Pixels added by reflection on each side first, as in training.

    Returns:
        ``(B, 10, 3, crop_size, crop_size)``: top left, top right, bottom left, bottom right, centre; these mirrored.

    Source:
        Krizhevsky et al. 2012, section 4.1.
    """
    batch, channels, height, width = images.shape
    bottom, right = height + 2 * padding - crop_size, width + 2 * padding - crop_size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    top, left = torch.tensor(corners * 2, device=images.device).repeat(batch, 1).T
    flip = (torch.arange(10, device=images.device) >= 5).repeat(batch)
    crops = crop_and_flip(images.repeat_interleave(10, 0), top, left, flip, crop_size, padding)
    return crops.view(batch, 10, channels, crop_size, crop_size)


def resize(images: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """Bilinear, to ``(B, 3, size, size)`` float; antialiased on the way down, as PIL and torchvision do it.

    Each row and each column of the result is the same weighted sum of the image's whatever the image: two matrix
    products, which take half of ``F.interpolate``'s time on a CPU and give its values up to rounding.

    Args:
        images: ``(B, 3, H, W)`` float.
        size: Height and width of the result in pixels.
        weights: Of square images: :func:`resizing`'s, where they are at hand.
    """
    height, width = images.shape[2:]
    if height == size and width == size:
        return images
    rows, columns = (resizing(n, size).to(images) if weights is None else weights for n in (height, width))
    return rows @ (images @ columns.T)


def resize_extent(images: Tensor, size: int, extent: Tensor) -> Tensor:
    """Show each image at a scale of its own: a box around its centre, bilinear and not antialiased.

    Args:
        images: ``(B, C, H, W)`` float.
        size: Height and width of the result in pixels.
        extent: ``(B, 2)``, width and height of the box in shares of the image. Beyond its edges the image is reflected.

    Returns:
        ``(B, C, size, size)``; with an extent of 1, and not reduced, what :func:`resize` gives.
    """
    boxes = F.pad(torch.diag_embed(extent), (0, 1))  # (B, 2, 3): scaled, not moved
    grid = F.affine_grid(boxes, [*images.shape[:2], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def cut_out(images: Tensor, hole: Tensor, side: int) -> Tensor:
    """Zero a square of each image, or as much of it as lies inside.

    Args:
        images: ``(B, C, H, W)``, normalised, so that zero is the mean.
        hole: ``(B, 2)`` int64, row and column of its middle (for an even side, of the pixel right below).
        side: Its height and width in pixels.

    Source:
        DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    rows, columns = (_inside(n, hole[:, i], side) for i, n in enumerate(images.shape[2:]))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _inside(size: int, middle: Tensor, side: int) -> Tensor:
    """``(B, size)``: which positions lie in each image's stretch of ``side`` around ``middle`` ``(B,)``."""
    offset = torch.arange(size, device=middle.device) - middle[:, None] + side // 2
    return (offset >= 0) & (offset < side)


@lru_cache(maxsize=16)
def resizing(source: int, target: int) -> Tensor:
    """``(target, source)`` float64, ``F.interpolate``'s own: what each pixel of a line makes of the line's pixels."""
    impulses = torch.eye(source, dtype=torch.float64)[None, None]  # column j: a line with pixel j alone on
    return F.interpolate(impulses, (target, source), mode="bilinear", antialias=target < source)[0, 0]
