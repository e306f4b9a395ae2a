"""Balanced subsets: counts, seeds, nesting, disjointness, refusals; the order of evaluation."""

import pytest
import torch

from datamodules.subset import alternating, balanced_split

TARGETS = torch.arange(10).repeat(50)  # interleaved: (500,)


@pytest.mark.parametrize(("subset_size", "val_size"), [(100, 50), (10, 0), (None, 100), (450, 50), (None, 0)])
def test_counts_and_no_overlap(subset_size: int | None, val_size: int) -> None:
    train, val = balanced_split(TARGETS, subset_size, val_size, seed=1)
    per_class = (500 - val_size if subset_size is None else subset_size) // 10
    assert torch.bincount(TARGETS[train]).tolist() == [per_class] * 10
    assert torch.bincount(TARGETS[val], minlength=10).tolist() == [val_size // 10] * 10
    assert not set(train.tolist()) & set(val.tolist())
    assert torch.equal(train, train.unique())


def test_the_same_images_for_the_same_seed_for_ever() -> None:
    train, val = balanced_split(TARGETS, 20, 10, seed=0)
    assert train.tolist() == [
        16,
        19,
        100,
        105,
        110,
        123,
        147,
        169,
        216,
        231,
        242,
        248,
        272,
        301,
        344,
        408,
        445,
        483,
        487,
        494,
    ]
    assert val.tolist() == [21, 26, 44, 72, 95, 189, 197, 280, 363, 468]
    assert not torch.equal(train, balanced_split(TARGETS, 20, 10, seed=1).train)


def test_a_subset_lies_within_a_larger_one_and_validation_stays() -> None:
    small, large, all_ = (balanced_split(TARGETS, size, 50, seed=3) for size in (50, 200, None))
    assert set(small.train.tolist()) < set(large.train.tolist()) < set(all_.train.tolist())
    assert torch.equal(small.val, large.val)
    assert torch.equal(small.val, all_.val)


@pytest.mark.parametrize("subset_size", [-1, 0, 7, 10_000_000, 460])
def test_subset_sizes_that_cannot_be(subset_size: int) -> None:
    with pytest.raises(ValueError, match=f"^subset_size: {subset_size} images"):
        balanced_split(TARGETS, subset_size, 50, seed=0)


@pytest.mark.parametrize("val_size", [-10, 7, 500])
def test_val_sizes_that_cannot_be(val_size: int) -> None:
    with pytest.raises(ValueError, match=f"^val_size: {val_size} images"):
        balanced_split(TARGETS, None, val_size, seed=0)


def test_unequal_classes_are_kept_whole_only_without_a_subset() -> None:
    targets = torch.cat([TARGETS, torch.zeros(100, dtype=torch.int64)])
    assert torch.bincount(targets[balanced_split(targets, None, 0, 0).train]).tolist() == [150] + [50] * 9
    assert torch.bincount(targets[balanced_split(targets, 500, 0, 0).train]).tolist() == [50] * 10


def test_classes_alternate() -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert alternating(targets, torch.arange(9)).tolist() == [0, 3, 5, 1, 4, 6, 2, 7, 8]
    assert alternating(targets, torch.tensor([8, 1, 0, 5])).tolist() == [1, 8, 0, 5]
    assert alternating(targets, torch.arange(0)).tolist() == []
