"""What is settled before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.parametrize("said", [None, "active"])
def test_threads_wait_asleep_unless_the_user_says_otherwise(said: str | None) -> None:
    """Before OpenMP is loaded, which comes with torch and reads it once."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": str(ROOT / "scripts")} | ({"OMP_WAIT_POLICY": said} if said else {})
    code = "import os, sys, running.start; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [said or "passive", "False"]


@pytest.mark.parametrize("name", ["ablate", "benchmark", "fit", "plateau", "retrieve", "tables"])
def test_each_script_imports_it_first(name: str) -> None:
    lines = (ROOT / f"scripts/{name}.py").read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from ")) and "__future__" not in line]
    assert imports[0].startswith("from running.start import")
