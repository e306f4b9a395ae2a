"""Lighting against numpy's cov and eigh, and its random shift against the covariance that it must have."""

import numpy as np
import pytest
import torch

from datamodules.pca_lighting import fit_rgb_pca, pca_lighting


def coloured_images(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[40.0, 10, 2], [35, -5, 5], [30, -8, -9]])
    values = 120 + torch.einsum("cd,ndhw->nchw", mix, torch.randn(n, 3, 8, 8, generator=generator))
    return values.round().clamp(0, 255).to(torch.uint8)


def test_statistics_equal_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    images = coloured_images(50)
    monkeypatch.setattr("datamodules.pca_lighting.CHUNK", 7)  # the last chunk is short
    mean, std, eigvecs, eigvals = fit_rgb_pca(images)
    pixels = images.numpy().transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False, bias=True))
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-6)
    np.testing.assert_allclose(eigvals, values[::-1], rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(eigvecs.numpy() * vectors[:, ::-1], axis=0)), 1, rtol=1e-6)
    assert (eigvecs.gather(0, eigvecs.abs().argmax(0, keepdim=True)) > 0).all()


def test_only_the_images_in_use_count() -> None:
    images, indices = coloured_images(20), torch.tensor([3, 4, 11])
    for subset, alone in zip(fit_rgb_pca(images, indices), fit_rgb_pca(images[indices]), strict=True):
        assert torch.equal(subset, alone)
    assert not torch.equal(fit_rgb_pca(images, indices).mean, fit_rgb_pca(images).mean)
    with pytest.raises(ValueError, match="images: none, expected"):
        fit_rgb_pca(images, torch.tensor([], dtype=torch.int64))


def test_shift_is_the_papers_product_with_standard_deviations() -> None:
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    _, _, eigvecs, eigvals = (t.double() for t in fit_rgb_pca(coloured_images(50)))
    alphas = torch.tensor([[0.1, 0, 0], [0, -0.2, 0], [0, 0, 0.3], [0.1, 0.1, 0.1]], dtype=torch.float64)
    shifted = pca_lighting(images, eigvecs, eigvals, alphas)
    for b in range(4):
        expected = sum(eigvecs[:, j] * alphas[b, j] * eigvals[j] ** 0.5 for j in range(3))
        difference = shifted[b] - images[b]
        torch.testing.assert_close(difference, expected[:, None, None].expand_as(difference), rtol=1e-12, atol=1e-15)


def test_shifts_have_a_hundredth_of_the_training_sets_covariance() -> None:
    """alpha ~ N(0, 0.1**2) times standard deviations along the axes: the covariance is 0.01 of the pixels'."""
    images = coloured_images(50)
    statistics = fit_rgb_pca(images)
    alphas = 0.1 * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(1))
    shifts = pca_lighting(torch.zeros(200_000, 3, 1, 1), statistics.eigvecs, statistics.eigvals, alphas).flatten(1)
    pixels = images.permute(1, 0, 2, 3).reshape(3, -1).double() / 255
    torch.testing.assert_close(shifts.T.cov().double(), 0.01 * pixels.cov(), rtol=0.03, atol=1e-6)


def test_alphas_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"alphas: \(3,\), expected \(4, 3\)"):
        pca_lighting(torch.zeros(4, 3, 2, 2), torch.eye(3), torch.ones(3), torch.zeros(3))
