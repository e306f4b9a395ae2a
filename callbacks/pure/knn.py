"""Exact nearest neighbours by Euclidean distance, in bounded memory: pure functions, no Lightning.

The paper's Figure 4 (right) asks for the training images whose fc7 features lie nearest to a test image's. For
10,000 queries, 50,000 training images and 4096 features all distances would take 2 GB and all differences 8 TB, so:

1. A matrix product gives ``|q - g|^2 = |q|^2 - 2 q.g + |g|^2`` for a block of the gallery at a time. It is fast, but
   for near points it is the small difference of large numbers, and float32 may order them wrongly.
2. So it is used only as a lower bound: less all that rounding may have added. The k rows that come first by it, and a
   margin, are candidates, and these are measured exactly, by the differences themselves in float64.
3. If the last candidate's bound is above the k-th exact distance, no other row can be nearer: that is a proof. If not,
   more rows than the margin look alike in float32, and each half of the block is searched by itself.

The neighbours are thus those of float64 arithmetic, at the price of one float32 matrix product. Where the way fails, it
fails in time alone: rows that float32 can't tell apart, as in clusters that are small beside their distance from each
other, are all measured exactly. So are more of them where torch multiplies in TF32 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MARGIN = 64  # candidates beside the k nearest: with 16, clusters have many more blocks to halve
_PAIR_BYTES = 2**21  # pairs measured at a time: larger buffers leave the cache, smaller ones cost more calls


def nearest_neighbours(
    queries: Tensor, gallery: Tensor, k: int, chunk_bytes: int = 256 * 2**20
) -> tuple[Tensor, Tensor]:
    """Find the k gallery rows nearest to each query, by Euclidean distance.

    Args:
        queries: ``(Q, D)``. float16, bfloat16 and integers are computed as float32; float64 as float64.
        gallery: ``(G, D)``, on the same device.
        k: How many, 1 to G.
        chunk_bytes: About as much memory as may be used beside the arguments and the result.

    Returns:
        distances: ``(Q, k)`` float32 (float64 for float64 input), ascending; exactly 0 for equal rows.
        indices: ``(Q, k)`` int64, rows of ``gallery``. Of equal distances the lower index comes first.

    Raises:
        ValueError: If the shapes don't fit, ``k`` is not in 1..G, or a value is NaN, infinite or too large to square.

    Source:
        Krizhevsky et al. 2012, section 6.1.
    """
    if gallery.ndim != 2:
        raise ValueError(f"gallery: shape {tuple(gallery.shape)}, expected (G, D). Flatten its rows.")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k: {k}, expected 1 to {len(gallery)}, the gallery's rows. Choose one of these.")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: {chunk_bytes}, expected at least 1. Leave it out.")
    squared, indices = nothing_found(queries, k)
    dtype, width = _working_dtype(queries), queries.shape[1]
    rows = max(1, min(len(gallery), chunk_bytes // (2 * width * dtype.itemsize)))  # half is for the block's copy,
    at_once = max(1, chunk_bytes // (4 * max(rows, 2 * width) * dtype.itemsize))  # a quarter for the products
    places = torch.arange(len(gallery), device=gallery.device).split(rows)
    for start in range(0, len(queries), at_once):
        chunk = slice(start, start + at_once)
        for block, numbers in zip(gallery.split(rows), places, strict=True):
            squared[chunk], indices[chunk] = search_block(
                queries[chunk], block, numbers, (squared[chunk], indices[chunk])
            )
    return squared.sqrt().to(dtype), indices


def nothing_found(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What :func:`search_block` starts from: ``(Q, k)`` squared distances, all ``inf``, and indices, all -1."""
    if queries.ndim != 2 or queries.shape[1] == 0:
        raise ValueError(f"queries: shape {tuple(queries.shape)}, expected (Q, D) with D > 0. Flatten its rows.")
    exact = torch.float32 if queries.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    squared = torch.full((len(queries), k), torch.inf, dtype=exact, device=queries.device)
    return squared, torch.full_like(squared, -1, dtype=torch.int64)


@torch.no_grad()
def search_block(
    queries: Tensor, block: Tensor, indices: Tensor, found: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Look for nearer neighbours in one block of a gallery that comes block by block and is not kept.

    Args:
        queries: ``(Q, D)``, as for :func:`nearest_neighbours`.
        block: ``(B, D)``, likewise.
        indices: ``(B,)`` int64, the rows' indices in the gallery: ascending, and above those of earlier blocks.
        found: Squared distances ``(Q, k)`` and indices ``(Q, k)`` of the nearest in earlier blocks, as this function
            or :func:`nothing_found` returned them.

    Returns:
        The same of all blocks so far: float64, ascending, and int64; ``inf`` and -1 where they had fewer than k rows.
        Of equal distances the lower index comes first.

    Raises:
        ValueError: If the shapes don't fit, or a value is NaN, infinite or too large to square.
    """
    if block.ndim != 2 or block.shape[1] != queries.shape[1] or indices.shape != block.shape[:1]:
        raise ValueError(
            f"gallery: shape {tuple(block.shape)} with indices {tuple(indices.shape)}, expected (B, "
            f"{queries.shape[1]}) like the queries, with (B,). Embed both with the same network."
        )
    worst, k = found[0][:, -1], found[0].shape[1]
    if not len(block) or not bool(worst.any()):
        return found  # no rows; or k equal ones for each query, as from a dead network, and ties go to the first
    lower, own = _lower_bounds(queries, block)
    bounds, column = lower.topk(min(k + max(k, _MARGIN), len(block)), largest=False)  # ascending
    del lower
    bounds = bounds.to(worst.dtype).add_(own[:, None])
    squared = torch.full_like(bounds, torch.inf)

    def measure(candidates: Tensor) -> None:
        row, place = candidates.nonzero(as_tuple=True)
        if len(row):
            squared[row, place] = _squared_distances(queries, block, row, column[row, place])

    first = torch.arange(bounds.shape[1], device=bounds.device) < k
    limit = worst.where(worst > 0, -torch.inf)[:, None]  # what is farther is none of the k nearest
    measure(first & (bounds <= limit))
    if len(block) >= k:
        limit = limit.minimum(squared[:, :k].amax(1, keepdim=True))
    crowded = bounds[:, -1:] <= limit if bounds.shape[1] < len(block) else torch.zeros_like(limit, dtype=torch.bool)
    measure(~first & (bounds <= limit) & ~crowded)
    nearest = merge_neighbours(torch.cat([found[0], squared], 1), torch.cat([found[1], indices[column]], 1), k)
    if bool(crowded.any()):
        crowd = crowded[:, 0]
        halves = (found[0][crowd], found[1][crowd])
        for rows, numbers in zip(block.tensor_split(2), indices.tensor_split(2), strict=True):
            halves = search_block(queries[crowd], rows, numbers, halves)
        nearest[0][crowd], nearest[1][crowd] = halves
    return nearest


def merge_neighbours(squared: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Reduce several lists of neighbours of the same queries, put side by side, to the k nearest.

    Args:
        squared: ``(Q, M)`` squared distances in any order; ``inf`` where there is no neighbour.
        indices: ``(Q, M)`` int64 gallery indices that belong to them.
        k: How many to keep, at most M.

    Returns:
        ``(Q, k)`` squared distances, ascending, and ``(Q, k)`` indices; of equal distances the lower index comes first.
    """
    order = indices.argsort(dim=1, stable=True)  # two stable sorts, the less important key first
    order = order.gather(1, squared.gather(1, order).argsort(dim=1, stable=True))[:, :k]
    return squared.gather(1, order), indices.gather(1, order)


def retrieval_precision(neighbour_targets: Tensor, query_targets: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Mean fraction of each query's first k neighbours that are of its class.

    Args:
        neighbour_targets: ``(Q, K)`` int64 classes, nearest first.
        query_targets: ``(Q,)`` int64 classes.
        ks: The k to report, each 1 to K.

    Returns:
        k -> precision in ``[0, 1]``.

    Raises:
        ValueError: If the shapes don't fit, there is no query, or a k is not in 1..K.
    """
    if neighbour_targets.ndim != 2 or query_targets.shape != neighbour_targets.shape[:1] or not len(query_targets):
        raise ValueError(
            f"neighbour_targets, query_targets: shapes {tuple(neighbour_targets.shape)} and "
            f"{tuple(query_targets.shape)}, expected (Q, K) and (Q,) with Q > 0. Give one class for each."
        )
    found = neighbour_targets.shape[1]
    if any(not 1 <= k <= found for k in ks):
        raise ValueError(
            f"ks: {list(ks)}, expected each between 1 and {found}, the neighbours given. Leave out the others."
        )
    right = (neighbour_targets == query_targets[:, None]).double()
    return {k: right[:, :k].mean().item() for k in ks}


def _working_dtype(queries: Tensor) -> torch.dtype:
    return torch.float64 if queries.dtype == torch.float64 else torch.float32


def _lower_bounds(queries: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """``(Q, B)`` and ``(Q,)`` whose sum is at most the squared distance of each query from each row."""
    dtype = _working_dtype(queries)
    # Distances don't change when everything moves; rounding errors do. So the block's mean becomes the origin.
    centre = block.to(dtype).mean(0)
    rows, queries = block.to(dtype) - centre, queries.to(dtype) - centre
    norms = [torch.linalg.vector_norm(centred, dim=1).square_() for centred in (rows, queries)]
    for name, values in zip(("gallery", "queries"), norms, strict=True):
        if not bool(values.isfinite().all()):
            wrong = "values that are NaN, infinite or too large to square"
            raise ValueError(f"{name}: {wrong}, expected finite ones. Look for what made the network diverge.")
    row_part, query_part = (values * (1 - _relative_error(rows.shape[1], dtype)) for values in norms)
    # Autocast leaves what is written to ``out`` alone; products in bfloat16 would void the bound.
    products = torch.empty(len(queries), len(rows), dtype=dtype, device=rows.device)
    return torch.addmm(row_part, queries, rows.T, alpha=-2, out=products), query_part


def _relative_error(width: int, dtype: torch.dtype) -> float:
    """Bound on the error of ``|q|^2 - 2 q.g + |g|^2``, relative to ``|q|^2 + |g|^2``.

    A dot product of n terms is off by at most about ``n u |q||g|`` whatever the order of summation, with u half the
    spacing of floats at 1 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). That goes for the
    product, twice, and for the norms; 16 covers the few other roundings.
    """
    factors = 0.0  # relative error of a factor before it is multiplied
    if dtype == torch.float32:
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # torch won't say when its older and newer settings are mixed
            precision = "medium"
        factors = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[precision]  # float32, TF32, bfloat16
    return 3 * (width + 16) * torch.finfo(dtype).eps / 2 + 3 * factors


def _squared_distances(queries: Tensor, rows: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """``(N,)`` float64: how far, squared, the query of each pair ``(row, column)`` is from its gallery row."""
    exact = nothing_found(queries, 1)[0].dtype
    queries = queries.to(exact)
    step = min(len(row), max(1, _PAIR_BYTES // (rows.shape[1] * exact.itemsize)))
    # The same buffers for all pieces: glibc would cut a heap of hundreds of megabytes out of a new one for each.
    far, difference = (queries.new_empty(step, rows.shape[1], dtype=dtype) for dtype in (rows.dtype, exact))
    squared = queries.new_empty(len(row))
    for r, c, out in zip(row.split(step), column.split(step), squared.split(step), strict=True):
        torch.index_select(rows, 0, c, out=far[: len(r)])
        torch.index_select(queries, 0, r, out=difference[: len(r)]).sub_(far[: len(r)])
        torch.sum(difference[: len(r)].square_(), 1, out=out)
    return squared
