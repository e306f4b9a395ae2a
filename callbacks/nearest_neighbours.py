"""NearestNeighbours: which training images the network finds similar to an unseen one, the paper's Figure 4 (right).

Two images are as similar as their fc7 features are near. The callback embeds training images (the gallery) and the
validation or test images (the queries), draws some queries with their neighbours, and logs how often neighbours
share the query's class: a measure of the features that no classifier is needed for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from callbacks import base
from callbacks.base import EveryNEpochs, LookedAtModel, Stage
from callbacks.pure.choosing import evenly_spaced, spread_queries
from callbacks.pure.knn import merge_neighbours, nothing_found, retrieval_precision, search_block
from callbacks.pure.retrieval_panel import retrieval_panel

_ROWS_AT_A_TIME = 2048  # gallery features that are gathered before the search takes them: large products are fast


class Retrieved(NamedTuple):
    """The neighbours of all queries."""

    distances: Tensor  # (Q, k) float32, ascending
    indices: Tensor  # (Q, k) int64 places in the gallery
    query_targets: Tensor  # (Q,) int64
    neighbour_targets: Tensor  # (Q, k) int64


def retrieve(
    trainer: Trainer,
    module: LookedAtModel,
    gallery: Any,
    gallery_places: Sequence[int],
    queries: Any,
    query_places: Sequence[int],
    k: int,
) -> Retrieved | None:
    """Find the gallery images nearest to each query. To be called in every process, inside ``looking``.

    Each process embeds every world-size-th batch of the gallery and keeps only the k nearest so far; then all agree on
    the nearest of all. Every process embeds all queries: it needs them, and they are few.

    Args:
        trainer: Moves batches to the device and gathers from all processes.
        module: Makes features of images.
        gallery: A loader as :class:`~callbacks.base.LookedAtData` has it.
        gallery_places: Which of its images are searched, at least k; the same in every process.
        queries: A loader, likewise.
        query_places: Which of its images are looked up, at least one.
        k: Neighbours for each query.

    Returns:
        The same in every process, and as one process alone would find it. None where a feature is NaN or infinite.
    """
    embedded = [_embed(trainer, module, queries, places) for places in _batches(queries, query_places)]
    features, query_targets = (torch.cat(parts) for parts in zip(*embedded, strict=True))
    finite = bool(features.isfinite().all())
    found = nothing_found(features, k)

    gallery_targets = torch.zeros(len(gallery.dataset), dtype=torch.int64, device=features.device)
    waiting_rows: list[Tensor] = []
    waiting_places: list[Tensor] = []

    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    mine = _batches(gallery, gallery_places)[trainer.global_rank :: trainer.world_size]
    for places in tqdm(mine, desc="embedding the gallery", disable=None if shown else True, leave=False):
        rows, targets = _embed(trainer, module, gallery, places)
        finite = finite and bool(rows.isfinite().all())
        if not finite:
            break
        waiting_rows.append(rows)
        waiting_places.append(places.to(rows.device))
        gallery_targets[waiting_places[-1]] = targets
        if sum(map(len, waiting_rows)) >= _ROWS_AT_A_TIME:
            found = search_block(features, torch.cat(waiting_rows), torch.cat(waiting_places), found)
            waiting_rows, waiting_places = [], []
    if not trainer.strategy.reduce_boolean_decision(finite, all=True):
        return None
    if waiting_rows:
        found = search_block(features, torch.cat(waiting_rows), torch.cat(waiting_places), found)

    squared, indices = (base.gather_rows(trainer, part, 1) for part in found)
    squared, indices = merge_neighbours(squared, indices, k)
    # Each target came from one process; the others have 0 there.
    targets = cast(Tensor, trainer.strategy.reduce(gallery_targets, reduce_op="sum")).cpu()
    return Retrieved(squared.sqrt().float(), indices, query_targets.cpu(), targets[indices])


def _batches(loader: Any, places: Sequence[int]) -> Sequence[Tensor]:
    """Places of a loader's images, int64 ``(B,)`` each."""
    return torch.tensor(places).split(loader.batch_size)


def _embed(trainer: Trainer, module: LookedAtModel, loader: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(B, D)`` float32 and targets ``(B,)`` of a loader's images at these places."""
    images, targets = base.fetch(trainer, loader, places.tolist())
    return base.forward(trainer, module.embed, images).flatten(1), targets


class NearestNeighbours(EveryNEpochs):
    """Show the training images nearest to some queries, and log retrieval precision, at the end of fit and of test.

    In ``fit`` the queries are the validation images, in ``test`` the test images. The image goes to every
    logger as ``retrieval/val`` or ``retrieval/test`` and to ``retrieval/val_epoch_010.png`` in the run's folder, where
    10 is the number of epochs that the network was trained for. ``val/retrieval_p5`` is the mean fraction of the 5
    nearest training images that are of the query's class, over the queries. It grows with the gallery.

    Args:
        every_n_epochs: 0 looks at the end of fit only; 5 also after every fifth epoch. Each time embeds the gallery and
            the queries.
        after_fit: False leaves out the look at the end of fit, where a test of the best checkpoint follows anyway.
        max_gallery: Training images that are searched, spread evenly over all, so as to take little of a short run's
            time. Fewer images are all searched.
        max_queries: Images that are looked up, spread evenly over the validation or test images: 300 tell a precision
            to 3 points. Fewer images are all looked up.
        num_queries: Rows of the image, of classes spread over all. The same in the whole run.
        k: Neighbours in a row, 6 in the paper. A gallery that is smaller shows what it has.
        precision_at: For which numbers of neighbours precision is logged. A gallery that is smaller counts what it has.
        enabled: False switches the callback off.

    Attributes:
        precision: The newest value of each metric, such as ``{"val/retrieval_p1": 0.31}``, in ``[0, 1]``.

    Source:
        Krizhevsky et al. 2012, section 6.1 and Figure 4, right.
    """

    at_start = False
    at_test = True
    of_datamodule = ("gallery_dataloader", "query_dataloader", "to_rgb", "class_names")
    of_model = ("embed",)

    def __init__(
        self,
        every_n_epochs: int = 0,
        after_fit: bool = True,
        max_gallery: int = 5000,
        max_queries: int = 300,
        num_queries: int = 5,
        k: int = 6,
        precision_at: Sequence[int] = (1, 5, 10),
        enabled: bool = True,
    ) -> None:
        super().__init__(every_n_epochs, enabled)
        base.check_at_least(1, max_gallery=max_gallery, max_queries=max_queries, num_queries=num_queries, k=k)
        base.check_at_least(1, precision_at=min(precision_at, default=1))
        self.at_end = after_fit
        self.max_gallery = max_gallery
        self.max_queries = max_queries
        self.num_queries = num_queries
        self.k = k
        self.precision_at = tuple(precision_at)
        self.precision: dict[str, float] = {}

    def look(self, trainer: Trainer, pl_module: LightningModule, epochs: int, stage: Stage) -> None:
        datamodule = base.datamodule_of(trainer)
        gallery, queries = datamodule.gallery_dataloader(), datamodule.query_dataloader(stage)
        gallery_places = evenly_spaced(len(gallery.dataset), self.max_gallery)
        places = evenly_spaced(len(queries.dataset), self.max_queries)
        if not gallery_places or not places:
            self.warn(f"no {stage} or no training images, so there is nothing to retrieve.")
            return
        with base.looking(pl_module):
            k = min(max([self.k, *self.precision_at]), len(gallery_places))
            found = retrieve(trainer, base.model_of(pl_module), gallery, gallery_places, queries, places, k)
            if found is None:
                self.warn(f"features are NaN or infinite after epoch {epochs}: nothing shown.")
                return
            title = f"{stage} images after epoch {epochs}, among {len(gallery_places):,} training images"
            image = self._panel(trainer, gallery, queries, places, found, title)
        # Asked for 10 neighbours in a gallery of 7, it is the precision of the 7.
        values = retrieval_precision(found.neighbour_targets, found.query_targets, range(1, k + 1))
        precision = {f"{stage}/retrieval_p{n}": values[min(n, k)] for n in self.precision_at}
        self.precision.update(precision)
        base.write_scalars(trainer, precision)
        self.draw(trainer, "retrieval", stage, epochs, image)

    def _panel(
        self, trainer: Trainer, gallery: Any, queries: Any, places: list[int], found: Retrieved, title: str
    ) -> Tensor:
        query_targets = found.query_targets.tolist()
        rows = spread_queries(query_targets, self.num_queries)
        indices = found.indices[rows, : self.k]

        def images(loader: Any, places: list[int]) -> Tensor:
            inputs, _ = trainer.strategy.batch_to_device(loader.dataset.fetch(places))
            return base.rgb_of(trainer, inputs).cpu()

        return retrieval_panel(
            images(queries, [places[row] for row in rows]),
            images(gallery, indices.flatten().tolist()).unflatten(0, indices.shape),
            [query_targets[row] for row in rows],
            found.neighbour_targets[rows, : self.k].tolist(),
            found.distances[rows, : self.k].tolist(),
            base.datamodule_of(trainer).class_names,
            title,
        )
