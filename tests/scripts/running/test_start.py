"""What is settled before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, "passive 10000"),
        ({"OMP_WAIT_POLICY": "active"}, "active None"),
        ({"GOMP_SPINCOUNT": "5"}, "None 5"),
    ],
)
def test_threads_soon_wait_asleep_unless_the_user_says_otherwise(said: dict[str, str], found: str) -> None:
    """Before OpenMP is loaded, which comes with torch and reads it once."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"PYTHONPATH": str(ROOT / "scripts")} | said
    code = "import os, sys, running.start; print(*map(os.environ.get, sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert out.split() == [*found.split(), "False"]


@pytest.mark.parametrize("name", ["ablate", "benchmark", "fit", "plateau", "predict", "runs", "tables"])
def test_each_script_imports_it_first(name: str) -> None:
    lines = (ROOT / f"scripts/{name}.py").read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from ")) and "__future__" not in line]
    assert imports[0].startswith("from running.start import")
