"""The engine of a sweep: how one run is done, where runs can be done, and how a sweep keeps what comes of them.

A run is a function on an executor of ``concurrent.futures``: on threads of this process, each of which waits for a
process of ``fit.py``, or on the workers of a Dask cluster, which share the file system and its paths with this machine.
Whoever wants the runs to stop writes the signal's number into the file ``.stop`` in the folder of the logs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from running.errors import printable, reason
from running.figures import duration, percent
from running.start import take_signals

from ablation.claims import BASELINE
from ablation.plan import Job, cost, seconds_of, state_of
from ablation.table import comparable, read_run
from callbacks.checkpoints.files import sidecar, write_whole

Slots = SimpleQueue[dict[str, str]]  # an environment for each run that may be at work on a machine
COLLECTED = "collected"  # a file that says that a run's figures are under --out
# Linux sends a run SIGTERM when the thread that started it is gone: it saves and stops, and doesn't outlive its worker.
GUARD = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.executable, sys.argv[1:])"
DASKS_ONES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # Dask sets these to 1 for its workers

# ---- a run's log folder --------------------------------------------------------------------------------------


def run_folders(folder: Path) -> tuple[Path, Path]:
    """Where a run writes: under its own name, or where it has shapes10 for data, under that one."""
    return folder, folder.with_name(f"{folder.name}-shapes10")


def versions(folder: Path) -> list[Path]:
    """A run's log folders, one for each time that it was started, the newest first."""
    found = [path for place in run_folders(folder) for path in place.glob("version_*") if path.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[8:]), reverse=True)


def finished(folder: Path) -> Path | None:
    """The log folder in which a run came to its end; None where none did."""
    return next((path for path in versions(folder) if (path / "summary.json").is_file()), None)


def last_checkpoint(folder: Path) -> Path | None:
    """What a run can go on from: its newest ``last.ckpt``. ``fit.py`` takes the one before where it is damaged."""
    found = (path / "checkpoints" / "last.ckpt" for path in versions(folder))
    return next((path for path in found if path.is_file() or path.with_stem("last.previous").is_file()), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The weights that a finished run was tested with."""
    end = finished(folder)
    best = end / "checkpoints" / "best.ckpt" if end else None
    return best if best and best.is_file() else None


def delete_logs(folder: Path) -> None:
    """Delete all that a run wrote."""
    for place in run_folders(folder):
        shutil.rmtree(place, ignore_errors=True)


def delete_checkpoints(folder: Path, keep: Path | None = None) -> None:
    """Delete a run's checkpoints and what lies beside them, but for ``keep``: they are a hundred megabytes each."""
    kept = () if keep is None else (keep, sidecar(keep))
    for path in (path for version in versions(folder) for path in version.glob("checkpoints/*")):
        if path.is_file() and path not in kept:
            path.unlink()


def lock(path: Path) -> IO[str] | None:
    """An open file that holds a lock; None where another process has it. Systems without ``flock`` do without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    with suppress(ModuleNotFoundError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
    return file


# ---- one run -------------------------------------------------------------------------------------------------


def run_job(job: Job, cwd: Path, slots: Slots | None = None) -> dict[str, Any] | None:
    """Do one run, from its last checkpoint if there is one: what the executor is given.

    The lock on the run's folder is its process's too. Where a worker was lost and its process is still at work, the
    next worker waits until that has saved and stopped, or come to its end. The job's paths are relative to ``cwd``, in
    which ``fit.py`` is started; ``slots`` are the free environments of this machine, None on a Dask worker.

    Gives the run's summary; None if it was asked to stop. A RuntimeError of one line if it failed.
    """
    slots = slots or worker_slots()
    job = job._replace(logs=cwd / job.logs)
    environment = slots.get()
    try:
        while (held := lock(job.folder.with_name(f".{job.folder.name}.lock"))) is None and not stop_signals(job.logs):
            time.sleep(0.2)
        if held is None:
            return None
        with held:
            if finished(job.folder) is None and not run_fit(job, cwd, environment, held):
                return None
            end = finished(job.folder)
            if end is None:
                raise RuntimeError(f"ended without a summary ({os.path.relpath(job.folder / 'output.txt', cwd)})")
            summary: dict[str, Any] = json.loads((end / "summary.json").read_text(encoding="utf-8"))
            return summary
    finally:
        slots.put(environment)


def stop_signals(logs: Path) -> list[int]:
    """The signals that the runs have been sent so far."""
    with suppress(FileNotFoundError):
        return [int(signum) for signum in (logs / ".stop").read_text().split()]
    return []


def run_fit(job: Job, cwd: Path, environment: Mapping[str, str], held: IO[str]) -> bool:
    """Wait for a process of ``fit.py``; False if it was asked to stop. ``job`` has absolute paths."""
    if stop_signals(job.logs):
        return False
    checkpoint = best_checkpoint(job.baseline.folder) if job.variant.test_only else last_checkpoint(job.folder)
    if job.variant.test_only and checkpoint is None:
        theirs = job.baseline.summary.parent
        remedy = f"Delete {theirs} to train it again" if (cwd / theirs).is_dir() else "See what became of the baseline"
        raise RuntimeError(f"the baseline's best.ckpt is not there. {remedy}.")
    words = [sys.executable, *job.command, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]
    how = "" if checkpoint is None or job.variant.test_only else f", going on from {os.path.relpath(checkpoint, cwd)}"
    print(printable(f"started: {job}{how}"), flush=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "recipe.json").write_text(json.dumps(job.recipe, indent=2) + "\n", encoding="utf-8")
    output, sent = job.folder / "output.txt", 0
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", GUARD, *words] if sys.platform == "linux" else words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches the run once, through the stop file
            pass_fds=(held.fileno(),) if os.name == "posix" else (),
        )
    while process.poll() is None:
        for signum in stop_signals(job.logs)[sent:]:
            process.send_signal(signum)
            sent += 1
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    status, signals = process.returncode, stop_signals(job.logs)
    if signals and status in (128 + signals[0], -signals[0], 1, -signal.SIGKILL):
        return False
    if status:
        said = output.read_text(errors="replace").strip() or "it said nothing"
        raise RuntimeError(f"exit status {status} ({os.path.relpath(output, cwd)}): {said.splitlines()[-1].strip()}")
    return True


# ---- where runs are done -------------------------------------------------------------------------------------


def environments(count: int, gpus: Sequence[str], base: Mapping[str, str]) -> Slots:
    """For each of ``count`` runs at a time a GPU, or its share of the cores unless the user says how many threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slots: Slots = SimpleQueue()
    base = {name: value for name, value in base.items() if name != "SLURM_NTASKS"}  # no run is a job by itself
    for place in range(count):
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
        threads = {} if gpus else {"OMP_NUM_THREADS": str(max(1, cores // count))}
        slots.put({**threads, **base, **gpu})
    return slots


def local_gpus(flags: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Names of the GPUs for ``CUDA_VISIBLE_DEVICES``; none where runs are told to use the CPU."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trainer.accelerator", dest="accelerator", default=settings.get("trainer.accelerator"))
    if parser.parse_known_args(flags)[0].accelerator == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Engine(NamedTuple):
    """Where runs are done."""

    executor: Executor
    room: Callable[[], int]  # how many runs it can do at a time now
    slots: Slots | None  # their environments; None where each worker has its own
    close: Callable[[], object]


def local_engine(count: int, gpus: Sequence[str]) -> Engine:
    """So many threads of this process."""
    executor, slots = ThreadPoolExecutor(count), environments(count, gpus, os.environ)
    return Engine(executor, lambda: count, slots, lambda: executor.shutdown(wait=False))


def dask_engine(address: str) -> Engine:
    """The workers of a Dask cluster: a run for each of their threads, or for each GPU where they offer any.

    They need no path to this project: what they run is sent to them. ``dask worker ADDRESS --resources "GPU=2"`` offers
    two GPUs, the first of the worker's ``CUDA_VISIBLE_DEVICES`` or of the machine.
    """
    try:
        import cloudpickle
        from distributed import Client
    except ModuleNotFoundError:
        raise ValueError("--scheduler: no Dask, expected it installed. Run pip install 'dask[distributed]'.") from None
    import running

    import ablation

    for package in (ablation, running):
        cloudpickle.register_pickle_by_value(package)
    try:
        client = Client(address, timeout=10)
        client.wait_for_workers(1, timeout=30)
    except Exception as error:  # of many kinds, after the address
        raise ValueError(
            f"--scheduler: {address} ({reason(error)}), expected Dask's, with a worker. Start both."
        ) from None

    def gpus() -> int:
        return sum(int(worker["resources"].get("GPU", 0)) for worker in client.scheduler_info()["workers"].values())

    one_each = {"resources": {"GPU": 1}} if gpus() else {}
    room = gpus if one_each else lambda: sum(client.nthreads().values())
    return Engine(client.get_executor(pure=False, **one_each), room, None, client.close)


def worker_slots() -> Slots:
    """The environments of the Dask worker that this runs on, which keeps them."""
    from distributed import get_worker

    worker = get_worker()
    offered = int(worker.state.total_resources.get("GPU", 0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(offered)))
    base = {name: value for name, value in os.environ.items() if name not in DASKS_ONES}
    slots = environments(offered or worker.state.nthreads, visible.split(",")[:offered], base)
    kept: Slots = worker.__dict__.setdefault("ablation_slots", slots)
    return kept


# ---- the sweep -----------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """Has an engine do all that is to be done, keeps what comes of it, and remembers what went wrong."""

    engine: Engine
    todo: Sequence[Job]
    everything: Sequence[Job]  # also the test-only runs that are not wanted now: their weights are kept
    running: dict[Future[dict[str, Any] | None], Job] = field(default_factory=dict)
    kept: list[Job] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)  # that asked to stop
    began: dict[str, float] = field(default_factory=dict)  # when runs were started, by their names
    ended: dict[str, str] = field(default_factory=dict)  # what became of them

    def __post_init__(self) -> None:
        """What an earlier sweep's runs were sent is not for these."""
        self.seconds = seconds_of(self.everything)
        self.stop_file = self.everything[0].logs / ".stop"
        self.stop_file.unlink(missing_ok=True)

    def run(self) -> None:
        """Do all, in its order."""
        waiting = list(self.todo)
        before, screen = take_signals(self._ask), Console()
        live = Live(console=screen, get_renderable=self.table, refresh_per_second=1) if screen.is_terminal else None
        try:
            if live and waiting:
                live.start()
            while self.running or (waiting and not self.signals):
                while not self.signals and len(self.running) < self.engine.room():
                    job = next((job for job in waiting if not self._baseline_pending(job, waiting)), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    self._submit(job)
                if not self.running:  # a cluster has lost its workers
                    time.sleep(0.2)
                for future in wait(self.running, timeout=1, return_when=FIRST_COMPLETED).done:
                    self._end(future, self.running.pop(future))
                if len(self.signals) > 1:  # a cluster's runs that have not begun, or don't answer
                    self.running = {future: job for future, job in self.running.items() if not future.cancel()}
        except BaseException:
            self._ask(signal.SIGTERM, None)
            raise
        finally:
            if live:
                live.stop()
            self.engine.close()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _ask(self, signum: int, frame: Any) -> None:
        """Have the runs save and stop; the second signal, which they get too, stops them at once."""
        self.signals.append(signum)
        with suppress(OSError):  # the terminal is gone
            os.write(2, f"\n{signal.Signals(signum).name}: {len(self.running)} runs save and stop\n".encode())
        with self.stop_file.open("a") as file:
            file.write(f"{int(signal.SIGTERM)}\n")  # others they may ignore, as a worker under nohup does

    def _baseline_pending(self, job: Job, waiting: Sequence[Job]) -> bool:
        """Whether a test-only run has to wait for its weights."""
        return job.variant.test_only and job.baseline.folder in {o.folder for o in (*waiting, *self.running.values())}

    def _submit(self, job: Job) -> None:
        if (job.folder / COLLECTED).exists():  # its summary was deleted: from the start
            delete_logs(job.folder)
        # A lambda: Dask sends what has no name by value, and with it all of this package that it needs.
        cwd, slots = Path.cwd(), self.engine.slots
        self.began[str(job)] = time.monotonic()
        self.running[self.engine.executor.submit(lambda: run_job(job, cwd, slots))] = job

    def _end(self, future: Future[dict[str, Any] | None], job: Job) -> None:
        try:
            summary = future.result()
            if summary is None:
                self.ended[str(job)] = "stopped"
                print(f"stopped: {job}", flush=True)
            else:
                self._keep(job, summary)
        except Exception as error:  # of the run, of the cluster, of the disk
            why = " ".join(str(error).split()) or type(error).__name__
            self.ended[str(job)] = "failed"
            self.failures.append(printable(f"failed: {job}: {why}"))
            print(self.failures[-1], file=sys.stderr, flush=True)

    def _keep(self, job: Job, summary: dict[str, Any]) -> None:
        """Write a finished run's summary, delete its checkpoints, and say how far the sweep is."""
        room = max(1, self.engine.room())
        named = {"variant": job.variant.name, "seed": job.seed, "command": job.shown_command}
        run = {"resumed": 0, "history": [], **summary, **named, **job.recipe, "jobs": room}
        if job.variant.test_only:  # what was trained is the baseline's
            run |= {key: read_run(job.baseline.summary)[key] for key in ("epochs", "images", "val_images")}
        write_whole(job.summary, json.dumps(run, indent=2) + "\n")
        (job.folder / COLLECTED).touch()
        self._clean(job)
        self.kept.append(job)
        parts = [part for part in ("val", "test") if run.get(f"{part}_top1") is not None]
        scores = [f"{part} top-1 {percent([run[f'{part}_top1']])}, " for part in parts]
        print(f"[{len(self.kept)}/{len(self.todo)}] {job}: {''.join(scores)}{duration([run['seconds']])}", flush=True)
        self.ended[str(job)] = percent([run["test_top1"]])
        if job.baseline.summary.exists():  # kept from a sweep on other data, say
            for line in comparable([read_run(job.baseline.summary), run])[1]:
                self.failures.append(printable(line))
                print(self.failures[-1], file=sys.stderr, flush=True)
        if not (job.variant.test_only or run["resumed"]):
            self.seconds.append(run["seconds"])
        if said := cost(self._left(), self.seconds, room):
            print(said, flush=True)

    def _left(self) -> list[Job]:
        return [job for job in self.todo if str(job) not in self.ended]

    def table(self) -> Table:
        """Variants by seeds as they are at this moment: test top-1 of what is done, and how long others are at work."""
        seeds = sorted({job.seed for job in self.todo})
        title = cost(self._left(), self.seconds, self.engine.room())
        table = Table("variant", *(f"seed {seed}" for seed in seeds), title=title)
        for name in dict.fromkeys(job.variant.name for job in self.todo):
            jobs = [f"{name} seed {seed}" for seed in seeds]
            times = {job: duration([time.monotonic() - self.began[job]]) for job in jobs if job in self.began}
            table.add_row(name, *(self.ended.get(job) or times.get(job, "") for job in jobs))
        return table

    def _clean(self, job: Job) -> None:
        """Delete a finished run's checkpoints; the baseline's best when no test-only run needs it any more."""
        theirs, same = job.baseline.folder, [other for other in self.everything if other.seed == job.seed]
        if job.variant.name != BASELINE:
            delete_checkpoints(job.folder)
        if (job.variant.name == BASELINE or job.variant.test_only) and finished(theirs):
            needed = any(other.variant.test_only and state_of(other) != "done" for other in same)
            delete_checkpoints(theirs, best_checkpoint(theirs) if needed else None)
