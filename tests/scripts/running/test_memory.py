"""keep_memory: in a process of its own, because it can't be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
sys.path.insert(0, {scripts!r})
from running.memory import keep_memory
if {keep}:
    assert keep_memory()
torch.ones(2**26)  # 256 MB, freed at once
print(int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_freed_memory_stays_in_the_process(request: pytest.FixtureRequest) -> None:
    held = {}
    for keep in (True, False):
        code = PROBE.format(scripts=str(request.config.rootpath / "scripts"), keep=keep)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        held[keep] = int(done.stdout)
    assert held[True] > held[False] + 200 * 2**20
