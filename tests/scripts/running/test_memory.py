"""keep_memory: in a process of its own, because it can't be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT

PROBE = """
import resource, sys, torch
sys.path.insert(0, {scripts!r})
from running.memory import keep_memory

def held():
    torch.ones(2**26)  # 256 MB, freed at once
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

print(held(), keep_memory(), held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_freed_memory_stays_in_the_process() -> None:
    code = PROBE.format(scripts=str(ROOT / "scripts"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    before, kept, after = done.stdout.split()
    assert kept == "True"
    assert int(after) > int(before) + 200 * 2**20
