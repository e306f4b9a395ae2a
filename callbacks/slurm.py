"""A SLURM job: what it is called, and how it is queued again when its time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from lightning.pytorch.plugins.environments import SLURMEnvironment


def slurm_job() -> str | None:
    """What tells a SLURM job's command from all others, also when the job is queued again; None outside one."""
    job = SLURMEnvironment.job_id() if SLURMEnvironment.detect() else None
    return None if job is None else f"job_{job}_{zlib.crc32(repr(sys.argv).encode()):08x}"


@contextmanager
def queued_again() -> Iterator[None]:
    """Around a SLURM job's work: queue it again when SLURM warns that its time is up (``--signal=SIGUSR1@90``).

    Lightning would save at once, within a batch as it may be.
    """

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    if slurm_job() is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        yield
    except SystemExit as exit_:
        if exit_.code == 128 + signal.SIGUSR1:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        raise
    finally:
        signal.signal(signal.SIGUSR1, before)
