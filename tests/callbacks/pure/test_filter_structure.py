"""What counts as structure, against filters of known kind, and against the definition written again with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from callbacks.pure.filter_structure import BAND, filter_structure, structure_threshold

COLOURS = torch.tensor([[1.0, 1, 1], [1, -1, 0], [-1, -1, 2], [1, 0, 0], [0.3, 0.9, -0.5]])
IN_CYCLES = (1 / 11, 0.13, 0.18, 0.25, 0.35, 0.42)  # per pixel


def envelope(sigma: float, x: float = 0, y: float = 0, size: int = 11) -> Tensor:
    down, across = (torch.arange(size) - (size - 1) / 2 - shift for shift in (y, x))
    return torch.exp(-(down[:, None] ** 2 + across**2) / (2 * sigma**2))


def gabors(sigma: float, size: int = 11) -> Tensor:
    """Of all orientations and phases, (576, size, size)."""
    places = torch.arange(size) - (size - 1) / 2
    angles, phases = torch.arange(12) * torch.pi / 12, torch.arange(8) * torch.pi / 4 + 0.1
    f, angle, phase = torch.cartesian_prod(torch.tensor(IN_CYCLES), angles, phases).T[..., None, None]
    along = places * angle.cos() + places[:, None] * angle.sin()
    return envelope(sigma, size=size) * torch.cos(2 * torch.pi * f * along + phase)


def blobs() -> Tensor:
    places = ((0, 0), (2, 0), (-3, 3), (4, -2))
    return torch.stack([envelope(sigma, *place) for sigma in (1.5, 2, 3, 4, 6) for place in places])


def coloured(patterns: Tensor) -> Tensor:
    """(n, h, w) to (5 n, 3, h, w): each in each colour."""
    return (COLOURS[:, None, :, None, None] * patterns[:, None]).flatten(0, 1)


def noise(count: int, size: int = 11, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sigma", [1.5, 2, 3, 5, 100])
def test_gabors_and_gratings_are_structured(sigma: float) -> None:
    found = filter_structure(coloured(gabors(sigma)))
    assert found.structured.all()
    assert found.concentration.min() > 0.7
    assert found.concentration.max() <= 1 + 1e-6


def test_blobs_are_structured() -> None:
    assert filter_structure(coloured(blobs())).structured.all()


def test_edges_are_structured() -> None:
    edge = torch.ones(11, 11)
    edge[:, 6:] = -1
    found = filter_structure(coloured(torch.stack([edge, edge.T, edge.triu() + edge.triu().T])))
    assert found.structured.all()


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
@pytest.mark.parametrize("mean", [0, 3])
def test_white_noise_is_not_whatever_its_norm_its_mean_and_its_colours(scale: float, mean: float) -> None:
    mixtures = [torch.eye(3), torch.ones(3, 3), torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0.2, 0.1, 0]]), COLOURS[2:]]
    for seed, mixture in enumerate(mixtures):
        white = torch.einsum("ij,njhw->nihw", mixture, noise(2000, seed=seed)) + mean * COLOURS[3, :, None, None]
        found = filter_structure(scale * white)
        assert not found.structured.any()
        # One distribution for all of them, which the docstring tells.
        assert found.concentration.median().item() == pytest.approx(0.204, abs=0.005)
        assert found.concentration.quantile(0.999).item() == pytest.approx(0.31, abs=0.03)


@pytest.mark.parametrize(("size", "least", "most"), [(3, 0.99, 1), (5, 0.85, 0.95), (7, 0.58, 0.7), (11, 0.5, 0.5)])
def test_the_threshold_is_out_of_noise_s_reach_at_any_size(size: int, least: float, most: float) -> None:
    assert least <= structure_threshold((size, size)) <= most + 1e-6
    assert filter_structure(noise(4000, size)).structured.float().mean() < 0.004
    assert size < 7 or filter_structure(coloured(gabors(2, size))).structured.all()


@pytest.mark.parametrize(("sigma", "median"), [(0.5, 0.29), (0.7, 0.51), (1.0, 0.69)])
def test_smoothed_noise(sigma: float, median: float) -> None:
    kernel = envelope(sigma)[None, None]
    wide = torch.nn.functional.conv2d(noise(1500, 21).flatten(0, 1)[:, None], kernel / kernel.sum())
    found = filter_structure(wide.view(1500, 3, 11, 11)).concentration
    assert found.median().item() == pytest.approx(median, abs=0.015)


def test_the_more_noise_the_less_structure() -> None:
    patterns = coloured(gabors(2.5)[::7])
    patterns /= patterns.flatten(1).norm(dim=1)[:, None, None, None]
    rough = noise(len(patterns))
    rough /= rough.flatten(1).norm(dim=1)[:, None, None, None]
    shares = torch.linspace(0, 1, 11)
    found = [filter_structure((1 - share).sqrt() * patterns + share.sqrt() * rough) for share in shares]
    means = torch.stack([each.concentration.mean() for each in found])
    counts = torch.tensor([int(each.structured.sum()) for each in found])
    assert (means.diff() < 0).all()
    assert (counts.diff() <= 0).all()
    assert counts[0] == counts[4] == len(patterns)  # 40 % of its energy is noise
    assert counts[-1] == 0
    assert 0 < counts[8] < len(patterns)  # 80 %


def test_neither_scale_nor_sign_nor_mean_matters() -> None:
    weights = torch.cat([noise(20), coloured(gabors(2)[::50]), coloured(blobs()[::5])])
    first = filter_structure(weights)
    for other in (1e-12 * weights, -1e9 * weights, weights.to(torch.float64), weights.requires_grad_()):
        for a, b in zip(first, filter_structure(other), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    moved = filter_structure(weights + torch.tensor([0.5, -2.0, 1.0])[:, None, None])
    for name in ("concentration", "structured"):
        torch.testing.assert_close(getattr(moved, name), getattr(first, name), rtol=1e-3, atol=1e-4)


def test_colour() -> None:
    grey, opponent, blue, red, _ = filter_structure(coloured(envelope(2)[None])).colour.tolist()
    assert [grey, opponent, blue, red] == pytest.approx([0, 1, 1, 2 / 3], abs=1e-6)
    assert filter_structure(noise(3000)).colour.mean().item() == pytest.approx(2 / 3, abs=0.005)
    assert filter_structure(COLOURS[1:2, :, None, None].expand(1, 3, 11, 11)).colour.item() == 1  # uniform


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 3), (8, 5), (11, 11), (16, 16)])
def test_filters_of_any_size_and_those_without_anything(size: tuple[int, int]) -> None:
    uniform = COLOURS[:, :, None, None].expand(5, 3, *size) / 7
    found = filter_structure(torch.cat([uniform, torch.zeros(1, 3, *size), torch.randn(3, 3, *size)]))
    assert found.concentration[:6].tolist() == [0] * 6
    assert not found.structured[:6].any()
    assert found.colour[5] == 0
    assert all(bool(each.isfinite().all()) for each in found)
    assert all(each.shape == (9,) for each in found)


@pytest.mark.parametrize("size", [(11, 11), (7, 10)])
def test_the_definition_with_numpy(size: tuple[int, int]) -> None:
    weights = torch.cat([noise(3, 11), coloured(gabors(2)[5::250])])[:, :, : size[0], : size[1]]
    found = filter_structure(weights)
    cycles = [(i - n, j - m) for n, m in [size] for i in range(2 * n) for j in range(2 * m)]  # in half cycles
    f = np.array(cycles) / 2
    for i, each in enumerate(weights.double().numpy()):
        varied = (each - each.mean((1, 2), keepdims=True)).reshape(3, -1)
        pattern = np.linalg.svd(varied)[2][0].reshape(size)
        places = np.indices(size).reshape(2, -1)
        waves = np.exp(-2j * np.pi * (f / np.array(size)) @ places)
        power = np.abs(waves @ pattern.ravel()) ** 2
        best = 0.0
        for g in f:
            apart = [np.abs(f - centre) % np.array(size) for centre in (g, -g)]
            near = [np.hypot(*np.minimum(each, np.array(size) - each).T) <= BAND for each in apart]
            best = max(best, power[near[0] | near[1]].sum())
        assert found.concentration[i].item() == pytest.approx(best / power.sum(), rel=1e-4)


def test_what_is_no_rgb_filter() -> None:
    for wrong in (torch.zeros(3, 11, 11), torch.zeros(4, 1, 11, 11), torch.full((2, 3, 5, 5), torch.nan)):
        with pytest.raises(ValueError, match=r"^weights: \(.*\), expected finite RGB filters \(N, 3, h, w\)\. Take"):
            filter_structure(wrong)
