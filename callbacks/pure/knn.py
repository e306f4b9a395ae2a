"""Exact nearest neighbours by Euclidean distance, in bounded memory: pure functions, no Lightning.

The paper's Figure 4 (right) asks for the training images whose fc7 features lie nearest to a test image's. For
10,000 queries, 50,000 training images and 4096 features all distances would take 2 GB and all differences 8 TB, so:

1. A matrix product gives ``|q - g|^2 = |q|^2 - 2 q.g + |g|^2`` for a block of the gallery at a time. It is fast, but
   for near points it is the small difference of large numbers, and float32 may order them wrongly.
2. So it is used only as a bound. Whatever could still be among the k nearest, given how far rounding may be off, is a
   candidate: a dozen or so for each query.
3. The candidates alone are measured exactly, by the differences themselves in float64.

The neighbours are thus those of float64 arithmetic, at the price of one float32 matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_GROUP = 32  # columns whose minimum is taken before anything is sorted: 3 times faster than topk over whole rows
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
        raise ValueError(f"gallery must be (G, D), got {tuple(gallery.shape)}")
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must be between 1 and the gallery's {len(gallery)} rows, got {k}")
    search = NeighbourSearch(queries, k, chunk_bytes)
    search.add(gallery, torch.arange(len(gallery), device=gallery.device))
    return search.distances, search.indices


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
            "neighbour_targets must be (Q, K) and query_targets (Q,) with Q > 0, got "
            f"{tuple(neighbour_targets.shape)} and {tuple(query_targets.shape)}"
        )
    found = neighbour_targets.shape[1]
    if any(not 1 <= k <= found for k in ks):
        raise ValueError(f"each k must be between 1 and the {found} neighbours given, got {list(ks)}")
    right = (neighbour_targets == query_targets[:, None]).double()
    return {k: right[:, :k].mean().item() for k in ks}


class NeighbourSearch:
    """The k nearest neighbours so far, of a gallery that comes in blocks and is not kept.

    Args:
        queries: ``(Q, D)``, as for :func:`nearest_neighbours`.
        k: How many neighbours to keep.
        chunk_bytes: About as much memory as ``add`` may use beside its arguments.

    Attributes:
        squared: ``(Q, k)`` float64 squared distances, ascending; ``inf`` where fewer than k rows were added.
        indices: ``(Q, k)`` int64 gallery indices; -1 where fewer than k rows were added.

    Raises:
        ValueError: If an argument is out of range, or a value is NaN, infinite or too large to be squared.
    """

    def __init__(self, queries: Tensor, k: int, chunk_bytes: int = 256 * 2**20) -> None:
        if queries.ndim != 2 or queries.shape[1] == 0:
            raise ValueError(f"queries must be (Q, D) with D > 0, got {tuple(queries.shape)}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes}")
        self.queries = queries.detach()
        self.k = k
        self.dtype = torch.float64 if queries.dtype == torch.float64 else torch.float32
        # Apple's GPUs have no float64.
        exact = torch.float32 if queries.device.type == "mps" else torch.float64
        self.squared = torch.full((len(queries), k), torch.inf, dtype=exact, device=queries.device)
        self.indices = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)

        # Where chunk_bytes go: half to a block of the gallery, a quarter to its products with a chunk of the queries,
        # an eighth to that chunk, the rest to candidates.
        item = torch.finfo(self.dtype).bits // 8
        rows, products = chunk_bytes // (queries.shape[1] * item), chunk_bytes // (4 * item)
        self._block = max(1, min(rows // 2, products // _GROUP))
        self._chunk = max(1, min(rows // 8, products // self._block))
        # Distances don't change when everything moves; rounding errors do. So the queries' mean becomes the origin.
        self._centre = self._mean_query()
        self._slack = _relative_error(queries.shape[1], self.dtype)
        self._products = torch.empty(0, dtype=self.dtype, device=queries.device)  # one buffer, used again and again
        self._seen = -1

    @property
    def distances(self) -> Tensor:
        """``(Q, k)`` Euclidean distances, ascending, in the dtype of the computation."""
        return self.squared.sqrt().to(self.dtype)

    @torch.no_grad()
    def add(self, block: Tensor, indices: Tensor) -> None:
        """Look for nearer neighbours in a block of the gallery.

        Args:
            block: ``(B, D)``, on the queries' device.
            indices: ``(B,)`` int64, the rows' indices in the gallery: ascending, and above all that were added before.

        Raises:
            ValueError: If the shapes don't fit, the indices don't ascend, or a value is NaN, infinite or too large.
        """
        if block.ndim != 2 or block.shape[1] != self.queries.shape[1] or indices.shape != block.shape[:1]:
            raise ValueError(
                f"the gallery must be (B, {self.queries.shape[1]}) like the queries, with (B,) indices, got "
                f"{tuple(block.shape)} and {tuple(indices.shape)}"
            )
        if not len(block):
            return
        if int(indices[0]) <= self._seen or bool((indices[1:] <= indices[:-1]).any()):
            raise ValueError(f"indices must ascend and be above {self._seen}, the last that was added")
        self._seen = int(indices[-1])
        for rows, numbers in zip(block.detach().split(self._block), indices.split(self._block), strict=True):
            centred = rows.to(self.dtype) - self._centre
            norms = _checked_norms(centred, "gallery")
            for start in range(0, len(self.queries), self._chunk):
                self._search(start, rows, centred, norms, numbers)

    def _search(self, start: int, rows: Tensor, centred: Tensor, norms: Tensor, numbers: Tensor) -> None:
        """Merge one block of the gallery into the neighbours of one chunk of the queries, which begins at ``start``."""
        chunk = slice(start, start + self._chunk)
        worst = self.squared[chunk, -1]  # a newcomer has to be nearer than this
        if not bool(worst.any()):
            return  # k equal images each, as from a dead network: nothing is nearer, and ties go to the first
        queries = self.queries[chunk].to(self.dtype) - self._centre
        query_norms = _checked_norms(queries, "queries")

        # A lower bound of every squared distance, less (1 - slack)|q|^2, which is the same along a row. With ``out=``
        # autocast leaves it alone; bfloat16 products would void the bound.
        buffer = self._product_buffer(len(queries), len(rows))
        lower = torch.addmm(norms * (1 - self._slack), queries, centred.T, alpha=-2, out=buffer)

        # The k-th smallest minimum of groups of columns has at least k lower bounds below it. How far may the distances
        # d of those k exceed it? d^2 <= bound + 2 slack (|q|^2 + |g|^2), and |g|^2 <= 2 |q|^2 + 2 d^2.
        group = max(1, min(_GROUP, len(rows) // (8 * self.k)))
        spread = len(rows) // group  # column j belongs to group j % spread: such a minimum runs along memory
        minima = lower[:, : group * spread].unflatten(1, (group, spread)).amin(1)
        own = query_norms * (1 - self._slack)
        limit = torch.where(worst > 0, worst, -torch.inf).to(self.dtype) - own

        def lowered(bound: Tensor) -> Tensor:
            exceeded = (bound + own + 6 * self._slack * query_norms) / (1 - 4 * self._slack)
            return torch.minimum(limit, exceeded - own)

        if spread >= self.k and self._slack < 0.1:
            limit = lowered(minima.topk(self.k, dim=1, largest=False, sorted=False).values.amax(1))

        hits, groups = (minima <= limit[:, None]).nonzero(as_tuple=True)
        if len(hits) > 4 * self.k * len(queries) and len(rows) > 2 * self.k and bool(worst.isinf().any()):
            # Too many ties to measure them all: let the first half set a mark for the second.
            half = len(rows) // 2
            self._search(start, rows[:half], centred[:half], norms[:half], numbers[:half])
            self._search(start, rows[half:], centred[half:], norms[half:], numbers[half:])
            return
        columns = groups[:, None] + spread * torch.arange(group, device=groups.device)
        near = lower[hits[:, None], columns] <= limit[hits, None]
        row, column = hits[:, None].expand_as(near)[near], columns[near]
        if group * spread < len(rows):  # the few columns that no group holds
            rest_row, rest_column = (lower[:, group * spread :] <= limit[:, None]).nonzero(as_tuple=True)
            row, column = torch.cat([row, rest_row]), torch.cat([column, rest_column + group * spread])
        bounds = lower[row, column]
        if self._slack < 0.1:  # the same bound again, from the k nearest candidates themselves: it leaves half of them
            limit = lowered(_kth_smallest(bounds, row, len(queries), self.k))
            near = bounds <= limit[row]
            row, column = row[near], column[near]
        if len(row):
            self._measure(row + start, rows, column, numbers)

    def _measure(self, row: Tensor, rows: Tensor, column: Tensor, numbers: Tensor) -> None:
        """Measure pairs (query, row of the block) exactly and keep each query's k nearest."""
        step = min(len(row), max(1, _PAIR_BYTES // (rows.shape[1] * self.squared.element_size())))
        # The same buffers for all pieces: glibc would cut a heap of hundreds of megabytes out of a new one for each.
        near, far = (torch.empty(step, rows.shape[1], dtype=t.dtype, device=t.device) for t in (self.queries, rows))
        difference = torch.empty_like(near, dtype=self.squared.dtype)
        squared = torch.empty(len(row), dtype=self.squared.dtype, device=row.device)
        for r, c, found in zip(row.split(step), column.split(step), squared.split(step), strict=True):
            torch.index_select(self.queries, 0, r, out=near[: len(r)])
            torch.index_select(rows, 0, c, out=far[: len(r)])
            difference[: len(r)].copy_(near[: len(r)]).sub_(far[: len(r)])
            torch.sum(difference[: len(r)].square_(), 1, out=found)
        # Pairs are few and uneven, so they are sorted as one list with the neighbours so far: by index, then by
        # distance, then by query; stable sorts keep the earlier orders.
        changed, place = row.unique(return_inverse=True)
        owner = torch.cat([torch.arange(len(changed), device=row.device).repeat_interleave(self.k), place])
        squared = torch.cat([self.squared[changed].flatten(), squared])
        index = torch.cat([self.indices[changed].flatten(), numbers[column]])
        order = index.argsort(stable=True)
        order = order[squared[order].argsort(stable=True)]
        order = order[owner[order].argsort(stable=True)]
        counts = owner.bincount()
        best = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(self.k, device=row.device)]
        self.squared[changed], self.indices[changed] = squared[best], index[best]

    def _mean_query(self) -> Tensor:
        """``(D,)`` mean of the queries, summed chunk by chunk in float64."""
        total = torch.zeros(self.queries.shape[1], dtype=self.squared.dtype, device=self.queries.device)
        for chunk in self.queries.split(self._chunk):
            total += chunk.sum(0, dtype=total.dtype)
        mean = total / max(1, len(self.queries))
        if not bool(mean.isfinite().all()):
            raise ValueError("queries hold NaN or infinite values")
        return mean.to(self.dtype)

    def _product_buffer(self, height: int, width: int) -> Tensor:
        if self._products.numel() < height * width:
            self._products = self._products.new_empty(height * width)
        return self._products[: height * width].view(height, width)


def _checked_norms(rows: Tensor, name: str) -> Tensor:
    """``(N,)`` squared lengths of the rows, finite or else ValueError."""
    norms = torch.linalg.vector_norm(rows, dim=1).square_()
    if not bool(norms.isfinite().all()):
        raise ValueError(f"{name} hold values that are NaN, infinite or too large to be squared")
    return norms


def _kth_smallest(values: Tensor, row: Tensor, rows: int, k: int) -> Tensor:
    """``(rows,)``: the k-th smallest of the values that belong to each row by ``row``; ``inf`` where they are fewer."""
    order = values.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    counts = row.bincount(minlength=rows)
    enough = counts >= k
    kth = torch.full((rows,), torch.inf, dtype=values.dtype, device=values.device)
    kth[enough] = values[order[(counts.cumsum(0) - counts)[enough] + k - 1]]
    return kth


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
