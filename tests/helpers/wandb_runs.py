"""What really lies in an offline run of W&B."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLOCK, HEADER = 32768, 7  # bytes, as LevelDB has its logs: each block's records have a CRC (4), a length (2) and a type


def records(path: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file."""
    data, place, record = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # what is left of a block is too little
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def about(folder: Path, run: str) -> Any:
    """What W&B has written about the run with this id that lies here: its ``RunRecord``."""
    return next(record.run for record in _read(folder, run) if record.HasField("run"))


def pictures(folder: Path, run: str, key: str) -> list[tuple[int, np.ndarray]]:
    """The pictures that its history has under a key: the trainer's step, and RGB ``(H, W, 3)`` uint8."""
    found = []
    for record in _read(folder, run):
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name in row.get(f"{key}/filenames", []):
            (path,) = folder.glob(f"wandb/offline-run-*-{run}/files/{name}")
            found.append((row["trainer/global_step"], np.array(Image.open(path))))
    return found


def _read(folder: Path, run: str) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob(f"wandb/offline-run-*/*-{run}.wandb")
    return [Record.FromString(record) for record in records(path)]
