"""What a network says of pictures, as a table: predict.py's, and that of ``fit.py predict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from running.outputs import csv_text

SHOWN_LABELS = 5
# Rank from 1; of a label its probability, of a neighbour its distance, its class and its place in the training split.
COLUMNS = ("picture", "what", "rank", "class", "value", "index")
Row = tuple[str, str, int, str, float, int | None]


def rows_of(names: Sequence[str], probabilities: Tensor, classes: Sequence[str], found: dict[str, Any]) -> list[Row]:
    """The table: picture by picture, the most probable labels and then the neighbours, nearest first."""
    rows: list[Row] = []
    values, labels = probabilities.sort(dim=1, descending=True, stable=True)
    for i, name in enumerate(names):
        best = zip(labels[i, :SHOWN_LABELS].tolist(), values[i, :SHOWN_LABELS].tolist(), strict=True)
        rows += [(name, "label", rank, classes[label], value, None) for rank, (label, value) in enumerate(best, 1)]
        if found:
            near = zip(found["names"][i], found["distances"][i], found["indices"][i].tolist(), strict=True)
            rows += [(name, "neighbour", rank, *neighbour) for rank, neighbour in enumerate(near, 1)]
    return rows


def as_csv(rows: Sequence[Row]) -> str:
    """The table as a file."""
    return csv_text([COLUMNS, *([*row[:4], f"{row[4]:.6g}", row[5]] for row in rows)])


def gathered(trainer: Trainer, batches: Sequence[Tensor], count: int, classes: int) -> Tensor:
    """What all processes predicted of ``count`` images, in their order: ``(count, classes)`` float32 on the CPU.

    Args:
        trainer: After ``predict``, whose loader gave the images out in turn.
        batches: This process's, each ``(B, classes)``; where a limit left some out, their rows are 0.
        count: Images in all.
        classes: Of the network.
    """
    table = torch.zeros(count, classes, device=trainer.strategy.root_device)
    share = table[trainer.global_rank :: trainer.world_size]
    said = torch.cat([share[:0], *(batch.to(share) for batch in batches)])
    share[: len(said)] = said
    total: Tensor = trainer.strategy.reduce(table, reduce_op="sum")
    return total.cpu()
