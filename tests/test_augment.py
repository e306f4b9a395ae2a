"""Augmentation against loops over pixels, numpy's reflect padding and torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datamodules.augment import Draws, centre_crop, crop_and_flip, draw, resize, ten_crops


def photos(n: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def by_hand(image: Tensor, top: int, left: int, flip: bool, crop: int, padding: int) -> np.ndarray:
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    out = padded[:, top : top + crop, left : left + crop]
    return out[:, :, ::-1] if flip else out


@pytest.mark.parametrize(("crop", "padding"), [(32, 4), (28, 0), (32, 0), (20, 7), (40, 4)])
def test_crop_and_flip_equals_padding_and_slicing(crop: int, padding: int) -> None:
    images = photos(40)
    draws = draw(40, 32 + 2 * padding - crop, True, 0.1, torch.Generator().manual_seed(5))
    got = crop_and_flip(images, draws.top, draws.left, draws.flip, crop, padding)
    assert got.dtype == torch.uint8
    for i in range(40):
        expected = by_hand(images[i], int(draws.top[i]), int(draws.left[i]), bool(draws.flip[i]), crop, padding)
        np.testing.assert_array_equal(got[i].numpy(), expected)


def test_draws_differ_from_image_to_image_and_cover_the_range() -> None:
    draws = draw(10_000, 8, True, 0.1, torch.Generator().manual_seed(0))
    for table in (draws.top, draws.left):
        counts = torch.bincount(table, minlength=9)
        assert counts.shape == (9,)
        assert (counts - 10_000 / 9).abs().max() < 5 * (10_000 / 9) ** 0.5
    assert abs(draws.flip.float().mean().item() - 0.5) < 0.025
    assert draws.alphas.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.corrcoef(torch.stack([draws.top.float(), draws.left.float()]))[0, 1].abs() < 0.05


def test_a_switch_changes_what_it_names_and_nothing_else() -> None:
    full, no_flip, no_light = (
        draw(100, 8, flip, std, torch.Generator().manual_seed(0))
        for flip, std in ((True, 0.1), (False, 0.1), (True, 0))
    )
    assert not no_flip.flip.any()
    assert not no_light.alphas.any()
    assert torch.equal(no_flip.alphas, full.alphas)
    assert torch.equal(no_light.flip, full.flip)
    assert torch.equal(no_flip.top, full.top)
    rows = full.rows(torch.tensor([7, 3]))
    assert isinstance(rows, Draws)
    assert torch.equal(rows.alphas, full.alphas[[7, 3]])


def test_ten_crops_are_torchvisions() -> None:
    images = photos(3)
    got = ten_crops(images, 28, 0)
    expected = torch.stack([torch.stack(tv.ten_crop(image, [28, 28])) for image in images])
    assert got.shape == (3, 10, 3, 28, 28)
    # torchvision mirrors the image before it cuts the corners, we mirror the crops: left and right change places.
    assert torch.equal(got, expected[:, [0, 1, 2, 3, 4, 6, 5, 8, 7, 9]])


def test_ten_crops_of_a_padded_image() -> None:
    images = photos(1)
    got = ten_crops(images, 32, 4)[0]
    for i, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]):
        np.testing.assert_array_equal(got[i].numpy(), by_hand(images[0], top, left, False, 32, 4))
        np.testing.assert_array_equal(got[i + 5].numpy(), by_hand(images[0], top, left, True, 32, 4))


def test_centre_crop() -> None:
    images = photos(2)
    assert torch.equal(centre_crop(images, 28), tv.center_crop(images, [28, 28]))
    assert torch.equal(centre_crop(images, 32), images)


@pytest.mark.parametrize("size", [16, 31, 32, 64, 224])
def test_resize_is_torchvisions(size: int) -> None:
    images = photos(2).float()
    expected = tv.resize(images, [size, size], antialias=True)
    torch.testing.assert_close(resize(images, size), expected, atol=1e-3, rtol=1e-4)
