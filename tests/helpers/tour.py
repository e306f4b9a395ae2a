"""docs/tour.py as an executed notebook; as a command, docs/tour.ipynb anew: ``python tests/helpers/tour.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[2] / "docs"


def executed(folder: Path) -> Any:
    """The script's notebook with its outputs, run in ``folder``. Raises where a cell does; no times in it."""
    notebook = jupytext.read(DOCS / "tour.py")
    NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # not which
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)  # else drawn at random
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(DOCS), DOCS / "tour.ipynb")
