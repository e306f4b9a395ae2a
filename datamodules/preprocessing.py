"""What stands between a picture and the network, as a module of plain PyTorch: the DataModule's way of a test image."""

from __future__ import annotations

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.augment import centre_crop, resize, resizing

InputScale = Literal["unit", "raw"]
SIZE = 32  # height and width of the stored images


def square(images: Tensor) -> Tensor:
    """The centre square of each image at 32x32 pixels: bicubic, antialiased on the way down, as Pillow does it.

    Args:
        images: ``(B, 3, H, W)`` uint8, which gives Pillow's very bytes, or float in ``[0, 1]``.

    Returns:
        ``(B, 3, 32, 32)`` of the same type. Images of 32x32 pixels come out as they are.
    """
    if torch.compiler.is_compiling():  # whose programs take photos of any size, which F.interpolate's do not
        return _square_by_matrices(images)
    images = centre_crop(images, min(images.shape[2:]))
    if images.shape[2] == SIZE:
        return images
    there = images if images.is_floating_point() else images.cpu()  # where torch reduces bytes
    small = F.interpolate(there, (SIZE, SIZE), mode="bicubic", antialias=True).to(images.device)
    return small.clamp(0, 1) if images.is_floating_point() else small


def _square_by_matrices(images: Tensor) -> Tensor:
    """What :func:`square` gives, bytes too, by steps in which a traced program's height and width stay open."""
    side = cast(int, torch.sym_min(*images.shape[2:]))
    rows, columns = (_bicubic(n, side).to(images.device) for n in images.shape[2:])
    if images.is_floating_point():
        return (rows.to(images) @ (images @ columns.T.to(images))).clamp(0, 1)
    # Bytes are rounded after each of the two, and their weights are multiples of 1/unit, which fit in 16 bits.
    powers = 2.0 ** torch.arange(23, dtype=rows.dtype, device=rows.device)
    unit = torch.where(rows.max() * powers < 2**15 - 0.5, powers, 1).max()
    rows, columns = (torch.trunc(weights * unit + weights.sign() / 2) / unit for weights in (rows, columns))
    across = (images.double() @ columns.T + 0.5).floor().clamp(0, 255)
    return (rows @ across + 0.5).floor().clamp(0, 255).to(images.dtype)


def _bicubic(length: int, side: int) -> Tensor:
    """``(32, length)`` float64: what a line's middle ``side`` pixels weigh in each of 32; Keys's kernel, a = -0.5."""
    start, pixels = (length - side) // 2, torch.arange(length, dtype=torch.float64)
    middles = start + (torch.arange(SIZE, dtype=torch.float64)[:, None] + 0.5) * (side / SIZE)
    x = (pixels + 0.5 - middles).abs() * (SIZE / cast(int, torch.sym_max(side, SIZE)))  # wider on the way down
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    weights = torch.where((pixels >= start) & (pixels < start + side), weights, 0)
    return weights / weights.sum(1, keepdim=True)


def normalise(images: Tensor, mean: Tensor, std: Tensor, input_scale: InputScale) -> Tensor:
    """``(B, 3, H, W)`` float in ``[0, 1]`` less the mean ``(3,)``, in the network's unit: spreads, or 255ths."""
    scale = 1 / std.clamp_min(1 / 255) if input_scale == "unit" else torch.full_like(std, 255.0)
    return (images - mean[:, None, None]) * scale[:, None, None]


class Preprocessing(nn.Module):
    """What the DataModule makes of a test image, centre crop and all.

    Args:
        mean: ``(3,)`` float, of the training images in ``[0, 1]``.
        std: ``(3,)`` float, their spread.
        crop_size: Height and width in pixels of the square that is cut from the 32x32 image.
        image_size: Those that the network takes.
        input_scale: As :class:`~datamodules.CIFAR10DataModule`'s.
    """

    mean: Tensor
    std: Tensor
    resizing: Tensor

    def __init__(
        self, mean: Tensor, std: Tensor, crop_size: int = 28, image_size: int = 224, input_scale: InputScale = "unit"
    ) -> None:
        super().__init__()
        self.crop_size, self.image_size, self.input_scale = min(crop_size, SIZE), image_size, input_scale
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        # A buffer, so that an exported program has it.
        self.register_buffer("resizing", resizing(self.crop_size, image_size).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB, uint8 or float in ``[0, 1]``, to ``(B, 3, image_size, image_size)`` float32."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images: {tuple(images.shape)}, expected (B, 3, H, W). Give it RGB images.")
        x = centre_crop(square(images), self.crop_size)
        x = x.float() if images.is_floating_point() else x.float() / 255
        mean, std, resizing = (buffer.float() for buffer in (self.mean, self.std, self.resizing))  # also after .half()
        return resize(normalise(x, mean, std, self.input_scale), self.image_size, resizing)
