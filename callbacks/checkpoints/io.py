"""DurableCheckpointIO: Lightning's plugin for checkpoints that a crash leaves whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.checkpoints.files import NotFiniteError, load_plain, open_intact, previous, sidecar, write_checkpoint
from callbacks.checkpoints.structure import all_finite


class DurableCheckpointIO(CheckpointIO):
    """Lightning's plugin around :func:`~callbacks.checkpoints.files.write_checkpoint` and ``open_intact``.

    Lightning's own writes to the system's folder for temporary files and moves: across file systems that is a copy,
    which a kill leaves half done in the place of the last good checkpoint.

    Args:
        read: A checkpoint's path and contents that were read already, for the first time that Lightning asks for it.

    Attributes:
        complete: What is done to a checkpoint before it is written.
    """

    def __init__(self, read: tuple[Path, dict[str, Any]] | None = None) -> None:
        self._read = read
        self.complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda checkpoint: checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint, unless a weight is NaN or infinite.

        Raises:
            CheckpointError: If the system refuses.
            NotFiniteError: If the weights are of no use. What was at ``path`` is untouched.
        """
        checkpoint = self.complete(checkpoint)
        for name, value in checkpoint.get("state_dict", {}).items():
            if isinstance(value, Tensor) and not all_finite(value):
                raise NotFiniteError(f"{name} is NaN or infinite")
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, or where it is damaged the one before it, without running any code of its own."""
        read, self._read = self._read, None
        if read is not None and read[0] == Path(path):
            contents = read[1]
        else:
            opened = open_intact(Path(path))
            if opened.wrong is not None:
                rank_zero_warn(f"{path}: {opened.wrong}. Took {opened.path} instead.")
            contents = load_plain(opened.contents, map_location)
        # Without it, as in a file of weights alone, Lightning tells callbacks nothing of what is loaded, nor its epoch.
        contents.setdefault("callbacks", {})
        return contents

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint and what lies beside it."""
        for file in (Path(path), previous(Path(path))):
            file.unlink(missing_ok=True)
            sidecar(file).unlink(missing_ok=True)
