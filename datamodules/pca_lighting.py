"""PCA lighting, the colour augmentation of section 4.1 (Krizhevsky et al. 2012). Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1000  # images turned to float64 at a time: 25 MB


class RGBStatistics(NamedTuple):
    """Statistics of RGB values in ``[0, 1]`` over all pixels of a set of images, float32.

    Attributes:
        mean: ``(3,)``.
        std: ``(3,)``, the population's.
        eigvecs: ``(3, 3)``, unit length; column ``j`` is principal axis ``j``. The largest entry of each is positive.
        eigvals: ``(3,)``, variances along the axes, largest first.
    """

    mean: Tensor
    std: Tensor
    eigvecs: Tensor
    eigvals: Tensor


def fit_rgb_pca(images: Tensor, indices: Tensor | None = None) -> RGBStatistics:
    """Mean, standard deviation and principal axes of the RGB values "throughout the training set".

    Args:
        images: ``(N, 3, H, W)`` uint8.
        indices: ``(n,)`` int64, the images to use; all by default.

    Raises:
        ValueError: If there is no image.

    Source:
        Krizhevsky et al. 2012, section 4.1.
    """
    indices = torch.arange(len(images)) if indices is None else indices
    if len(indices) == 0:
        raise ValueError("images: none, expected at least one to take the RGB values from. Give some.")
    total, products = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for chunk in indices.split(CHUNK):
        # Sums of products of whole numbers below 2**53: float64 holds them exactly, whatever the order.
        pixels = images[chunk].permute(1, 0, 2, 3).reshape(3, -1).double()
        total += pixels.sum(1)
        products += pixels @ pixels.T
    count = len(indices) * images.shape[2] * images.shape[3]
    mean = total / count / 255
    covariance = products / count / 255**2 - torch.outer(mean, mean)
    eigvals, eigvecs = torch.linalg.eigh(covariance)  # ascending
    eigvals, eigvecs = eigvals.flip(0).clamp_min(0), eigvecs.flip(1)
    # An eigenvector's sign is LAPACK's whim. Fix it, or machines would disagree on what a seed's draws mean.
    eigvecs = eigvecs * eigvecs.gather(0, eigvecs.abs().argmax(0, keepdim=True)).sign()
    std = covariance.diagonal().clamp_min(0).sqrt()
    return RGBStatistics(mean.float(), std.float(), eigvecs.float(), eigvals.float())


def pca_lighting(images: Tensor, eigvecs: Tensor, eigvals: Tensor, alphas: Tensor) -> Tensor:
    """Shift each image's colour along the principal axes of the training set's RGB values.

    Adds ``eigvecs @ (alphas * sqrt(eigvals))`` to every pixel of an image. The text multiplies by the eigenvalues,
    which are variances, so that the shift would depend on the unit of the pixels: 2.6 levels of 255 on CIFAR-10 in
    ``[0, 1]``, 653 levels in 0-255, which leaves no image. The standard deviations, which the released code's names
    point to, give 6.1 levels in either.

    Args:
        images: ``(B, 3, H, W)`` float RGB in ``[0, 1]``, before the mean is subtracted.
        eigvecs: ``(3, 3)``, unit length; column ``j`` is principal axis ``j``.
        eigvals: ``(3,)`` variances along the axes for RGB in ``[0, 1]``, largest first.
        alphas: ``(B, 3)`` unitless, drawn from N(0, 0.1**2) anew for each use of an image.

    Returns:
        ``(B, 3, H, W)``, a new tensor. Not clipped.

    Raises:
        ValueError: If ``alphas`` is not ``(B, 3)``.

    Source:
        Krizhevsky et al. 2012, section 4.1.
    """
    if alphas.shape != (len(images), 3):
        raise ValueError(f"alphas: {tuple(alphas.shape)}, expected ({len(images)}, 3). Draw three for each image.")
    shift = (alphas * eigvals.sqrt()) @ eigvecs.T  # (B, 3)
    return images + shift[:, :, None, None]
