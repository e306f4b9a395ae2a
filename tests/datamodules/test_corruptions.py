"""Corruptions against numpy and Pillow, and that each strength is worse than the one before."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.corruptions import CORRUPTIONS, blur, brightness, contrast, jpeg, noise
from datamodules.shapes10 import draw_shapes10


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return draw_shapes10("test", 2)[0]


def test_five_kinds_at_five_strengths_each_worse_than_the_one_before(images: torch.Tensor) -> None:
    assert list(CORRUPTIONS) == ["noise", "blur", "jpeg", "brightness", "contrast"]
    before = images.clone()
    for corrupt, strengths in CORRUPTIONS.values():
        assert len(strengths) == 5
        distances = []
        for strength in strengths:
            found = corrupt(images, strength)
            assert found.shape == images.shape
            assert found.dtype == torch.uint8
            assert torch.equal(found, corrupt(images, strength))  # two networks see the same pixels
            distances.append(float((found.double() - images.double()).square().mean()))
        assert distances[0] > 0
        assert distances == sorted(distances)
    assert torch.equal(images, before)


def test_noise_has_the_standard_deviation_that_is_asked_for() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    found = noise(grey, 12).double() - 128
    assert float(found.std()) == pytest.approx(12, rel=0.02)
    assert abs(float(found.mean())) < 0.2


def test_blur_is_a_gaussian_s_convolution() -> None:
    image = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    image[..., 16, 16] = 255
    found = blur(image, 1.5)[0, 0].double().numpy()
    distance = np.arange(-16, 17)
    line = np.exp(-(distance**2) / (2 * 1.5**2)) * (abs(distance) <= round(3 * 1.5))
    line /= line.sum()
    assert np.abs(found - 255 * np.outer(line, line)).max() <= 1


def test_jpeg_is_pillow_s(images: torch.Tensor) -> None:
    file = BytesIO()
    Image.fromarray(images[3].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=12)
    expected = np.asarray(Image.open(file))
    assert np.array_equal(jpeg(images, 12)[3].permute(1, 2, 0).numpy(), expected)


def test_brightness_and_contrast_are_their_formulas(images: torch.Tensor) -> None:
    values = images.double().numpy()
    assert np.abs(brightness(images, 1.7).numpy() - np.clip(1.7 * values, 0, 255)).max() <= 1
    grey = values[:, 0] * 0.2989 + values[:, 1] * 0.587 + values[:, 2] * 0.114
    mean = grey.mean((1, 2))[:, None, None, None]
    assert np.abs(contrast(images, 0.35).numpy() - np.clip(mean + 0.35 * (values - mean), 0, 255)).max() <= 1.5
