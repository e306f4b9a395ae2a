"""What a figure belongs to: the processor, and the versions of what computed it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """The processor's name; ``platform`` leaves it out on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def computer() -> str:
    """The processor and how many cores: what a run's ``machine`` in its summary begins with."""
    return f"{processor()}, {os.cpu_count()} cores"


def versions(*packages: str) -> dict[str, str | None]:
    """Python's version and those of packages; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:  # PackageNotFoundError
        return None
