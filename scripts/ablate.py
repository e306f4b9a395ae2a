"""Put the paper's claims to the test: a baseline and variants of it, over seeds, into one table.

python scripts/ablate.py --seeds 3                        # all of configs/ablations
python scripts/ablate.py --seeds 3 --jobs 2 --only no_lrn tanh
python scripts/ablate.py --seeds 3 -- --data.subset_size 2000 --trainer.max_epochs 5
python scripts/ablate.py --table                          # the table and the plots again, of what there is

Each run is a process of ``fit.py`` with a log folder of its own, and leaves ``<variant>-seed<n>/summary.json`` under
``--out``. What is there is not done again; a run that was stopped goes on from its own last checkpoint. Ctrl-C and
SIGTERM have the runs save and stop; the table is written all the same.

From top to bottom: what to run, how a run is started and collected, the sweep, the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ablation.table import (
    BASELINE,
    CLAIMS,
    RULE,
    comparable,
    compare,
    duration,
    first_difference,
    flatten,
    read_run,
    read_runs,
    write_comparison,
)
from rich.console import Console
from rich.table import Table
from running.errors import ScriptParser, refuse

from callbacks.checkpoints.files import write_whole

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FIT = Path(__file__).resolve().with_name("fit.py")
CURVES = ("train/loss", "train/top1", "val/loss", "val/top1")
TEST_ONLY = {"data.test_crops"}  # a variant that changes nothing else tests the baseline's weights
# What every run is given by this script, and why --ckpt_path and the like can't be extra flags.
OURS = ("--seed_everything", "--trainer.logger", "--ckpt_path", "--config", "-c", "--print_config", "--help", "-h")
COLLECTED = "collected"  # a file that says that a run's figures are under --out
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]

# ---------------------------------------------------------------------------------------------------------- what to run


class Variant(NamedTuple):
    """A config that is laid over the baseline's.

    Attributes:
        name: The file's, without its ending.
        config: The file; the baseline's own for the baseline.
        changes: What it sets, with dotted keys; nothing for the baseline.
    """

    name: str
    config: Path
    changes: dict[str, Any]

    @property
    def test_only(self) -> bool:
        """Whether the baseline's weights will do: nothing but the test is changed."""
        return bool(self.changes) and self.changes.keys() <= TEST_ONLY


class Job(NamedTuple):
    """A run that is wanted.

    Attributes:
        variant: Which.
        seed: Of all of its random numbers.
        recipe: What makes it the same run as one that is there: ``settings`` of ``default.yaml``, the baseline and the
            variant, in that order; the variant's ``changes``; the extra ``flags``.
    """

    variant: Variant
    seed: int
    recipe: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its folder: ``no_lrn-seed0``."""
        return f"{self.variant.name}-seed{self.seed}"


def read_config(path: Path) -> dict[str, Any]:
    """A config file with dotted keys.

    Raises:
        ValueError: If it is no config; one line.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'no text'}. Name a .yaml file.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())}). Mend it.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds a {type(config).__name__}, not settings. Mend it.")
    return flatten(config)


def choose(only: Sequence[str] | None, baseline: Path, folder: Path = CONFIGS / "ablations") -> list[Variant]:
    """The baseline and the chosen variants, with what a claim compares them with.

    Args:
        only: Names of configs in ``folder``, or paths of others; None takes all of the folder.
        baseline: The baseline's config.
        folder: Where the variants are.

    Returns:
        The baseline first, then figure1_relu where it is needed, then the others as they were named.

    Raises:
        ValueError: If there is no such config, or two have one name.
    """
    known = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != BASELINE}
    chosen: dict[str, Path] = {}
    for word in known if only is None else only:
        path = known.get(word, Path(word))
        if word == BASELINE:
            continue
        if word not in known and (path.suffix not in (".yaml", ".yml") or not path.is_file()):
            raise ValueError(f"--only: there is no {word}. Choose of {', '.join([BASELINE, *known])}, or a .yaml file.")
        if chosen.get(path.stem, path) != path or path.stem == BASELINE:
            raise ValueError(f"--only: {path} has the name of another config. Rename it.")
        chosen[path.stem] = path
    needed = {CLAIMS[name].against for name in chosen if name in CLAIMS} & known.keys()
    order = {**{name: known[name] for name in sorted(needed)}, **chosen}
    return [Variant(BASELINE, baseline, {}), *(Variant(name, path, read_config(path)) for name, path in order.items())]


def plan(variants: Sequence[Variant], seeds: int, flags: Sequence[str]) -> list[Job]:
    """All runs, seed by seed, so that a sweep that is cut short leaves pairs that can be compared.

    Args:
        variants: The baseline first.
        seeds: How many; they are 0, 1, ...
        flags: Extra flags of every run.
    """
    settings = read_config(CONFIGS / "default.yaml") | read_config(variants[0].config)
    return [
        Job(v, seed, {"settings": settings | v.changes, "changes": v.changes, "flags": list(flags)})
        for seed in range(seeds)
        for v in variants
    ]


def state_of(job: Job, out: Path, logs: Path) -> str:
    """``done``; ``new`` (or begun); or, where what there is has another recipe, what is different."""
    for path, done in ((out / job.name / "summary.json", True), (_folder(job, logs) / "recipe.json", False)):
        try:
            found = read_run(path) if done else json.loads(path.read_text(encoding="utf-8"))
            difference = first_difference(job.recipe, found)
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError) as error:
            return f"{error}" if done else f"{path}: can't be read. Delete {path.parent}."
        if difference is not None:
            return (
                f"{path}: of another recipe ({difference}). Give --redo to run it again, another --out to keep both, "
                "or the recipe that it was."
            )
        if done:
            return "done"
    return "new"


def _folder(job: Job, logs: Path) -> Path:
    return logs / job.variant.name / f"seed{job.seed}"


# -------------------------------------------------------------------------------------- how a run is started, collected


def command(job: Job, baseline: Variant, logs: Path) -> list[str]:
    """``fit.py``'s words for a run: for a test-only variant up to the checkpoint, which is added when it is there."""
    configs = [baseline.config] if job.variant.name == BASELINE else [baseline.config, job.variant.config]
    words = ["test" if job.variant.test_only else "fit"]
    for config in configs:
        words += ["-c", str(config)]
    folder = _folder(job, logs)
    logger = "--trainer.logger.init_args."
    return [
        *(*words, *job.recipe["flags"], "--seed_everything", str(job.seed), *QUIET),
        *(f"{logger}save_dir={folder.parent}", f"{logger}name={folder.name}"),
    ]


def said_command(job: Job, baseline: Variant) -> str:
    """The command without what only concerns the sweep, for people."""
    words = command(job, baseline, Path("logs"))
    words = [_shown(word) for word in words[: words.index("--seed_everything") + 2]]
    weights = ["--ckpt_path", "best.ckpt"] if job.variant.test_only else []
    return shlex.join(["python", "scripts/fit.py", *words, *weights])


def _shown(word: str) -> str:
    """A path below the working folder or the project as it is from there."""
    for folder in (Path.cwd(), CONFIGS.parent):
        with suppress(ValueError, OSError):
            if word.endswith((".yaml", ".yml")):
                return Path(word).resolve().relative_to(folder).as_posix()
    return word


def run_folders(folder: Path) -> tuple[Path, Path]:
    """Where a run writes: under its own name, or where it has shapes10 for data, under that one."""
    return folder, folder.with_name(f"{folder.name}-shapes10")


def versions(folder: Path) -> list[Path]:
    """A run's log folders, one for each time that it was started, the oldest first."""
    found = [path for place in run_folders(folder) for path in place.glob("version_*") if path.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[8:]))


def read_scalars(folders: Sequence[Path], tags: Sequence[str]) -> dict[str, list[list[float]]]:
    """Curves from TensorBoard's event files: ``{tag: [[epoch, value], ...]}``, epochs counted from 1.

    Args:
        folders: A run's log folders, the oldest first. Where one goes on from another's checkpoint, the later wins.
        tags: Which; those that are nowhere are left out.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, dict[int, float]] = {}
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        there = events.Tags()["scalars"]
        epochs = {event.step: int(event.value) + 1 for event in events.Scalars("epoch")} if "epoch" in there else {}
        for tag in set(tags) & set(there):
            for event in events.Scalars(tag):
                curves.setdefault(tag, {})[epochs.get(event.step, 0)] = round(event.value, 6)
    return {tag: [list(pair) for pair in sorted(curves[tag].items())] for tag in tags if tag in curves}


def finished(folder: Path) -> Path | None:
    """The log folder in which a run came to its end; None where none did."""
    return next((path for path in reversed(versions(folder)) if (path / "summary.json").is_file()), None)


def last_checkpoint(folder: Path, before_last: bool = False) -> Path | None:
    """What a run can go on from: its newest whole ``last.ckpt``, or with ``before_last`` the one that it replaced."""
    for version in reversed(versions(folder)):
        from callbacks.checkpoints.files import DamagedCheckpointError, previous, sound_checkpoint

        last = version / "checkpoints" / "last.ckpt"
        if before_last:
            last = previous(last)
        if not last.is_file() and not previous(last).is_file():
            continue
        with suppress(DamagedCheckpointError):
            return sound_checkpoint(last)[0]
    return None


def collect(job: Job, baseline: Variant, logs: Path, jobs: int, theirs: Path | None) -> dict[str, Any] | None:
    """All that is kept of a run that came to its end, or None if it did not.

    Args:
        job: The run.
        baseline: For the command.
        logs: Where the log folders are.
        jobs: How many ran at a time: the times depend on it.
        theirs: For a test-only variant, the summary of the run whose checkpoint was tested.
    """
    found = versions(_folder(job, logs))
    if job.variant.test_only:
        assert theirs is not None
        tests = {f"test/{name}": f"test_{name}" for name in ("top1", "top5", "loss")}
        values = read_scalars(found[-1:], list(tests))
        if values.keys() != tests.keys():
            return None
        trained = json.loads(theirs.read_text(encoding="utf-8"))
        kept = ("data", "epochs", "images", "val_images", "test_images", "machine", "versions")
        summary = {key: trained[key] for key in kept if key in trained}
        summary |= {name: values[tag][-1][1] for tag, name in tests.items()}
        curves, resumed = {}, False
    else:
        end = finished(_folder(job, logs))
        if end is None:
            return None
        summary = json.loads((end / "summary.json").read_text(encoding="utf-8"))
        curves, resumed = read_scalars(found, CURVES), len(found) > 1
    return {
        **summary,
        **{"variant": job.variant.name, "seed": job.seed, "command": said_command(job, baseline)},
        **job.recipe,
        **{"jobs": jobs, "resumed": resumed, "curves": curves},
    }


def delete_logs(folder: Path) -> None:
    """Delete all that a run wrote."""
    for place in run_folders(folder):
        shutil.rmtree(place, ignore_errors=True)


def delete_checkpoints(folder: Path, keep: Path | None = None) -> None:
    """Delete a run's checkpoints and what lies beside them, but for ``keep``: they are a hundred megabytes each."""
    for version in versions(folder):
        for path in (version / "checkpoints").glob("*"):
            if path.is_file() and (keep is None or path not in (keep, keep.with_name(f"{keep.name}.sha256"))):
                path.unlink()


def best_checkpoint(folder: Path) -> Path | None:
    """The weights that a finished run was tested with."""
    end = finished(folder)
    best = end / "checkpoints" / "best.ckpt" if end else None
    return best if best and best.is_file() else None


def gpus(flags: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Names of the GPUs for ``CUDA_VISIBLE_DEVICES``; none where runs are told to use the CPU."""
    told = [settings.get("trainer.accelerator"), *_given(flags, "--trainer.accelerator")]
    if told[-1] == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _given(flags: Sequence[str], name: str) -> list[str]:
    """The values that flags give a setting, as ``--name value`` or ``--name=value``."""
    pairs = zip(flags, [*flags[1:], ""], strict=False)
    return [w.split("=", 1)[1] if w != name else following for w, following in pairs if w.split("=", 1)[0] == name]


def environment(slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """A run's environment: a GPU, or its share of the cores unless the user has said how many threads."""
    if devices:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}


# ------------------------------------------------------------------------------------------------------------ the sweep


@dataclass
class Started:
    """A run's process."""

    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    output: Path
    began: float
    resumed_from: Path | None


@dataclass
class Sweep:
    """Runs all that is to be run, several at a time, and remembers what went wrong."""

    baseline: Variant
    out: Path
    logs: Path
    jobs: int
    devices: list[str]
    lock: int | None = None  # held by the runs too, so that none is left behind unseen
    total: int = 0
    count: int = 0
    failures: list[str] = field(default_factory=list)
    running: list[Started] = field(default_factory=list)
    signum: int | None = None  # the signal that asked to stop
    retries: dict[str, str] = field(default_factory=dict)  # runs whose newest checkpoint is the end of training
    everything: Sequence[Job] = ()  # also the test-only runs that are not wanted now: their weights are kept

    def run(self, todo: Sequence[Job]) -> None:
        """Run ``todo``."""
        waiting, self.total = list(todo), len(todo)
        before = {signum: signal.signal(signum, self._ask) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.running or (waiting and self.signum is None):
                while self.signum is None and len(self.running) < self.jobs:
                    job = next((job for job in waiting if not self._baseline_pending(job, waiting)), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    self._start(job)
                for started in [s for s in self.running if s.process.poll() is not None]:
                    self.running.remove(started)
                    if self._end(started):
                        waiting.insert(0, started.job)
                time.sleep(0.05)
        finally:
            for started in self.running:  # only after an error of our own
                started.process.terminate()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _ask(self, signum: int, frame: Any) -> None:
        """Have the runs save and stop; the second signal, which they get too, stops them at once."""
        self.signum = self.signum or signum
        os.write(2, f"\n{signal.Signals(signum).name}: {len(self.running)} runs save and stop\n".encode())
        for started in self.running:
            with suppress(ProcessLookupError):
                started.process.send_signal(signum)

    def _baseline_pending(self, job: Job, waiting: Sequence[Job]) -> bool:
        """Whether a test-only run has to wait for its weights."""
        others = [*waiting, *(started.job for started in self.running)]
        return job.variant.test_only and any(o.variant.name == BASELINE and o.seed == job.seed for o in others)

    def _theirs(self, job: Job) -> Path:
        """The baseline's log folders of the same seed."""
        return self.logs / BASELINE / f"seed{job.seed}"

    def _fail(self, job: Job, why: str) -> None:
        line = f"failed: {job.variant.name} seed {job.seed}: {why}"
        self.failures.append(line)
        print(line, file=sys.stderr, flush=True)

    def _start(self, job: Job) -> None:
        folder = _folder(job, self.logs)
        words, resumed_from = command(job, self.baseline, self.logs), None
        if job.variant.test_only:
            best = best_checkpoint(self._theirs(job))
            if best is None:
                theirs = self.out / f"{BASELINE}-seed{job.seed}"
                remedy = f"Delete {theirs} to train it again" if theirs.is_dir() else "See what became of the baseline"
                return self._fail(job, f"the baseline's best.ckpt is not there. {remedy}.")
            words += ["--ckpt_path", str(best)]
        elif (folder / COLLECTED).exists():  # its summary was deleted: from the start
            delete_logs(folder)
        elif finished(folder):  # the sweep was killed before it could collect the run
            self._done(job)
            return None
        elif self.retries.get(job.name) != "anew":
            resumed_from = last_checkpoint(folder, before_last=job.name in self.retries)
            if resumed_from is not None:
                words += ["--ckpt_path", str(resumed_from)]
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "recipe.json", json.dumps(job.recipe, indent=2) + "\n")
        output = folder / "output.txt"
        slot = min(set(range(self.jobs)) - {started.slot for started in self.running})
        with output.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, str(FIT), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(slot, self.jobs, self.devices),
                start_new_session=True,  # a terminal's Ctrl-C reaches the run once, from us
                pass_fds=() if self.lock is None else (self.lock,),
            )
        self.running.append(Started(job, slot, process, output, time.monotonic(), resumed_from))
        how = f", going on from {resumed_from}" if resumed_from else ""
        print(f"started: {job.variant.name} seed {job.seed}{how}", flush=True)
        if self.signum is not None:  # it came while the process was being started
            process.send_signal(self.signum)
        return None

    def _end(self, started: Started) -> bool:
        """Keep what came of a run; True if it has to be started once more."""
        job, status = started.job, started.process.returncode
        if status == 0:
            if self._done(job, time.monotonic() - started.began):
                return False
            if started.resumed_from is not None and self.signum is None:
                # Its checkpoint was the end of training: it had been stopped in its test. The last epoch again.
                before = job.name not in self.retries and last_checkpoint(_folder(job, self.logs), before_last=True)
                self.retries[job.name] = "before" if before else "anew"
                return True
            if self.signum is None:
                self._fail(job, f"ended without a summary ({started.output})")
            return False
        if self.signum is not None and status in (128 + self.signum, -self.signum, 1, -signal.SIGKILL):
            print(f"stopped: {job.variant.name} seed {job.seed}", flush=True)
            return False
        lines = [line for line in started.output.read_text(errors="replace").splitlines() if line.strip()]
        self._fail(job, f"exit status {status} ({started.output}): {lines[-1].strip() if lines else 'it said nothing'}")
        return False

    def _done(self, job: Job, seconds: float | None = None) -> bool:
        """Write a finished run's summary and delete its checkpoints; False if it is not finished."""
        theirs = self.out / f"{BASELINE}-seed{job.seed}" / "summary.json"
        try:
            run = collect(job, self.baseline, self.logs, self.jobs, theirs)
        except (OSError, ValueError) as error:
            self._fail(job, f"can't be collected ({error})")
            return True
        if run is None:
            return False
        if job.variant.test_only:
            run["seconds"] = round(seconds or 0.0, 1)
        write_whole(self.out / job.name / "summary.json", json.dumps(run, indent=2) + "\n")
        (_folder(job, self.logs) / COLLECTED).touch()
        self.clean(job)
        self.count += 1
        val = "" if run.get("val_top1") is None else f"val top-1 {100 * run['val_top1']:.2f} %, "
        test = "" if run.get("test_top1") is None else f"test top-1 {100 * run['test_top1']:.2f} %, "
        print(
            f"[{self.count}/{self.total}] {job.variant.name} seed {job.seed}: {val}{test}{duration([run['seconds']])}",
            flush=True,
        )
        return True

    def clean(self, job: Job) -> None:
        """Delete a finished run's checkpoints; the baseline's best when no test-only run needs it any more."""
        needed = [
            other
            for other in self.everything
            if other.variant.test_only and other.seed == job.seed and state_of(other, self.out, self.logs) != "done"
        ]
        if job.variant.name != BASELINE:
            delete_checkpoints(_folder(job, self.logs))
        theirs = self._theirs(job)
        if (job.variant.name == BASELINE or job.variant.test_only) and finished(theirs):
            delete_checkpoints(theirs, best_checkpoint(theirs) if needed else None)


@contextmanager
def locked(logs: Path) -> Iterator[int | None]:
    """Keep a second sweep away from the same runs; the lock's descriptor. Systems without ``flock`` do without.

    Raises:
        ValueError: If another sweep, or a run that one left behind, is at work.
    """
    logs.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ModuleNotFoundError:
        yield None
        return
    with (logs / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{logs}: another ablate.py, or a run that one left behind, is at work there. Wait for it, stop it, "
                "or choose another --out."
            ) from None
        yield file.fileno()


# ----------------------------------------------------------------------------------------------------- the command line


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the extra flags after ``--``."""
    cut = list(words).index("--") if "--" in words else len(words)
    parser = ScriptParser("ablate.py", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ... (default 3)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each GPU, 1 without)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants of configs/ablations, or .yaml files")
    parser.add_argument("--baseline", type=Path, default=CONFIGS / "ablations" / "baseline.yaml", metavar="CONFIG")
    parser.add_argument("--out", type=Path, default=Path("results/ablations"), help="where figures are kept")
    parser.add_argument("--logs", type=Path, help="where runs write (default: logs/ and the name of --out)")
    parser.add_argument("--redo", action="store_true", help="run again what is there with another recipe")
    parser.add_argument("--table", action="store_true", help="only write table and plots anew")
    options = parser.parse_args(words[:cut])
    for name, least in (("seeds", 1), ("jobs", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name}: {value} is below {least}")
    flags = list(words[cut + 1 :])
    for flag in flags:
        for ours in OURS:
            if flag.split("=")[0] == ours or flag.startswith(f"{ours}."):
                parser.error(
                    f"{flag}: ablate.py sets this itself, or it belongs into a config for --baseline or --only"
                )
    options.logs = options.logs or Path("logs") / options.out.resolve().name
    return options, flags


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    options, flags = parse(sys.argv[1:] if words is None else words)
    try:
        if options.table:
            raise SystemExit(0 if tell(options.out) else 1)
        everything = plan(choose(None, options.baseline), options.seeds, flags)
        wanted = plan(choose(options.only, options.baseline), options.seeds, flags)
        options.out.mkdir(parents=True, exist_ok=True)
        with locked(options.logs) as lock:
            status = sweep(options, flags, wanted, everything, lock)
    except (ValueError, OSError) as error:
        refuse(str(error))
    raise SystemExit(status)


def sweep(
    options: argparse.Namespace, flags: list[str], wanted: list[Job], everything: list[Job], lock: int | None
) -> int:
    """Run what is not done, write the table, and return the exit status."""
    states = {job.name: state_of(job, options.out, options.logs) for job in wanted}
    for job in wanted:
        if states[job.name] not in ("done", "new"):
            if not options.redo:
                raise ValueError(states[job.name])
            print(f"again: {job.variant.name} seed {job.seed}: {states[job.name].split('. ')[0]}", flush=True)
            (options.out / job.name / "summary.json").unlink(missing_ok=True)
            delete_logs(_folder(job, options.logs))
    todo = [job for job in wanted if states[job.name] != "done"]
    print(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them done before", flush=True)
    devices = gpus(flags, wanted[0].recipe["settings"]) if todo else []
    jobs = options.jobs or max(1, len(devices))
    runs = Sweep(wanted[0].variant, options.out, options.logs, jobs, devices, lock, everything=everything)
    runs.run(todo)
    tell(options.out)
    if runs.signum is not None:
        left = len(todo) - runs.count
        print(f"stopped with {left} runs to do: the same command goes on with them", file=sys.stderr)
        return 128 + runs.signum
    if runs.failures:
        print(f"{len(runs.failures)} of {len(todo)} runs failed:", *runs.failures, sep="\n", file=sys.stderr)
    return int(bool(runs.failures))


def tell(out: Path) -> bool:
    """Write table and plots of what is under ``out``, and print the table; False if there is nothing."""
    runs, lines = comparable(read_runs(out))
    for line in lines:
        print(line, file=sys.stderr)
    if not runs:
        print(f"no runs under {out} yet", file=sys.stderr)
        return False
    table = Table("variant", "seeds", "val top-1", "test top-1", "difference, points", "verdict")
    for line in compare(runs):
        table.add_row(line.variant, line.seeds, line.val, line.test, line.difference, line.verdict)
    console = Console()
    console.print(table)
    console.print(RULE.replace("*", ""), style="dim", highlight=False)
    console.print("written:", ", ".join(map(str, write_comparison(out, runs))), soft_wrap=True)
    return True


if __name__ == "__main__":
    main()
