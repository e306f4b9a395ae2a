"""Augmentation against loops over pixels, numpy's reflect padding and torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from datamodules.augment import (
    Draws,
    centre_crop,
    crop_and_flip,
    cut_out,
    draw,
    resize,
    resize_extent,
    ten_crops,
)


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
    draws = draw(40, crop, 32 + 2 * padding - crop, True, 0.1, 1, torch.Generator().manual_seed(5))
    got = crop_and_flip(images, draws.top, draws.left, draws.flip, crop, padding)
    assert got.dtype == torch.uint8
    for i in range(40):
        expected = by_hand(images[i], int(draws.top[i]), int(draws.left[i]), bool(draws.flip[i]), crop, padding)
        np.testing.assert_array_equal(got[i].numpy(), expected)


def test_draws_differ_from_image_to_image_and_cover_the_range() -> None:
    draws = draw(10_000, 32, 8, True, 0.1, 1.5, torch.Generator().manual_seed(0))
    for table, choices in ((draws.top, 9), (draws.left, 9), (draws.hole[:, 0], 32), (draws.hole[:, 1], 32)):
        counts = torch.bincount(table, minlength=choices)
        assert counts.shape == (choices,)
        assert (counts - 10_000 / choices).abs().max() < 5 * (10_000 / choices) ** 0.5
    logs = draws.extent.log() / torch.tensor(1.5).log()  # uniform on [-1, 1], width and height apart
    assert logs.abs().max() <= 1 + 1e-6
    assert logs.mean(0).abs().max() < 5 * (1 / 3 / 10_000) ** 0.5
    assert logs.std(0).tolist() == pytest.approx([3**-0.5] * 2, rel=0.02)
    assert torch.corrcoef(logs.T)[0, 1].abs() < 0.05
    assert abs(draws.flip.float().mean().item() - 0.5) < 0.025
    assert draws.alphas.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.corrcoef(torch.stack([draws.top.float(), draws.left.float()]))[0, 1].abs() < 0.05


def test_a_switch_changes_what_it_names_and_nothing_else() -> None:
    full, no_flip, no_light, no_jitter = (
        draw(100, 32, 8, flip, std, jitter, torch.Generator().manual_seed(0))
        for flip, std, jitter in ((True, 0.1, 1.5), (False, 0.1, 1.5), (True, 0, 1.5), (True, 0.1, 1))
    )
    assert torch.equal(no_jitter.extent, torch.ones(100, 2))
    assert torch.equal(no_jitter.hole, full.hole)
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


@pytest.mark.parametrize("size", [32, 48, 224])
def test_an_extent_of_1_is_the_whole_image(size: int) -> None:
    images = photos(2).float()
    got = resize_extent(images, size, torch.ones(2, 2))
    torch.testing.assert_close(got, resize(images, size), atol=0.02, rtol=0)  # of 255: grid_sample's float32 positions


@pytest.mark.parametrize(("width", "height"), [(16, 24), (24, 16), (32, 20), (40, 32), (48, 64)])
def test_resize_extent_is_the_box_cut_from_a_reflected_image(width: int, height: int) -> None:
    images = photos(3).double()
    got = resize_extent(images, 64, torch.tensor([[1, 1], [width / 32, height / 32], [1, 1]], dtype=torch.float64))
    padded = np.pad(images[1].numpy(), ((0, 0), (32, 32), (32, 32)), mode="symmetric")
    top, left = 48 - height // 2, 48 - width // 2
    for i in range(64):
        for j in range(0, 64, 7):
            y, x = top + (i + 0.5) * height / 64 - 0.5, left + (j + 0.5) * width / 64 - 0.5
            r, c = int(y), int(x)
            a, b = y - r, x - c
            expected = (
                (1 - a) * (1 - b) * padded[:, r, c]
                + (1 - a) * b * padded[:, r, c + 1]
                + a * (1 - b) * padded[:, r + 1, c]
                + a * b * padded[:, r + 1, c + 1]
            )
            np.testing.assert_allclose(got[1, :, i, j].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("side", [1, 7, 8, 64])
def test_cut_out_is_a_square_of_zeros(side: int) -> None:
    images = photos(30).float() + 1
    hole = torch.randint(0, 32, (30, 2), generator=torch.Generator().manual_seed(1))
    got = cut_out(images, hole, side)
    for image, before, (row, column) in zip(got, images, hole.tolist(), strict=True):
        expected = before.numpy().copy()
        top, left = row - side // 2, column - side // 2
        expected[:, max(top, 0) : top + side, max(left, 0) : left + side] = 0
        np.testing.assert_array_equal(image.numpy(), expected)
