"""CIFAR-10 in each layout, small."""

from pathlib import Path

import pytest
from helpers.official import Official, write_folders

from datamodules.sources import Layout


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Official:
    return Official(monkeypatch)


@pytest.fixture
def folders(tmp_path: Path) -> Layout:
    return write_folders(tmp_path)
