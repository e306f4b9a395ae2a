"""The engine: what a run is given, what happens when whoever waits for it is lost, and a real Dask cluster."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ablate
import pytest
from ablation import plan
from ablation.plan import choose
from ablation.sweep import environments, finished, local_gpus, lock, run_job
from helpers.ablation import ABLATIONS, FAKE_FIT, calls, status, summary, when


def taken(slots: SimpleQueue[dict[str, str]]) -> list[dict[str, str]]:
    return [slots.get_nowait() for _ in range(slots.qsize())]


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_each_gpu_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    devices = local_gpus([], {})
    given = taken(environments(3, devices, {"CUDA_VISIBLE_DEVICES": "4,5"}))
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in given] == ["4", "5", "4"]
    assert local_gpus(["--trainer.accelerator=cpu"], {}) == []
    assert local_gpus(["--trainer.accelerator", "cpu"], {}) == []
    assert local_gpus([], {"trainer.accelerator": "cpu"}) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_gpus([], {}) == []


def test_the_cores_are_shared_but_threads_that_the_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert taken(environments(2, [], {})) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert taken(environments(2, [], {"OMP_NUM_THREADS": "7", "SLURM_NTASKS": "1"})) == [{"OMP_NUM_THREADS": "7"}] * 2


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> plan.Job:
    """The baseline, over a fit.py that only pretends."""
    monkeypatch.setattr(plan, "FIT", FAKE_FIT)
    return plan.plan(choose([], ABLATIONS / "baseline.yaml"), 1, [], Path("out"), Path("logs"))[0]


def test_a_run_whose_process_is_still_at_work_is_waited_for(job: plan.Job) -> None:
    pytest.importorskip("fcntl")
    held = lock(Path("logs/baseline/.seed0.lock"))
    assert held is not None
    with ThreadPoolExecutor() as executor:
        future = executor.submit(run_job, job, Path.cwd(), environments(1, [], os.environ))
        time.sleep(0.5)
        assert not job.folder.exists()
        held.close()
        summary = future.result(timeout=30)
    assert summary is not None
    assert summary["test_top1"] == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell a process that its parent is gone")
def test_a_run_saves_and_stops_when_its_worker_is_killed_and_the_next_one_waits_for_that(job: plan.Job) -> None:
    Path("hang-baseline-0").touch()
    Path("deaf-baseline-0").touch()
    words = (job, Path.cwd(), environments(1, [], os.environ))
    worker = multiprocessing.get_context("fork").Process(target=lambda: run_job(*words))
    worker.start()
    until(lambda: Path("hanging").exists() and Path("hanging").read_text(encoding="utf-8"))
    worker.kill()
    worker.join()
    assert lock(Path("logs/baseline/.seed0.lock")) is None  # it takes a second to save
    assert finished(job.folder) is None
    summary = run_job(*words)
    assert summary is not None
    assert summary["resumed"] == 1
    assert Path("logs/baseline/seed0/version_0/checkpoints/last.ckpt").read_text(encoding="utf-8") == "half"


# ---- Dask ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a part of a Dask cluster on this machine, whose address is in scheduler.json; it can't find the project."""
    pytest.importorskip("distributed")
    started: list[subprocess.Popen[bytes]] = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def start(part: str, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", part, "--scheduler-file", "scheduler.json", "--host", "127.0.0.1"]
        with Path(f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--no-dashboard", *words], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        started.append(process)
        return process

    start("scheduler", "scheduler", "--port", "0")
    until(Path("scheduler.json").exists)
    yield start
    for process in reversed(started):
        kill_worker(process)


def family(nanny: subprocess.Popen[bytes]) -> list[Any]:
    """The nanny, the worker that it would start again, and the worker's runs, which are in a session of their own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(nanny.pid), *psutil.Process(nanny.pid).children(recursive=True)]
    return []


def kill_worker(nanny: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the nanny and to its worker, but not to what that runs."""
    for process in family(nanny):
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == os.getsid(nanny.pid):
                os.kill(process.pid, signal.SIGKILL)
    nanny.wait()


def address() -> str:
    found: str = json.loads(Path("scheduler.json").read_text(encoding="utf-8"))["address"]
    return found


@pytest.mark.slow
def test_the_runs_of_a_worker_that_is_killed_go_on_elsewhere(
    cluster: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "FIT", FAKE_FIT)
    workers = [cluster("worker", f"worker{i}", "--nthreads", "1") for i in range(2)]
    Path("hang-tanh-0").touch()

    def lose_a_worker() -> None:
        run = int(Path("hanging").read_text(encoding="utf-8"))
        kill_worker(next(worker for worker in workers if run in [process.pid for process in family(worker)]))

    when(lambda: Path("hanging").exists() and bool(Path("hanging").read_text(encoding="utf-8")), lose_a_worker)
    words = ["--seeds", "1", "--scheduler", address(), "--only", "tanh", "ten_crops"]
    logs = [Path("worker0.log"), Path("worker1.log")]
    assert status(ablate.main, *words) == 0, [log.read_text(encoding="utf-8") for log in logs]
    assert sorted(worker.poll() is None for worker in workers) == [False, True]
    last = "going on from logs/ablations/tanh/seed0/version_0/checkpoints/last.ckpt"
    assert [log.read_text(encoding="utf-8").count(last) for log in logs] == [
        worker.poll() is None for worker in workers
    ]
    assert [summary(f"{name}-seed0")["resumed"] for name in ("baseline", "tanh", "ten_crops")] == [0, 1, 0]


@pytest.mark.slow
def test_ctrl_c_has_a_cluster_s_runs_save_and_stop(
    cluster: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan, "FIT", FAKE_FIT)
    cluster("worker", "worker", "--nthreads", "2", "--resources", "GPU=1")
    Path("hang-baseline-0").touch()
    when(Path("hanging").exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    words = ["--seeds", "1", "--scheduler", address(), "--only", "tanh"]
    assert status(ablate.main, *words) == 130
    assert Path("logs/ablations/baseline/seed0/version_0/checkpoints/last.ckpt").read_text(encoding="utf-8") == "half"
    assert "stopped: baseline seed 0" in capfd.readouterr().out
    assert status(ablate.main, *words) == 0
    made = calls()
    assert [(call["variant"], call["gpu"]) for call in made] == [("baseline", "0"), ("baseline", "0"), ("tanh", "0")]
    assert {call["threads"] for call in made} == {None}  # not the 1 that Dask gives its workers


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distributed = pytest.importorskip("distributed")
    patient = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: patient(address, timeout=timeout / 10))
    assert status(ablate.main, "--scheduler", "tcp://127.0.0.1:1") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --scheduler: tcp://127.0.0.1:1 (")
    assert said.endswith("expected Dask's, with a worker. Start both.")
