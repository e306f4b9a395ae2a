"""shapes10: ten classes of coloured shapes and textures, the embedded stand-in where CIFAR-10 can't be had.

The same seed gives the same bytes on every machine. Three habits make that so:

- Random numbers are PCG64's raw 64-bit words. NumPy promises those for good; it does not promise what
  ``Generator``'s methods make of them.
- Arithmetic is + - * / sqrt, comparisons and floor, which IEEE 754 fixes to the last bit. sin, cos and exp
  differ between libraries, sums and matrix products between vector widths.
- Image ``i`` of a class is made from row ``i`` of a table of words and from nothing else. So the first 50
  images of a class are the same whether 50 or 1000 are drawn.

Every class draws its colours from the same distribution, light on dark as likely as dark on light, and puts
them anywhere in the frame. What is left to tell the classes by is the outline: a linear classifier on the
pixels gets one image in four (``tests/datamodules/test_shapes10.py``), a small convolutional network soon nine in ten.
Flipping an image left to right or shifting it by a few pixels, as training does, gives another image of its
own class.
"""

from collections.abc import Callable
from math import sqrt
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Split = Literal["train", "test"]

_SIDE = 32
_DEFAULT_PER_CLASS = {"train": 1000, "test": 200}

# ---- the ten outlines --------------------------------------------------------------------------------------
# Each is a signed distance in pixels, negative inside. x and y (N, 32, 32) are pixel coordinates from the
# shape's own centre, turned with it; y points down. size (N, 1, 1) is a shape's outer radius or a texture's
# half period, in pixels; variety (N, 1, 1), in [0, 1), is whatever else differs between images of a class.


def _disc(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    return np.sqrt(x * x + y * y) - size


def _ring(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    hole = size * (0.5 + 0.15 * variety)
    radius = np.sqrt(x * x + y * y)
    return np.maximum(radius - size, hole - radius)


def _triangle(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    side = sqrt(0.75) * np.abs(x) - 0.5 * y  # both slanted sides: the one is the other's mirror image
    return np.maximum(side, y) - 0.5 * size


def _square(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - sqrt(0.5) * size


def _cross(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    arm = size * (0.22 + 0.1 * variety)  # half the width of a bar
    return np.maximum(np.maximum(x, y) - 0.95 * size, np.minimum(x, y) - arm)


def _star(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    # Five lines draw a pentagram. The star is where at most one of them is overstepped: the second largest of
    # the five distances is negative. cos and sin of multiples of 72 degrees are made of square roots alone.
    c1, s1 = (sqrt(5) - 1) / 4, sqrt(10 + 2 * sqrt(5)) / 4
    c2, s2 = -(sqrt(5) + 1) / 4, sqrt(10 - 2 * sqrt(5)) / 4
    largest = -y
    second = np.full_like(y, -np.inf)
    for s, c in ((s1, c1), (s2, c2), (-s2, c2), (-s1, c1)):
        line = s * x - c * y
        second = np.maximum(second, np.minimum(largest, line))
        largest = np.maximum(largest, line)
    return second - c1 * size


def _to_nearest_line(x: Floats, half_period: Floats) -> Floats:
    """Distance in pixels from ``x`` to the nearest of the lines at ``0, ±2, ±4, ... half_period``."""
    turns = x / (2 * half_period)
    return np.abs(turns - np.floor(turns + 0.5)) * (2 * half_period)


def _h_stripes(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    return _to_nearest_line(y, size) - size * (0.4 + 0.2 * variety)


def _v_stripes(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    return _h_stripes(y, x, size, variety)


def _checkerboard(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    a = _to_nearest_line(x, size) - 0.5 * size
    b = _to_nearest_line(y, size) - 0.5 * size
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))  # inside the one or the other, but not both


def _dots(x: Floats, y: Floats, size: Floats, variety: Floats) -> Floats:
    a, b = _to_nearest_line(x, size), _to_nearest_line(y, size)
    return np.sqrt(a * a + b * b) - size * (0.5 + 0.15 * variety)


class _Kind(NamedTuple):
    outline: Callable[[Floats, Floats, Floats, Floats], Floats]
    smallest: float  # size, pixels
    largest: float
    turn: float = 1.0  # largest tan(angle / 2); 1 is 90 degrees either way, every position


# Stripes lean by 11 degrees at most, so that horizontal and vertical stay two classes; all else turns freely.
_KINDS = {
    "disc": _Kind(_disc, 6.0, 11.0),
    "ring": _Kind(_ring, 7.0, 12.0),
    "triangle": _Kind(_triangle, 8.5, 14.0),
    "square": _Kind(_square, 8.0, 13.0),
    "cross": _Kind(_cross, 8.0, 13.0),
    "star": _Kind(_star, 9.5, 14.5),
    "h-stripes": _Kind(_h_stripes, 2.5, 5.0, turn=0.1),
    "v-stripes": _Kind(_v_stripes, 2.5, 5.0, turn=0.1),
    "checkerboard": _Kind(_checkerboard, 4.0, 7.0),
    "dots": _Kind(_dots, 3.5, 5.5),
}
CLASSES: tuple[str, ...] = tuple(_KINDS)

# ---- drawing -----------------------------------------------------------------------------------------------

_UNIFORMS = 14  # numbers in [0, 1) that make an image, taken apart in _draw_class
_NOISE_BYTES = 3 * _SIDE * _SIDE  # and one random byte for each of its values


def _random_rows(n: int, seed: tuple[int, int, int]) -> tuple[Floats, NDArray[np.uint8]]:
    """Draw the numbers behind ``n`` images: (n, _UNIFORMS) in [0, 1) and (n, 3, 32, 32) bytes, a row each."""
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw((n, _UNIFORMS + _NOISE_BYTES // 8))
    # The top 24 bits, which a float32 holds. The factor's type is spelt out: NumPy 1 would go over to float64.
    uniforms = (words[:, :_UNIFORMS] >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    noise = np.ascontiguousarray(words[:, _UNIFORMS:]).astype("<u8", copy=False).view(np.uint8)
    return uniforms, noise.reshape(n, 3, _SIDE, _SIDE)


def _draw_class(kind: _Kind, uniforms: Floats, noise: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw images from their rows of random numbers: (n, _UNIFORMS), (n, 3, 32, 32) -> (n, 3, 32, 32)."""
    u = uniforms[:, :, None, None]  # (n, _UNIFORMS, 1, 1)

    # Background: any colour. Foreground: half way round from it in each channel, give or take a quarter. So
    # each channel differs by at least 1/4, up or down, and the foreground too is any colour.
    background = u[:, 0:3]  # (n, 3, 1, 1)
    foreground = background + (0.25 + 0.5 * u[:, 3:6])
    foreground = np.where(foreground >= 1, foreground - 1, foreground)

    # Place and turn. The whole shape lies inside the frame; a texture moves by more than its period.
    size = kind.smallest + (kind.largest - kind.smallest) * u[:, 6]  # (n, 1, 1)
    reach = (_SIDE - 1) / 2 - size
    pixels = np.arange(_SIDE, dtype=np.float32) - (_SIDE - 1) / 2  # pixel centres, -15.5 to 15.5
    x = pixels[None, None, :] - reach * (2 * u[:, 7] - 1)  # (n, 1, 32)
    y = pixels[None, :, None] - reach * (2 * u[:, 8] - 1)  # (n, 32, 1)
    t = kind.turn * (2 * u[:, 9] - 1)
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # of twice the angle whose tangent is t
    distance = kind.outline(cos * x + sin * y, cos * y - sin * x, size, u[:, 10])  # (n, 32, 32)
    coverage = np.clip(0.5 - distance, 0, 1)[:, None]  # a soft edge, one pixel wide

    # Light falls off to one side, by up to 0.15 from the middle to an edge, and the camera is grainy.
    light = (0.3 * u[:, 11] - 0.15) * pixels[None, None, :] + (0.3 * u[:, 12] - 0.15) * pixels[None, :, None]
    grain = (0.02 + 0.08 * u[:, 13:14]) / 127.5  # (n, 1, 1, 1)
    images = background + (foreground - background) * coverage  # (n, 3, 32, 32)
    images += light[:, None] / (_SIDE / 2)
    images += (noise.astype(np.float32) - 127.5) * grain
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_shapes10(split: Split, per_class: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw shapes10: ``per_class`` images of each of the ten ``CLASSES``, grouped by class.

    Fewer images per class are the first ones of more. The two splits are separate draws.

    Args:
        split: ``"train"`` or ``"test"``.
        per_class: Images of each class, 1 or more; by default 1000 for train and 200 for test.
        seed: 0 to 2**32 - 1; another seed is another data set of the same kind.

    Returns:
        ``(10 * per_class, 3, 32, 32)`` uint8 RGB images and ``(10 * per_class,)`` int64 targets, where
        ``c`` stands for ``CLASSES[c]``. The same bytes on every machine.

    Raises:
        ValueError: If ``split`` is neither name, or ``per_class`` or ``seed`` is no whole number in range.
    """
    splits = get_args(Split)
    if split not in splits:
        raise ValueError(f"split: {split!r}, expected 'train' or 'test'. Choose one.")
    if per_class is None:
        per_class = _DEFAULT_PER_CLASS[split]
    if not isinstance(per_class, int) or per_class < 1:
        raise ValueError(f"per_class: {per_class!r}, expected a whole number from 1 up. Choose one, such as 100.")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed!r}, expected a whole number from 0 to 2**32 - 1. Choose one, such as 0.")

    images = np.empty((len(CLASSES), per_class, 3, _SIDE, _SIDE), dtype=np.uint8)
    for c, kind in enumerate(_KINDS.values()):
        images[c] = _draw_class(kind, *_random_rows(per_class, (seed, splits.index(split), c)))
    targets = torch.arange(len(CLASSES)).repeat_interleave(per_class)
    return torch.from_numpy(images.reshape(-1, 3, _SIDE, _SIDE)), targets
