from typing import Any

import pytest
import torch
from helpers.small_net import calls_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.pure import knn
from callbacks.pure.knn import merge_neighbours, nearest_neighbours, nothing_found, retrieval_precision, search_block


def brute_force(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition, in float64: every difference, a stable sort, so that ties go to the lower index."""
    squared = torch.stack([(gallery.double() - query.double()).square().sum(1) for query in queries])
    distances, indices = squared.sqrt().sort(dim=1, stable=True)
    return distances[:, :k], indices[:, :k]


def features(n: int, d: int, seed: int = 0) -> Tensor:
    """Like fc7's: correlated, not negative, many zeros."""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 12, generator=g) @ torch.randn(12, d, generator=torch.Generator().manual_seed(99))).relu()


def check(queries: Tensor, gallery: Tensor, k: int, chunk_bytes: int = 256 * 2**20) -> Tensor:
    """The same indices as brute force, and distances within float32's rounding; the distances."""
    distances, indices = nearest_neighbours(queries, gallery, k, chunk_bytes)
    want_distances, want_indices = brute_force(queries, gallery, k)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, want_indices)
    torch.testing.assert_close(distances.double(), want_distances, rtol=1e-6, atol=0)
    return distances


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_cancellation_does_not_change_neighbours(offset: float):
    """Distances of order 1 between vectors of length 1e5: |q|^2 - 2qg + |g|^2 in float32 alone finds something else."""
    q, g = features(50, 256, seed=1) * 0.01 + offset, features(2000, 256, seed=2) * 0.01 + offset
    check(q, g, 8)
    expanded = q.square().sum(1, keepdim=True) - 2 * q @ g.T + g.square().sum(1)
    assert not torch.equal(expanded.topk(8, largest=False).indices, brute_force(q, g, 8)[1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def far_tight_clusters() -> tuple[Tensor, Tensor]:
    """No common origin helps here: within each of the far clusters rounding is larger than all distances."""
    centres = 1e3 * draw(4, 32)
    return centres + 1e-3 * draw(4, 32, seed=1), (centres[:, None] + 1e-3 * draw(4, 100, 32, seed=2)).flatten(0, 1)


def lattice(n: int, d: int, seed: int) -> Tensor:
    return torch.randint(-1, 2, (n, d), generator=torch.Generator().manual_seed(seed)).float()


KINDS = {
    "features": lambda: (features(40, 64, seed=1), features(3001, 64, seed=2)),
    "as few as wanted": lambda: (features(3, 4, seed=1), features(5, 4, seed=2)),
    "noise": lambda: (draw(40, 64), draw(3000, 64, seed=1)),
    "noise in many dimensions": lambda: (draw(3, 20_000), draw(200, 20_000, seed=1)),
    "clusters": lambda: ((q := draw(30, 128)), q.repeat(60, 1) + 0.02 * draw(1800, 128, seed=1)),
    "clusters that float32 can't tell apart": far_tight_clusters,
    "ties of rows that differ": lambda: (lattice(20, 6, 0), lattice(2000, 6, 1)),
    "all distances equal": lambda: (torch.zeros(3, 300), torch.eye(300)),
    "an offset": lambda: (draw(20, 64) + 3e4, draw(900, 64, seed=1) + 3e4),
    "one wild query": lambda: (draw(20, 64) * torch.tensor([1e7] + 19 * [1.0])[:, None], draw(900, 64, seed=1)),
    "one wild row": lambda: (draw(20, 64), draw(900, 64, seed=1) * torch.tensor([1e9] + 899 * [1.0])[:, None]),
    "equal rows among others": lambda: (draw(9, 32), torch.cat([draw(500, 32, seed=1), draw(9, 32).repeat(99, 1)])),
    "equal rows alone": lambda: (draw(9, 32), draw(1, 32, seed=1).repeat(3000, 1)),
}


@pytest.mark.parametrize("chunk_bytes", [200_000, 256 * 2**20])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_features_are(kind: str, chunk_bytes: int):
    queries, gallery = KINDS[kind]()
    for k in (1, 10, 40):
        check(queries, gallery, min(k, len(gallery)), chunk_bytes)


def test_one_row_at_a_time():
    check(features(7, 33, seed=1), features(300, 33, seed=2), 3, chunk_bytes=1)


@pytest.mark.parametrize(
    ("queries", "gallery", "least", "most"),
    [
        (*far_tight_clusters(), 4 * 400, 40 * 400),  # float32 can't tell a cluster's rows apart
        (*KINDS["noise"](), 40 * 10, 40 * 30),
        (features(100, 128, seed=1), features(5000, 128, seed=2), 100 * 10, 100 * 30),
        (torch.full((30, 64), 0.3), torch.full((20_000, 64), 0.3), 30 * 10, 30 * 100),  # a dead network: all pairs tie
    ],
)
def test_few_pairs_are_measured_exactly(
    monkeypatch: pytest.MonkeyPatch, queries: Tensor, gallery: Tensor, least: int, most: int
):
    """Measuring all of them would be the whole work of brute force."""
    calls = calls_of(monkeypatch, knn, "_measure")
    for chunk_bytes in (2_000_000, 256 * 2**20):
        calls.clear()
        check(queries, gallery, 10, chunk_bytes)
        assert least <= sum(len(pairs[0]) for _, _, pairs, *_ in calls) <= most


@pytest.mark.parametrize("chunk_bytes", [20_000, 256 * 2**20])
def test_duplicates_have_distance_zero_and_ties_go_to_the_lower_index(chunk_bytes: int):
    base = features(50, 40, seed=3)
    gallery = base.repeat(9, 1)  # each row nine times, 50 apart
    distances = check(base, gallery, 12, chunk_bytes)
    assert torch.equal(distances[:, :9], torch.zeros(50, 9))
    assert bool((distances[:, 9:] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_lesser_dtypes_are_computed_in_float32(dtype: torch.dtype):
    q, g = (features(5, 300, seed=1) * 20).to(dtype), (features(400, 300, seed=2) * 20).to(dtype)
    assert check(q, g, 4).dtype == torch.float32


def test_float64_stays_float64():
    """Two gallery rows that float32 can't tell apart."""
    q = torch.zeros(1, 3, dtype=torch.float64)
    g = torch.tensor([[1 + 1e-12, 0, 0], [1, 0, 0]], dtype=torch.float64)
    distances, indices = nearest_neighbours(q, g, 2)
    assert indices.tolist() == [[1, 0]]
    assert distances.dtype == torch.float64
    assert distances[0, 0] < distances[0, 1]


def test_autocast_does_not_coarsen():
    q, g = KINDS["clusters"]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = nearest_neighbours(q, g, 6)[1]
    assert torch.equal(indices, brute_force(q, g, 6)[1])


def test_a_gpu_that_multiplies_in_bfloat16_finds_the_same(monkeypatch: pytest.MonkeyPatch):
    """What ``set_float32_matmul_precision("medium")`` does there, done by hand, as a CPU may ignore it."""
    q, g = KINDS["clusters"]()
    real = torch.addmm

    def coarse(c: Tensor, a: Tensor, b: Tensor, **options: Any) -> Tensor:
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return real(c, a, b, **options)

    monkeypatch.setattr(torch, "addmm", coarse)
    assert not torch.equal(nearest_neighbours(q, g, 6)[1], brute_force(q, g, 6)[1]), "the emulation has no effect"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        indices = nearest_neighbours(q, g, 6)[1]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(indices, brute_force(q, g, 6)[1])


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:  # a view takes nothing
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_memory_is_bounded():
    q, g = features(400, 64, seed=1), features(6000, 64, seed=2)
    budget = 2**20  # all distances would take 9.6 MB, the gallery is 1.5 MB
    with Largest() as largest:
        indices = nearest_neighbours(q, g, 5, chunk_bytes=budget)[1]
    assert 0 < largest.bytes <= budget
    with Largest() as whole:
        assert torch.equal(nearest_neighbours(q, g, 5)[1], indices)
    assert whole.bytes > budget  # the measure would notice


def test_a_gallery_in_blocks_gives_what_the_whole_one_gives():
    q, g = features(20, 48, seed=1), features(1000, 48, seed=2).repeat(2, 1)
    found = nothing_found(q, 7)
    for block, numbers in zip(g.split(130), torch.arange(2000).split(130), strict=True):
        found = search_block(q, block, numbers, found)
    distances, indices = nearest_neighbours(q, g, 7)
    assert torch.equal(found[1], indices)
    assert torch.equal(found[0].sqrt().float(), distances)


def test_blocks_smaller_than_k():
    q = torch.zeros(1, 1)
    found = search_block(q, torch.tensor([[5.0], [4.0]]), torch.tensor([0, 1]), nothing_found(q, 3))
    assert found[1].tolist() == [[1, 0, -1]]
    assert found[0].tolist() == [[16, 25, float("inf")]]
    found = search_block(q, torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), found)
    found = search_block(q, torch.tensor([[1.0], [4.0]]), torch.tensor([4, 9]), found)
    assert found[1].tolist() == [[4, 1, 9]]


def test_two_shares_merge_to_the_whole():
    """As two processes do it: every other block each, and ties across the shares."""
    q, g = features(10, 30, seed=1), features(60, 30, seed=2).repeat(3, 1)
    shares = [nothing_found(q, 8), nothing_found(q, 8)]
    for number, (block, places) in enumerate(zip(g.split(7), torch.arange(180).split(7), strict=True)):
        shares[number % 2] = search_block(q, block, places, shares[number % 2])
    squared, indices = (torch.cat(parts, 1) for parts in zip(*reversed(shares), strict=True))
    squared, indices = merge_neighbours(squared, indices, 8)
    assert torch.equal(indices, brute_force(q, g, 8)[1])
    torch.testing.assert_close(squared.sqrt(), brute_force(q, g, 8)[0])


def test_arguments_stay_as_they_were_and_carry_no_gradient():
    q, g = features(6, 20, seed=1).requires_grad_(), features(90, 20, seed=2)
    before = q.detach().clone(), g.clone(), torch.get_rng_state()
    assert not nearest_neighbours(q, g, 3)[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip((q, g, torch.get_rng_state()), before, strict=True))


def test_no_queries():
    distances, indices = nearest_neighbours(torch.zeros(0, 4), torch.zeros(9, 4), 2)
    assert distances.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), 1, r"gallery: shape .*expected \(B, 3\) like the queries"),
        (torch.zeros(3), torch.zeros(4, 3), 1, "queries: shape"),
        (torch.zeros(2, 3), torch.zeros(3), 1, "gallery: shape"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "k: 0, expected 1 to 4"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "k: 5, expected 1 to 4"),
        (torch.tensor([[1.0, float("nan")]]), torch.zeros(4, 2), 1, "queries: values that are NaN"),
        (torch.zeros(1, 2), torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), 1, "gallery: values that are NaN"),
        (torch.zeros(1, 2), torch.tensor([[0.0, 1.0], [float("inf"), 0.0]]), 1, "gallery: values that are NaN"),
    ],
)
def test_bad_arguments(queries: Tensor, gallery: Tensor, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(queries, gallery, k)


def test_precision():
    neighbours = torch.tensor([[1, 1, 0, 2], [2, 0, 0, 0]])
    precision = retrieval_precision(neighbours, torch.tensor([1, 0]), [1, 2, 4])
    assert precision == {1: 0.5, 2: (1 + 0.5) / 2, 4: (0.5 + 0.75) / 2}
    for k in (0, 5):
        with pytest.raises(ValueError, match="ks: .*between 1 and 4"):
            retrieval_precision(neighbours, torch.tensor([1, 0]), [k])
    with pytest.raises(ValueError, match="query_targets"):
        retrieval_precision(neighbours, torch.tensor([1]), [1])
