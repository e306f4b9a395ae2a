"""How far a convolution's filters have formed, and which of them see colour: the paper's Figure 3 as figures."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BAND = 1.5  # a band's radius in cycles per filter: as much as its size blurs a grating, and half for an envelope's


class FilterStructure(NamedTuple):
    """Figures of N filters, each ``(N,)`` on the CPU: see :func:`filter_structure`."""

    concentration: Tensor
    colour: Tensor
    structured: Tensor


def filter_structure(weights: Tensor) -> FilterStructure:
    """Measure how much of each filter's energy lies in one orientation and frequency, and how much in colour.

    A filter's pattern ``(h, w)`` is its part along its main colour: each channel's mean is taken away, and of the rest,
    ``(3, h * w)``, it is the first right singular vector. ``P(f)`` is its power at the frequencies ``f``, from an FFT
    padded to twice its size. Of white noise the pattern is white noise, whatever the scale and the covariance of the
    colours: the first right singular vector of ``A Z``, for normal ``Z``, has the same distribution for any ``A``.

    - ``concentration``: ``max_g sum_{f in B(g)} P(f) / sum_f P(f)``, in ``[0, 1]``, over all frequencies ``g``.
      ``B(g)`` has what is within ``BAND`` of ``g`` or ``-g``. At 11x11 a Gabor filter has 0.78 and more, if its
      envelope's sigma is 1.5 pixels or more, and so do edges and blobs of colour, in the band around 0. White noise has
      0.2, one of 1,000 over 0.31; noise smoothed by a Gaussian 0.29 (sigma 0.5), 0.51 (0.7), 0.69 (1).
    - ``structured``, bool: where the concentration is above :func:`structure_threshold`.
    - ``colour``: the share of the energy, with the means', outside the grey direction, in ``[0, 1]``:
      ``1 - |R + G + B|^2 / 3 (|R|^2 + |G|^2 + |B|^2)``. 0 for grey, 1 for red against green; 2/3 for red alone, and on
      average for noise of independent channels.

    Neither scale nor sign matters, nor to the first two a channel's mean: uniform filters have 0 there, zeros in all.

    Args:
        weights: ``(N, 3, h, w)`` float, finite, or there is a ValueError.
    """
    if weights.ndim != 4 or weights.shape[1] != 3 or not bool(weights.isfinite().all()):
        raise ValueError(f"weights: {tuple(weights.shape)}, expected finite RGB filters (N, 3, h, w). Take conv1's.")
    size = (weights.shape[2], weights.shape[3])
    filters = weights.detach().cpu().double().flatten(2)
    energy = filters.square().sum((1, 2))
    colour = 1 - filters.sum(1).square().sum(1) / (3 * energy)
    varied = filters - filters.mean(2, keepdim=True)
    main = torch.linalg.eigh(varied @ varied.mT)[1][..., -1:]  # (N, 3, 1)
    pattern = (main * varied).sum(1) / energy.sqrt()[:, None]
    power = _power(torch.where(pattern.norm(dim=1, keepdim=True) > 1e-6, pattern, 0).view(-1, *size))  # more: rounding
    concentration = (power @ _bands(size)).amax(1)
    colour = colour.nan_to_num(0).clamp(0, 1).float()
    return FilterStructure(concentration, colour, concentration > structure_threshold(size))


@lru_cache
def structure_threshold(size: tuple[int, int]) -> float:
    """The concentration above which a filter of this height and width is structured.

    Half of the energy, which at 11x11 is where the eye begins to see form and out of noise's reach; or, where it is
    more, the most that any of 1,000 filters of white noise has: a band is much of all that a small filter can hold.
    """
    noise = torch.randn(1000, *size, generator=torch.Generator().manual_seed(0))
    return max(0.5, (_power(noise - noise.mean((1, 2), keepdim=True)) @ _bands(size)).max().item())


def _power(patterns: Tensor) -> Tensor:
    """Each pattern's share of power at each of F frequencies: ``(N, h, w)`` to ``(N, F)`` float32, of zeros 0."""
    power = torch.fft.fft2(patterns.float(), s=[2 * n for n in patterns.shape[1:]]).abs().square().flatten(1)
    return (power / power.sum(1, keepdim=True)).nan_to_num(0)


def _frequencies(size: tuple[int, int]) -> Tensor:
    """What the padded FFT has, down and across: ``(F, 2)`` in cycles per filter, halves, which are exact."""
    return torch.cartesian_prod(*(((torch.arange(2 * n) + n) % (2 * n) - n) / 2 for n in size))


@lru_cache
def _bands(size: tuple[int, int]) -> Tensor:
    """Which frequencies are in which band: ``(F, bands)``, 1.0 or 0.0."""
    f = _frequencies(size)
    g = f[: 2 * size[1] * (size[0] + 1)]  # the rest are mirror images

    def near(g: Tensor) -> Tensor:
        apart = (f[:, None] - g).abs()
        return torch.minimum(apart, torch.tensor(size) - apart).square().sum(2) <= BAND**2  # the plane is periodic

    return (near(g) | near(-g)).float()
