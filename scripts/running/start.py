"""What every script imports first: how its threads wait, and how a signal and a screen that is gone end it, or don't.

Light: no torch, which reads the first on its import.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Ctrl-C, `kill` and a terminal that closes, which Windows does not know.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]

# OpenMP's threads wait for each other awake: beside other busy programs they take each other's time, and a step several
# times as long. Asleep at once they make a step a quarter longer where nobody else is busy. GNU's, which torch has on
# Linux, can look for 10,000 turns and sleep then; others sleep at once.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="10000")

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1]:  # a script of ours, not a test
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the rest is imported: an end without a traceback
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ["FIRST_PROCESS"] = str(os.getpid())
    elif sys.platform == "linux" and "FIRST_PROCESS" in os.environ:
        # Lightning started this one, which would wait for the first for long, should that be killed meanwhile.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ["FIRST_PROCESS"]):
            raise SystemExit(1)


def take_signals(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    """Handle what ends a script, and return the handlers before.

    What its parent has it ignore stays so: SIGHUP under nohup, SIGINT in the background of a shell's script.
    """
    taken = [s for s in SIGNALS if s == signal.SIGTERM or signal.getsignal(s) is not signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in taken}


class Screen(io.RawIOBase):
    """A stream's bytes; what the system refuses, of a closed pipe, a terminal that is gone or a full disk, is left out.

    A run's result must not depend on whether someone reads what it says.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.raw: Any = getattr(stream.buffer, "raw", stream.buffer)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return self.raw.write(data) or len(data)  # None of a pipe that is full and would not wait
        return len(data)

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def fileno(self) -> int:
        return int(self.raw.fileno())


def unfailing(stream: Any) -> Any:
    """Standard output or error as a stream on which print never raises; letters that it has not are question marks."""
    if stream is None:  # closed from the start
        return open(os.devnull, "w", encoding="utf-8")
    if stream not in (sys.__stdout__, sys.__stderr__):  # a notebook's, or a test's
        return stream
    with suppress(OSError):
        stream.flush()
    errors = "replace" if stream.errors == "strict" else stream.errors
    how = {name: getattr(stream, name) for name in ("encoding", "line_buffering", "write_through")}
    return io.TextIOWrapper(io.BufferedWriter(Screen(stream)), errors=errors, **how)


@contextmanager
def script() -> Iterator[None]:
    """Around a script's work: a signal ends it with 128 and its number, without a traceback, and no print ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        asked.append(signum)
        raise SystemExit(128 + signum)

    before, streams = take_signals(stop), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = (unfailing(stream) for stream in streams)
    try:
        yield
    except BaseException:  # after a signal whatever it is: in a library's C++ an exit becomes another error
        if not asked:
            raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if asked:
        raise SystemExit(128 + asked[0])
