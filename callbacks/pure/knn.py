"""Exact nearest neighbours by Euclidean distance, in bounded memory: the paper's Figure 4 (right). Pure functions.

A float32 matrix product gives ``|g|^2 - 2 q.g`` for a block of the gallery at a time, whose smallest values are the
candidates; these are measured by the differences themselves in float64. Where rounding leaves it open whether another
row is nearer, all rows of the block are measured: right as well, but slow. That happens where more rows than ``MARGIN``
lie in clusters finer than float32 can tell apart at their distance from the block's mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MARGIN = 16  # candidates beside the k nearest, and at least as many as these
PAIR_BYTES = 2**21  # pairs measured at a time: larger buffers leave the cache, smaller ones cost more calls

Found = tuple[Tensor, Tensor]  # squared distances (Q, k) float64, ascending, inf for none; indices (Q, k) int64


def nearest_neighbours(queries: Tensor, gallery: Tensor, k: int, chunk_bytes: int = 2**28) -> Found:
    """Find the k gallery rows nearest to each query.

    Args:
        queries: ``(Q, D)``. float16, bfloat16 and integers are computed as float32; float64 as float64.
        gallery: ``(G, D)``, on the same device.
        k: How many, 1 to G.
        chunk_bytes: About as much memory as may be used beside the arguments and the result.

    Returns:
        Distances ``(Q, k)`` float32 (float64 for float64 input), ascending; exactly 0 for equal rows. And indices
        ``(Q, k)`` int64, rows of ``gallery``; of equal distances the lower index comes first.
        A ValueError where shapes don't fit, or a value is NaN, infinite or too large to square.
    """
    if gallery.ndim != 2:
        raise ValueError(f"gallery: shape {tuple(gallery.shape)}, expected (G, D). Flatten its rows.")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k: {k}, expected 1 to {len(gallery)}, the gallery's rows. Choose one of these.")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: {chunk_bytes}, expected at least 1. Leave it out.")
    squared, indices = nothing_found(queries, k)
    dtype, width = _of_products(queries), queries.shape[1]
    rows = max(1, min(len(gallery), chunk_bytes // (2 * width * dtype.itemsize)))  # half is for the block's copy,
    at_once = max(1, chunk_bytes // (4 * max(rows, 2 * width) * dtype.itemsize))  # a quarter for the products
    for start in range(0, len(queries), at_once):
        chunk = slice(start, start + at_once)
        for first in range(0, len(gallery), rows):
            block = gallery[first : first + rows]
            numbers = torch.arange(first, first + len(block), device=gallery.device)
            found = squared[chunk], indices[chunk]
            squared[chunk], indices[chunk] = search_block(queries[chunk], block, numbers, found)
    return squared.sqrt().to(queries.dtype if queries.dtype == torch.float64 else torch.float32), indices


def nothing_found(queries: Tensor, k: int) -> Found:
    """What :func:`search_block` starts from: ``(Q, k)`` squared distances, all ``inf``, and indices, all -1."""
    if queries.ndim != 2 or queries.shape[1] == 0:
        raise ValueError(f"queries: shape {tuple(queries.shape)}, expected (Q, D) with D > 0. Flatten its rows.")
    squared = torch.full((len(queries), k), torch.inf, dtype=_exact(queries), device=queries.device)
    return squared, torch.full_like(squared, -1, dtype=torch.int64)


@torch.no_grad()
def search_block(queries: Tensor, block: Tensor, indices: Tensor, found: Found) -> Found:
    """Look for nearer neighbours in one block of a gallery that comes block by block and is not kept.

    Args:
        queries: ``(Q, D)``, as for :func:`nearest_neighbours`.
        block: ``(B, D)``, likewise.
        indices: ``(B,)`` int64, the rows' indices in the gallery: ascending, and above those of earlier blocks.
        found: The nearest in earlier blocks, as this function or :func:`nothing_found` returned them.

    Returns:
        The nearest of all blocks so far; errors are :func:`nearest_neighbours`'s.
    """
    if block.ndim != 2 or block.shape[1] != queries.shape[1] or indices.shape != block.shape[:1]:
        raise ValueError(
            f"gallery: shape {tuple(block.shape)} with indices {tuple(indices.shape)}, expected (B, "
            f"{queries.shape[1]}) like the queries, with (B,). Embed both with the same network."
        )
    worst, k = found[0][:, -1:], found[0].shape[1]
    if not len(block) or not bool(worst.any()):
        return found  # no rows; or k equal ones for each query, and ties go to the first
    if bool((block == block[0]).all()):
        block, indices = block[:k], indices[:k]  # a dead network's, too
    count = min(k + max(k, MARGIN), len(block))
    lower, column = _lower_bounds(queries, block, count)
    limit = worst.where(worst > 0, -torch.inf)  # what is farther is none of the k nearest
    squared = torch.full_like(lower, torch.inf)
    first = torch.arange(count, device=lower.device) < k
    _measure(queries, block, (first & (lower <= limit)).nonzero(as_tuple=True), column, squared)
    if count > k:  # the others as far as they can be nearer than these
        limit = limit.minimum(squared[:, :k].amax(1, keepdim=True))
        _measure(queries, block, (~first & (lower <= limit)).nonzero(as_tuple=True), column, squared)
    if count < len(block):
        for row in (lower[:, -1:] <= limit).nonzero()[:, 0]:  # others may be as near as the k-th
            whole = squared.new_empty(1, len(block))
            every = torch.arange(len(block), device=block.device)
            _measure(queries[row : row + 1], block, (every * 0, every), every[None], whole)
            column[row] = whole[0].argsort(stable=True)[:count]
            squared[row] = whole[0, column[row]]
    return merge_neighbours(torch.cat([found[0], squared], 1), torch.cat([found[1], indices[column]], 1), k)


def merge_neighbours(squared: Tensor, indices: Tensor, k: int) -> Found:
    """Reduce lists of neighbours of the same queries, put side by side in any order, ``(Q, M)``, to the k nearest."""
    order = indices.argsort(dim=1, stable=True)  # two stable sorts, the less important key first
    order = order.gather(1, squared.gather(1, order).argsort(dim=1, stable=True))[:, :k]
    return squared.gather(1, order), indices.gather(1, order)


def retrieval_precision(neighbour_targets: Tensor, query_targets: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Mean fraction, in ``[0, 1]``, of each query's first k neighbours that are of its class, for each of ``ks``.

    Args:
        neighbour_targets: ``(Q, K)`` int64 classes, nearest first.
        query_targets: ``(Q,)`` int64 classes, at least one.
        ks: Each 1 to K.
    """
    if neighbour_targets.ndim != 2 or query_targets.shape != neighbour_targets.shape[:1] or not len(query_targets):
        raise ValueError(
            f"neighbour_targets, query_targets: shapes {tuple(neighbour_targets.shape)} and "
            f"{tuple(query_targets.shape)}, expected (Q, K) and (Q,) with Q > 0. Give one class for each."
        )
    given = neighbour_targets.shape[1]
    if any(not 1 <= k <= given for k in ks):
        raise ValueError(f"ks: {list(ks)}, expected each between 1 and {given}, the neighbours. Leave out the others.")
    right = (neighbour_targets == query_targets[:, None]).double()
    return {k: right[:, :k].mean().item() for k in ks}


def _exact(queries: Tensor) -> torch.dtype:
    return torch.float32 if queries.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _of_products(queries: Tensor) -> torch.dtype:
    """float32, unless the input is finer, or torch is told to multiply float32 in TF32 or bfloat16."""
    try:
        coarse = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch won't say when its older and newer settings are mixed
        coarse = True
    return _exact(queries) if coarse or queries.dtype == torch.float64 else torch.float32


def _lower_bounds(queries: Tensor, block: Tensor, count: int) -> Found:
    """The ``count`` rows that may be nearest to each query: bounds below their squared distances, ascending; places.

    A dot product of n terms is off by at most about ``n u |q||g|``, with u half the spacing of floats at 1 (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1): twice for the product, and once for the norms.
    """
    dtype = _of_products(queries)
    # Distances don't change when everything moves; rounding errors do. So the block's mean becomes the origin.
    centre = block.to(dtype).mean(0)
    rows, queries = block.to(dtype) - centre, queries.to(dtype) - centre
    lengths = [torch.linalg.vector_norm(centred, dim=1).square_() for centred in (rows, queries)]
    for name, values in zip(("gallery", "queries"), lengths, strict=True):
        if not bool(values.isfinite().all()):
            wrong = "values that are NaN, infinite or too large to square"
            raise ValueError(f"{name}: {wrong}, expected finite ones. Look for what made the network diverge.")
    row_part, query_part = (n * (1 - 3 * (rows.shape[1] + 16) * torch.finfo(dtype).eps / 2) for n in lengths)
    products = torch.empty(len(queries), len(rows), dtype=dtype, device=rows.device)  # autocast leaves ``out`` alone
    torch.addmm(row_part, queries, rows.T, alpha=-2, out=products)
    bounds, places = products.topk(count, largest=False)
    return bounds.to(_exact(queries)) + query_part.to(_exact(queries))[:, None], places


def _measure(queries: Tensor, block: Tensor, pairs: tuple[Tensor, ...], column: Tensor, out: Tensor) -> None:
    """Put squared distances into ``out`` ``(Q, M)`` at ``pairs``: of query ``i`` from the row ``column[i, j]``."""
    step = max(1, PAIR_BYTES // (block.shape[1] * out.dtype.itemsize))
    for i, j in zip(*(places.split(step) for places in pairs), strict=True):
        difference = queries[i].to(out.dtype).sub_(block[column[i, j]])
        out[i, j] = difference.square_().sum(1)
