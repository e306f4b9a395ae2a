from __future__ import annotations

import pytest
import torch
from torch import Tensor

from callbacks.pure.strongest import Strongest, nothing_strong, strongest


def brute_force(activations: Tensor, numbers: list[int], unit: int, k: int) -> list[tuple[float, int, int, int]]:
    """Value, image, row and column of a unit's k strongest images, by sorting all that there is."""
    height, width = activations.shape[2:]
    every = [
        (-float(activations[i, unit, row, column]), number, row, column)
        for i, number in enumerate(numbers)
        for row in range(height)
        for column in range(width)
        if activations[i, unit, row, column] > 0
    ]
    best: dict[int, tuple[float, int, int, int]] = {}
    for found in sorted(every):
        best.setdefault(found[1], found)
    return [(-value, *place) for value, *place in sorted(best.values())[:k]]


def search(activations: Tensor, numbers: list[int], k: int, size: int) -> Strongest:
    found = nothing_strong(activations.shape[1], k)
    for batch, of_batch in zip(activations.split(size), torch.tensor(numbers).split(size), strict=True):
        found = strongest(batch, of_batch, found)
    return found


@pytest.mark.parametrize("kind", ["floats", "ties", "sparse"])
@pytest.mark.parametrize("size", [1, 32, 100])
def test_the_strongest_are_a_brute_force_sorts(kind: str, size: int) -> None:
    torch.manual_seed(0)
    activations = torch.randn(100, 6, 4, 5).relu()
    if kind == "ties":
        activations = activations.ceil()
    if kind == "sparse":  # fewer images than nine excite a unit, and none the last
        activations *= torch.rand(100, 6, 1, 1) < 0.05
        activations[:, 5] = 0
    numbers = list(range(0, 300, 3))
    found = search(activations, numbers, 9, size)
    for unit in range(6):
        expected = brute_force(activations, numbers, unit, 9)
        assert [tuple(part[unit, i].item() for part in found) for i in range(len(expected))] == expected
        assert (found.values[unit, len(expected) :] == 0).all()
        assert (found.images[unit, len(expected) :] == -1).all()


def test_what_is_kept_does_not_grow_and_nan_shows() -> None:
    found = search(torch.rand(50, 3, 2, 2), list(range(50)), 4, 10)
    assert {part.shape for part in found} == {(3, 4)}
    half = torch.full((2, 3, 2, 2), 0.5, dtype=torch.bfloat16)
    half[0, 1, 1, 0] = torch.nan
    found = strongest(half, torch.tensor([50, 51]), found)
    assert found.values.dtype == torch.float32
    assert found.values.isfinite().all(1).tolist() == [True, False, True]
