"""docs/tour.ipynb: it is docs/tour.py, as it was run; and that still runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

jupytext = pytest.importorskip("jupytext", reason="needs pip install -e '.[dev]'")
SCRIPT, NOTEBOOK = ROOT / "docs/tour.py", ROOT / "docs/tour.ipynb"


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def check_outputs(notebook: Any) -> None:
    """No error or warning, a dozen pictures, and a network that has learned."""
    found = outputs(notebook)
    assert {output.get("name", "stdout") for output in found} == {"stdout"}
    pictures = [kind for output in found for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(pictures) >= 11
    said = "".join(output.get("text", "") for output in found)
    accuracy = re.search(r"test top-1 ([\d.]+)%", said)
    assert accuracy
    assert float(accuracy[1]) > 30  # three times chance
    by_pixels, by_fc7 = (int(share) for share in re.findall(r"nearest in \w+ +(\d+)%", said))
    assert by_fc7 > by_pixels


def test_the_notebook_is_the_script_as_it_was_run() -> None:
    notebook = jupytext.read(NOTEBOOK)
    assert cells(notebook) == cells(jupytext.read(SCRIPT)), "run python tests/helpers/tour.py"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check_outputs(notebook)


def test_the_notebook_is_small_and_says_nothing_of_the_machine() -> None:
    written = NOTEBOOK.read_text(encoding="utf-8")
    assert len(written) < 1_500_000
    notebook = jupytext.read(NOTEBOOK)
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # when it was run
    texts = "".join(str({k: v for k, v in output.items() if k != "data"}) for output in outputs(notebook))
    assert "/" not in texts.replace("</", "")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_script_runs_as_a_notebook(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="needs pip install -e '.[dev]'")
    from helpers.tour import executed

    check_outputs(executed(tmp_path))
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
