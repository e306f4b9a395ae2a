"""Test images made worse: five kinds of corruption at five strengths, computed here. Not CIFAR-10-C, whose are others.

Each is a function of uint8 images and a number, so that two networks see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def noise(images: Tensor, strength: float) -> Tensor:
    """Add Gaussian noise of a standard deviation of ``strength`` levels of 255, the same at every call."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * drawn).round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, strength: float) -> Tensor:
    """Blur with a Gaussian of a standard deviation of ``strength`` pixels."""
    return F.gaussian_blur(images, [2 * round(3 * strength) + 1] * 2, [strength, strength])


def jpeg(images: Tensor, strength: float) -> Tensor:
    """Save as JPEG of the quality ``strength``, 1 to 100, by Pillow, and read that."""
    found = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(strength))
        with Image.open(file) as saved:
            found.append(np.asarray(saved))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def brightness(images: Tensor, strength: float) -> Tensor:
    """Multiply by ``strength``, and cut off at 255."""
    return F.adjust_brightness(images, strength)


def contrast(images: Tensor, strength: float) -> Tensor:
    """Bring every pixel to ``strength`` of its distance from its image's mean grey."""
    return F.adjust_contrast(images, strength)


# Of uint8 images (N, 3, H, W), and the five strengths, the mildest first.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (noise, (6, 12, 18, 26, 36)),
    "blur": (blur, (0.4, 0.6, 0.8, 1.1, 1.5)),
    "jpeg": (jpeg, (60, 35, 20, 12, 7)),
    "brightness": (brightness, (1.2, 1.4, 1.7, 2.0, 2.5)),
    "contrast": (contrast, (0.7, 0.5, 0.35, 0.25, 0.15)),
}
