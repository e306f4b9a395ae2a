"""Measure this project against what people write instead, side by side, and against what the machine can do.

python scripts/benchmark.py                                # all of it: an hour and a quarter on two cores
python scripts/benchmark.py --only lrn step --json benchmark.json
python scripts/benchmark.py --quick                        # toy sizes, to see that it works; no figures to quote

Contenders take turns (A, B, A, B, ...) and the median of the rounds counts, so that a machine that is slow for a while
is slow for all of them. Retrieval's peers need ``pip install -e '.[benchmark]'``, time to accuracy needs CIFAR-10 in
``data``; without them their rows are left out.

Sections: lrn, step (a training step), pipeline (the input's), loop (``fit.py``'s, end to end), retrieval, startup,
shared (beside other programs), precision (and layout), accuracy (seconds to a validation top-1).
"""

from __future__ import annotations

from running.start import script

# isort: split
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning import Callback, Trainer
from rich.console import Console
from rich.table import Table
from running.errors import ScriptParser, argument_errors
from running.figures import BENCHMARK, check_figures, read_figures
from running.machine import processor, versions
from running.markdown import COMPARED, compared, rounded
from running.memory import keep_memory
from running.outputs import check_output, check_place
from running.settings import best_precision
from torch import Tensor, nn
from torch.autograd.functional import vjp
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import CIFAR10

from callbacks.checkpoints.files import write_whole
from callbacks.pure.knn import nearest_neighbours
from datamodules import CIFAR10DataModule
from datamodules.sources import find_cifar10
from lightning_modules import AlexNet, AlexNetClassifier, LocalResponseNorm

FIT = str(Path(__file__).resolve().with_name("fit.py"))
CONFIGS = Path(FIT).parents[1] / "configs"
DEFAULT, BEST10 = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("default.yaml", "best10.yaml"))
PAPER = {"image_size": 224, "conv1_stride": 4}  # the network of 2012
TINY = {"image_size": 24, "conv1_stride": 2}  # --quick's
TOY_RUN = {"data.source": "shapes10", "data.subset_size": 100, "data.val_size": 50, "trainer.max_epochs": 2}
TOY_RUN |= {f"model.{key}": value for key, value in TINY.items()}
PLAIN_LRN = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # has no state; alpha is of the window's mean
CLOCK = "Clock: "
DEFAULT_WAIT = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own where nobody says how threads wait
PRODUCT_SIZE = 2048  # a matrix product large enough to run at the cores' peak, or at what is left of it

# ---- rows and turns ----------------------------------------------------------------------------------------

Row = dict[str, Any]


def row(what: str, ours: float, unit: str = "", peer: float = math.nan, against: str = "") -> Row:
    """A line of the table and of the JSON file: our figure, the peer's, and how many times as fast we are, or as small.

    ``what`` has two spaces before it where it is a detail of the rows above; a rate's ``unit`` ends with ``/s``;
    ``against`` names the peer. A figure that is nan becomes None.
    """
    ratio = math.nan if math.isnan(peer) else ours / peer if unit.endswith("/s") else peer / ours
    values = {"what": what, "ours": ours, "unit": unit, "peer": peer, "against": against, "ratio": ratio}
    return {key: None if value != value else value for key, value in values.items()}


class Lap(NamedTuple):
    """One go of one contender: seconds, memory in MB at its peak and what it took of it, and its result, if any."""

    seconds: float
    peak: float = math.nan
    taken: float = math.nan
    value: Any = None


Job = Callable[[], Lap]


def timed(work: Callable[[], Any]) -> Lap:
    """Run ``work`` once. Memory is that of the whole process."""
    held, start = peak_memory(anew=True), time.perf_counter()
    value = work()
    end, peak = time.perf_counter(), peak_memory()
    return Lap(end - start, peak, peak - held, value)


def peak_memory(anew: bool = False) -> float:
    """The most that this process has held so far, in MB, or holds now if ``anew``; nan where there is no /proc."""
    try:
        if anew:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return math.nan
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def timed_by_torch(work: Callable[[], Any]) -> Job:
    """A job on torch's own timer, which warms up and repeats: for work of well under a second, without its memory."""
    from torch.utils.benchmark import Timer  # takes a while, and fit.py imports this file for its StepClock

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return lambda: Lap(timer.blocked_autorange().median)


def apart(make: Callable[..., Job], keep: bool = True, **settings: Any) -> Job:
    """The job ``make(**settings)``, in a new process at each turn: with an allocator and a peak of memory of its own.

    ``keep``: freed memory stays with it and its threads wait asleep, as in ``fit.py``; else glibc's and OpenMP's
    defaults hold, as in a user's script.
    """

    def go() -> Lap:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit the allocator's settings
        with patch.dict(os.environ, {} if keep else DEFAULT_WAIT), ProcessPoolExecutor(1, spawn) as process:
            try:
                return process.submit(_build_and_go, make, keep, settings).result()
            except BrokenProcessPool:
                raise RuntimeError(f"{make.__name__}: its process ended, perhaps for want of memory") from None

    return go


def _build_and_go(make: Callable[..., Job], keep: bool, settings: dict[str, Any]) -> Lap:
    multiprocessing.set_start_method(None, force=True)  # workers are to start as they do in a user's own script
    if keep:
        keep_memory()
    torch.manual_seed(0)
    return make(**settings)()


def take_turns(jobs: dict[str, Job], rounds: int) -> dict[str, Lap]:
    """Let each job have a go, then each a second one, and so on; the median seconds and the highest peak of each."""
    turns = zip(*([job() for job in jobs.values()] for _ in range(rounds)), strict=True)
    columns = [zip(*laps, strict=True) for laps in turns]  # of each job: its seconds, peaks, memory taken, results
    laps = (
        Lap(statistics.median(seconds), max(peak), max(taken), value[-1]) for seconds, peak, taken, value in columns
    )
    return dict(zip(jobs, laps, strict=True))


def versus(what: str, unit: str, laps: dict[str, Lap], figure: Callable[[Lap], float]) -> list[Row]:
    """A row for each lap but the first, which is ours: the figures of both."""
    (_, ours), *others = laps.items()
    return [row(what, figure(ours), unit, figure(lap), name) for name, lap in others]


# ---- 1. local response normalization alone -----------------------------------------------------------------


def lrn_rows(
    batch: int = 64, sizes: Iterable[tuple[str, int, int]] = (("conv1", 96, 55), ("conv2", 256, 27)), rounds: int = 9
) -> list[Row]:
    """Forward and backward at conv1's and conv2's sizes, ours against ``nn.LocalResponseNorm``, in both layouts."""
    layers = {"ours": LocalResponseNorm(), "`nn.LocalResponseNorm`": PLAIN_LRN}
    layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    rows = []
    for (name, channels, size), (layout, memory_format) in itertools.product(sizes, layouts.items()):
        x = torch.randn(batch, channels, size, size).relu().mul_(5).to(memory_format=memory_format)
        grad = torch.randn_like(x)  # in x's layout
        runs = {whose: partial(vjp, layer, x, grad) for whose, layer in layers.items()}
        pairs = zip(*(run() for run in runs.values()), strict=True)
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        laps = take_turns({whose: timed_by_torch(run) for whose, run in runs.items()}, rounds)
        what = f"LRN, forward and backward, {name}'s {batch} x {channels} x {size} x {size}, {layout}"
        rows += versus(what, "ms", laps, lambda lap: 1e3 * lap.seconds)
        rows.append(row("  largest difference, of the largest value", difference))
    return rows


# ---- 2. a training step ------------------------------------------------------------------------------------


class PlainAlexNet(nn.Sequential):
    """The same network as people write it, with what torch brings along."""

    def __init__(self, image_size: int = 224, conv1_stride: int = 4) -> None:
        padding = (11 - image_size) % conv1_stride  # on the right and at the bottom, as ours adds it
        size = (image_size + padding - 11) // conv1_stride + 1
        relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        norm, drop = PLAIN_LRN, nn.Dropout()
        super().__init__(
            *(nn.ZeroPad2d((0, padding, 0, padding)), nn.Conv2d(3, 96, 11, conv1_stride), relu, norm, pool),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu, norm, pool),
            *(nn.Conv2d(256, 384, 3, padding=1), relu),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu, pool),
            *(nn.Flatten(), nn.Linear(256 * (size // 8) ** 2, 4096), relu, drop),
            *(nn.Linear(4096, 4096), relu, drop, nn.Linear(4096, 10)),
        )


def training_step(
    plain: bool, images: Tensor, targets: Tensor, bf16: bool = False, **settings: Any
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A network, and its training step on one batch: every tutorial's, or ours, as Lightning does it."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    if plain:
        net: nn.Module = PlainAlexNet(**settings)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    else:
        model = AlexNetClassifier(**{"schedule": "constant", **settings})
        net, optimizer = model.net, model.configure_optimizers()

    def step() -> Tensor:
        if plain:
            optimizer.zero_grad()
            with autocast:
                loss = F.cross_entropy(net(images), targets)
        else:
            with autocast:
                loss = F.nll_loss(model.log_probabilities(images), targets)
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, step


def make_step(plain: bool, batch: int, steps: int = 1, **settings: Any) -> Job:
    """``steps`` training steps on a batch of noise; a warm-up step is behind them."""
    images = torch.randn(batch, 3, settings["image_size"], settings["image_size"])
    _, step = training_step(plain, images, torch.arange(batch) % 10, **settings)
    step()
    return lambda: timed(lambda: [step() for _ in range(steps)])


def step_rows(batch: int = 128, rounds: int = 3, **network: Any) -> list[Row]:
    """A full step: ours against the plain one, against ours without LRN, and against the cores' peak."""
    settings = {"batch": batch, **PAPER, **network}
    matrices = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE)
    jobs = {
        "ours": apart(make_step, plain=False, **settings),
        "plain PyTorch": apart(make_step, keep=False, plain=True, **settings),
        "ours without LRN": apart(make_step, plain=False, lrn=False, **settings),
        "plain PyTorch, freed memory kept": apart(make_step, plain=True, **settings),
        "ours, freed memory given back": apart(make_step, keep=False, plain=False, **settings),
        "product": timed_by_torch(partial(torch.mm, *matrices)),
    }
    laps = take_turns(jobs, rounds)
    peak = PRODUCT_SIZE**3 / 1e9 / laps.pop("product").seconds
    work = multiply_adds(**settings) / 1e9
    rate = work / laps["ours"].seconds
    return [
        *versus(f"training step, {settings['image_size']} pixels, batch {batch}", "s", laps, lambda lap: lap.seconds),
        *versus("  its peak of memory", "MB", laps, lambda lap: lap.peak),
        row(f"  multiply-adds ({rounded(work)} G) a second", rate, "G/s", peak, "a matrix product"),
    ]


def multiply_adds(batch: int, **network: Any) -> int:
    """Multiply-adds of a training step's convolutions and matrix products.

    Forward, for the weights' gradient and for the input's; the images need none. (Backward, torch's counter takes
    grouped convolutions for larger than they are.)
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        AlexNet(**network)(torch.zeros(1, 3, network["image_size"], network["image_size"]))
    conv1 = sum(counter.get_flop_counts()["AlexNet.conv1"].values())
    return batch * (3 * counter.get_total_flops() - conv1) // 2


# ---- 3. the input pipeline ---------------------------------------------------------------------------------


class PlainCIFAR10(CIFAR10):
    """torchvision's data set, one PIL image at a time, on images that are given."""

    def __init__(self, images: np.ndarray, targets: list[int], transform: Callable[[Any], Tensor]) -> None:
        self.data, self.targets, self.transform, self.target_transform = images, targets, transform, None


def plain_lighting(axes: Tensor, image: Tensor) -> Tensor:
    """PCA lighting of one image ``(3, H, W)`` in ``[0, 1]``, not clipped; torchvision has none."""
    return image + (axes @ (torch.randn(3) * 0.1))[:, None, None]


def plain_loader(module: CIFAR10DataModule) -> DataLoader[Any]:
    """A training DataLoader for the same batches as the module's, as people write it."""
    from torchvision.transforms import v2

    chosen = module.split.train
    images, targets = (whole[chosen] for whole in module.images_in("train"))
    mean, std, eigvecs, eigvals = module.statistics
    transform = v2.Compose(
        [
            v2.RandomCrop(module.crop_size, padding=module.crop_padding or None, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.Resize(module.image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            partial(plain_lighting, eigvecs * eigvals.sqrt()),
            v2.Normalize(mean.tolist(), std.tolist()),
        ]
    )
    dataset = PlainCIFAR10(images.permute(0, 2, 3, 1).numpy(), targets.tolist(), transform)
    return DataLoader(dataset, module.batch_size, shuffle=True, num_workers=2)


def make_pipeline(plain: bool, images: int, batch: int, skip: int, **data: Any) -> Job:
    """A second epoch of ``images``, timed after batch ``skip``, when workers have started and queues are full."""
    module = CIFAR10DataModule(source="shapes10", subset_size=images, val_size=0, batch_size=batch, **data)
    loader = plain_loader(module) if plain else module.train_dataloader()

    def epoch() -> Lap:
        batches = (module.on_after_batch_transfer(raw, 0) for raw in loader)  # leaves alone what isn't ours
        deque(itertools.islice(batches, skip), 0)
        lap = timed(lambda: deque(batches, 0))
        return lap._replace(seconds=lap.seconds / (images - skip * batch))  # an image's

    epoch()
    return epoch


def pipeline_rows(
    images: int = 5120, batch: int = 128, sizes: tuple[int, ...] = (224, 64), rounds: int = 5
) -> list[Row]:
    """Crop, flip, lighting, resizing: our whole batches in one process against single images in two workers."""
    rows = []
    for size in sizes:
        crop = {"crop_size": 28} if size == 224 else {"crop_size": 32, "crop_padding": 4}  # paper.yaml, default.yaml
        settings: dict[str, Any] = {"images": images, "batch": batch, "skip": 4, "image_size": size, **crop}
        jobs = {
            "ours": apart(make_pipeline, plain=False, **settings),
            "torchvision v2 with two workers": apart(make_pipeline, keep=False, plain=True, **settings),
        }
        rows += versus(f"input to {size} pixels", "images/s", take_turns(jobs, rounds), lambda lap: 1 / lap.seconds)
    return rows


# ---- 4. end to end -----------------------------------------------------------------------------------------


class StepClock(Callback):
    """Print when each training step ended, its metrics and logs too; ends the run after ``steps`` of them."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        print(f"{CLOCK}{time.time()}", flush=True)
        if trainer.global_step == self.steps:
            raise SystemExit(0)


def run_fit(clock: type[Callback], arguments: dict[str, Any], *words: str, **flags: Any) -> list[list[float]]:
    """Run ``fit.py`` as a user would: the time of its start, and the numbers in each line that ``clock`` printed."""
    with tempfile.TemporaryDirectory() as folder:
        flags |= {
            "trainer.logger.init_args.save_dir": folder,
            "trainer.callbacks+": f"benchmark.{clock.__name__}",
            **{f"trainer.callbacks.init_args.{key}": value for key, value in arguments.items()},
        }
        command = [sys.executable, FIT, *words, *(f"--{key}={value}" for key, value in flags.items())]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
    lines = re.findall(rf"{CLOCK}([\d. ]+)", done.stdout)
    if done.returncode or not lines:
        raise RuntimeError(f"fit.py ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    return [[start], *([float(number) for number in line.split()] for line in lines)]


def step_times(steps: int, network: dict[str, Any], batch: int = 128) -> list[float]:
    """Run ``fit.py`` on shapes10 for some steps: the times of its start and of each step's end."""
    flags = {"data.source": "shapes10", "data.batch_size": batch, "trainer.precision": "32-true"}  # as the bare loop
    flags |= {f"model.{key}": value for key, value in network.items()}
    return [when for (when,) in run_fit(StepClock, {"steps": steps}, **flags)]


def loop_rows(rounds: int = 3, skip: int = 5, steps: int = 20, batch: int = 128, **network: Any) -> list[Row]:
    """``fit.py``'s loop after ``skip`` steps, at default.yaml's size, against the bare loop on one batch in memory."""
    settings = {**DEFAULT["model"], "schedule": "constant", **network}

    def whole() -> Lap:
        times = step_times(skip + steps, network, batch)
        return Lap(times[-1] - times[skip])

    bare = apart(make_step, plain=False, batch=batch, steps=steps, **settings)
    laps = take_turns({"ours": whole, "the bare loop on one batch": bare}, rounds)
    what = f"`fit.py`'s loop at {settings['image_size']} pixels"
    return versus(what, "images/s", laps, lambda lap: steps * batch / lap.seconds)


# ---- 5. retrieval ------------------------------------------------------------------------------------------

PEERS = {"faiss": "faiss `IndexFlatL2`", "sklearn": "scikit-learn"}  # by the package


def search(method: str, near: Tensor, far: Tensor, k: int) -> Tensor:
    """The places in ``far`` of the k nearest to each of ``near``, nearest first, as ours or a package finds them."""
    if method == "faiss":
        import faiss

        index = faiss.IndexFlatL2(far.shape[1])
        index.add(far.numpy())
        return torch.from_numpy(index.search(near.numpy(), k)[1])
    if method == "sklearn":
        from sklearn.neighbors import NearestNeighbors

        neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(far.numpy())
        return torch.from_numpy(neighbours.kneighbors(near.numpy(), return_distance=False))
    return nearest_neighbours(near, far, k)[1]


def make_search(method: str, queries: int, gallery: int, width: int, k: int) -> Job:
    """The k nearest of ``gallery`` embeddings to each of ``queries``: non-negative and in ten classes, as fc7's are."""
    centres = torch.randn(10, width)
    near, far = (torch.randn(n, width).add_(centres[torch.arange(n) % 10]).relu_() for n in (queries, gallery))
    search(method, near[:1], far[:k], k)  # imports what it needs

    def job() -> Lap:
        lap = timed(lambda: search(method, near, far, k))
        pairs = zip(near.split(100), lap.value.split(100), strict=True)
        exact = [(q[:, None].double() - far[found].double()).square().sum(2).sqrt() for q, found in pairs]
        return lap._replace(value=(lap.value.numpy(), torch.cat(exact).numpy()))  # outside the time

    return job


def retrieval_rows(
    queries: int = 10_000, gallery: int = 50_000, width: int = 4096, k: int = 10, rounds: int = 3
) -> list[Row]:
    """Time, memory above the inputs, and whether the neighbours are the same, ours against faiss and scikit-learn."""
    peers = [package for package in PEERS if importlib.util.find_spec(package)]
    if len(peers) < len(PEERS):
        print("retrieval: a peer is missing; pip install -e '.[benchmark]'", file=sys.stderr)
    settings: dict[str, Any] = {"queries": queries, "gallery": gallery, "width": width, "k": k, "keep": False}
    laps = take_turns({method: apart(make_search, method=method, **settings) for method in ("ours", *peers)}, rounds)
    places, distances = laps["ours"].value
    what = f"retrieval, {queries:,} x {gallery:,} x {width}, k = {k}"
    rows = [] if peers else [row(what, laps["ours"].seconds, "s")]
    for package in peers:
        pair = {"ours": laps["ours"], PEERS[package]: laps[package]}
        peer_places, peer_distances = laps[package].value
        # Sorted: where a peer's rounding swaps two neighbours, its later place holds the nearer one.
        no_farther = distances <= np.sort(peer_distances, axis=1) * (1 + 1e-9)
        rows += [
            *versus(what, "s", pair, lambda lap: lap.seconds),
            *versus("its memory above the inputs", "MB", pair, lambda lap: max(lap.taken, 1.0)),
            row("  places with the peer's very neighbour", 100 * float((places == peer_places).mean()), "%"),
            row("  places no farther than the peer's, in float64", 100 * float(no_farther.mean()), "%"),
        ]
    return rows


# ---- 6. start-up -------------------------------------------------------------------------------------------


def startup_rows(rounds: int = 3, **network: Any) -> list[Row]:
    """All flags' help and the first training step, against importing what any Lightning script with a CLI imports."""

    def run(*command: str) -> Job:
        return lambda: timed(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))

    def first_step() -> Lap:
        start, end = step_times(1, network)
        return Lap(end - start)

    jobs = {
        "`fit.py fit --help`": run(FIT, "fit", "--help"),
        "`fit.py` to the end of its first step": first_step,
        "imports": run("-c", "import torch, torchmetrics; from lightning.pytorch.cli import LightningCLI"),
    }
    laps = take_turns(jobs, rounds)
    floor, against = laps.pop("imports").seconds, "importing torch, torchmetrics and LightningCLI"
    return [
        *(row(name, lap.seconds, "s", floor, against) for name, lap in laps.items()),
        *(row(f"  importing {package}", seconds, "s") for package, seconds in import_times()[:8]),
    ]


def import_times() -> list[tuple[str, float]]:
    """Seconds that ``fit.py fit --help`` spends importing each top-level package's own modules, longest first."""
    command = [sys.executable, "-X", "importtime", FIT, "fit", "--help"]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    seconds: dict[str, float] = defaultdict(float)
    for own, package in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\w+)", report, re.MULTILINE):
        seconds[package] += int(own) / 1e6
    return sorted(seconds.items(), key=lambda item: -item[1])


# ---- 7. beside other programs ------------------------------------------------------------------------------


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many other programs that do nothing but compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def make_lrn(plain: bool, batch: int, channels: int, size: int) -> Job:
    """LRN forward and backward, once; a warm-up is behind it."""
    x = torch.randn(batch, channels, size, size).relu().mul_(5)
    run = partial(vjp, PLAIN_LRN if plain else LocalResponseNorm(), x, torch.randn_like(x))
    run()
    return lambda: timed(run)


def shared_rows(
    conv1: tuple[int, int, int] = (64, 96, 55), batch: int = 128, rounds: int = 3, most: int = 2, **network: Any
) -> list[Row]:
    """LRN and a training step at default.yaml's size: alone, and beside one and two programs that are busy."""
    lrn = dict(zip(("batch", "channels", "size"), conv1, strict=True))
    size = {key: {**DEFAULT["model"], **network}[key] for key in ("image_size", "conv1_stride")}
    kinds: list[tuple[str, str, Callable[..., Job], dict[str, Any]]] = [
        ("LRN, conv1's", "`nn.LocalResponseNorm`", make_lrn, lrn),
        (f"step, {size['image_size']} pixels", "plain PyTorch", make_step, {"batch": batch, **size}),
    ]
    rows = []
    for what, peer, make, settings in kinds:
        jobs = {"ours": apart(make, plain=False, **settings), peer: apart(make, keep=False, plain=True, **settings)}
        alone = math.nan
        for count, where in enumerate(("alone", "beside one busy program", "beside two")[: most + 1]):
            with busy(count):
                laps = take_turns(jobs, rounds)
            rows += versus(f"{what}, {where}", "s", laps, lambda lap: lap.seconds)
            alone = laps["ours"].seconds if not count else alone
            if count:
                rows.append(row("  times as long as alone", laps["ours"].seconds / alone))
    return rows


# ---- 8. precision and layout -------------------------------------------------------------------------------


def precision_rows(
    sizes: Iterable[tuple[int, int]] = ((224, 64), (64, 128), (48, 64), (32, 128)), rounds: int = 3, **network: Any
) -> list[Row]:
    """A training step in float32 and, where the processor has it, bfloat16, in both memory layouts."""
    precisions = {"fp32": False, "bf16": True} if best_precision("cpu") == "bf16-mixed" else {"fp32": False}
    if len(precisions) == 1:
        print("precision: this processor would emulate bfloat16; its rows are left out", file=sys.stderr)
    rows = []
    for size, batch in sizes:
        settings = {"image_size": size, "conv1_stride": 4 if size == 224 else 2, "batch": batch, **network}
        layouts = {"channels_last": True, "NCHW": False}
        jobs = {
            f"{name}, {layout}": apart(make_step, plain=False, bf16=bf16, channels_last=last, **settings)
            for (name, bf16), (layout, last) in itertools.product(precisions.items(), layouts.items())
        }
        if len(precisions) == 2:
            jobs["bf16, plain PyTorch"] = apart(make_step, plain=True, bf16=True, **settings)
        laps = take_turns(jobs, rounds)
        best = "bf16, channels_last" if len(precisions) == 2 else "fp32, channels_last"
        ours = {best: laps.pop(best), **laps}
        rows += versus(f"training step, {size} pixels, batch {batch}, {best}", "s", ours, lambda lap: lap.seconds)
    return rows


# ---- 9. time to accuracy -----------------------------------------------------------------------------------

Validations = list[tuple[float, float]]  # of a run: seconds since its process was started, and top-1


def time_to(target: float, validations: Validations) -> float:
    """Seconds to the end of the first validation whose top-1 is ``target`` or more; infinite if none is."""
    return next((seconds for seconds, top1 in validations if top1 >= target), math.inf)


class AccuracyClock(Callback):
    """Print when each validation ended and its top-1; end the run at the first with ``target``, or before its test."""

    def __init__(self, target: float) -> None:
        self.target = target

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.sanity_checking:
            return
        top1 = round(float(trainer.callback_metrics["val/top1"]), 6)  # float32's 0.7 is less than 0.7
        print(f"{CLOCK}{time.time()} {top1}", flush=True)
        if top1 >= self.target or trainer.current_epoch + 1 == trainer.max_epochs:
            raise SystemExit(0)


def our_validations(target: float, bf16: bool, seed: int, changes: dict[str, Any]) -> Validations:
    """``fit.py -c configs/best10.yaml``, with its pictures and checkpoints, until it has the accuracy or ends."""
    flags = {
        "seed_everything": seed,
        "trainer.accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-mixed" if bf16 else "32-true",
        **changes,
    }
    config = str(CONFIGS / "best10.yaml")
    (start,), *validations = run_fit(AccuracyClock, {"target": target}, "-c", config, **flags)
    return [(when - start, top1) for when, top1 in validations]


def plain_validations(target: float, bf16: bool, seed: int, changes: dict[str, Any], limit: float) -> Validations:
    """The plain loop until it has the accuracy, or to the end of the epoch in which ``limit`` seconds are over."""
    settings = {part: {**DEFAULT[part], **BEST10[part]} for part in ("trainer", "model", "data")}
    for key, value in changes.items():
        part, name = key.split(".")
        settings[part][name] = value
    network = {key: settings["model"][key] for key in ("image_size", "conv1_stride")}
    data = {**settings["data"], "image_size": network["image_size"], "seed": seed}
    start = time.time()
    run = apart(make_plain_run, False, target=target, bf16=bf16, end=start + limit, network=network, data=data)
    return [(when - start, top1) for when, top1 in run().value]


def make_plain_run(target: float, bf16: bool, end: float, network: dict[str, Any], data: dict[str, Any]) -> Job:
    """A loop as people write it, on our DataModule's batches: when each validation ended, and its top-1.

    The images, their split and order, the crops and flips are ours, and as fast. The rest is torch's: the network with
    its layers and initialisation, and SGD at a constant rate.
    """

    def run() -> Validations:
        torch.manual_seed(data["seed"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module, net = CIFAR10DataModule(**data), PlainAlexNet(**network).to(device)
        train, val = module.train_dataloader(), module.val_dataloader()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
        validations: Validations = []
        for epoch in itertools.count():
            train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            net.train()
            for images, targets in train:
                optimizer.zero_grad()
                with autocast:
                    loss = F.cross_entropy(net(images.to(device)), targets.to(device))
                loss.backward()
                optimizer.step()
            net.eval()
            with torch.no_grad(), autocast:
                hits = [net(images.to(device)).argmax(1).cpu() == targets for images, targets in val]
            validations.append((time.time(), float(torch.cat(hits).double().mean())))
            if validations[-1][1] >= target or time.time() >= end:
                break
        return validations

    return lambda: timed(run)


def accuracy_row(what: str, target: float, ours: list[Validations], peers: list[Validations]) -> Row:
    """The medians of the runs' seconds to ``target``, which ours reach.

    Where the plain runs don't, the peer's figure is the seconds after which they gave up, and there is no ratio.
    """
    mine, theirs = (statistics.median(time_to(target, run) for run in runs) for runs in (ours, peers))
    if theirs < math.inf:
        return row(what, mine, "s", theirs, "plain PyTorch")
    spent = statistics.median(run[-1][0] for run in peers)
    best = max(top1 for run in peers for _, top1 in run)
    return {**row(what, mine, "s", spent, f"plain PyTorch, not within that: {100 * best:.1f} %"), "ratio": None}


def accuracy_rows(target: float = 0.6, rounds: int = 1, patience: float = 3, **changes: Any) -> list[Row]:
    """Seconds from a process's start until validation top-1 is ``target``: best10.yaml against the plain loop.

    Each round has a seed of its own. The plain loop gives up after ``patience`` times our seconds. ``changes`` are
    flags of ``fit.py``.
    """
    if changes.get("data.source", "cifar10") == "cifar10" and not find_cifar10(Path("data")):
        print("accuracy: CIFAR-10 is not in data; its rows are left out", file=sys.stderr)
        return []
    best = best_precision("gpu" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, bf16 in [("fp32", False), ("bf16", True)][: 2 if best == "bf16-mixed" else 1]:
        ours, peers = list[Validations](), list[Validations]()
        for seed in range(rounds):
            ours.append(our_validations(target, bf16, seed, changes))
            seconds = time_to(target, ours[-1])
            if seconds == math.inf:
                missed = f"{100 * max(top1 for _, top1 in ours[-1]):.1f} % at best"
                print(f"accuracy: best10.yaml, {name}, seed {seed}: {missed}; its row is left out", file=sys.stderr)
                break
            peers.append(plain_validations(target, bf16, seed, changes, patience * seconds))
        else:
            rows.append(accuracy_row(f"best10.yaml to {100 * target:g} % of validation, {name}", target, ours, peers))
    return rows


# ---- the command line --------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Callable[..., list[Row]], dict[str, Any]]] = {  # what measures them, and --quick's settings
    "lrn": (lrn_rows, {"batch": 2, "sizes": (("conv1", 8, 5),), "rounds": 1}),
    "step": (step_rows, {"batch": 4, "rounds": 1, **TINY}),
    "pipeline": (pipeline_rows, {"images": 100, "batch": 16, "sizes": (64,), "rounds": 1}),
    "loop": (loop_rows, {"rounds": 1, "skip": 1, "steps": 2, "batch": 16, **TINY}),
    "retrieval": (retrieval_rows, {"queries": 20, "gallery": 100, "width": 16, "k": 3, "rounds": 1}),
    "startup": (startup_rows, {"rounds": 1, **TINY}),
    "shared": (shared_rows, {"conv1": (2, 8, 5), "batch": 4, "rounds": 1, "most": 1, **TINY}),
    "precision": (precision_rows, {"sizes": ((24, 4),), "rounds": 1}),
    "accuracy": (accuracy_rows, {"target": 0.1, **TOY_RUN}),
}


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "pillow", "faiss-cpu", "scikit-learn")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # others' work, before ours
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(*packages),
    }


def measured_before(path: Path, about: dict[str, Any], quick: bool) -> list[Row]:
    """The rows of an earlier run in the file, if it was on this machine with these versions; else none."""
    if not path.exists():
        return []
    remedy = "Delete it, or choose another file"
    found = read_figures(path, remedy)
    check_figures(found, BENCHMARK, str(path), remedy)
    same = all(found["machine"].get(key) == about[key] for key in ("processor", "cores", "threads", "versions"))
    ours = same and found.get("quick") == quick
    return [row for row in found["rows"] if ours and row.get("section") in SECTIONS]


def main(words: list[str] | None = None) -> None:
    """Measure the sections that are asked for, and show them."""
    parser = ScriptParser("benchmark.py", __doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one round: a trial of the tool itself")
    parser.add_argument("--json", type=Path, metavar="PATH", help="keep the figures there, beside other sections'")
    arguments = parser.parse_args(words)
    if arguments.json:
        check_place(parser, "--json", arguments.json, ".json")
        check_output("--json", arguments.json, '"quick"')

    keep_memory()  # for what is measured in this process
    about, rows = machine(), list[Row]()
    with argument_errors("--"):
        before = measured_before(arguments.json, about, arguments.quick) if arguments.json else []
    title = f"{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}, {about['date'][:10]}"
    table = Table(*COMPARED, title=title)
    if about["load"] and about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): don't keep these figures", file=sys.stderr)
    for section in arguments.only or SECTIONS:
        print(f"measuring {section} ...", file=sys.stderr, flush=True)
        measure, quick = SECTIONS[section]
        for line in measure(**(quick if arguments.quick else {})):
            rows.append({"section": section, **line, "date": about["date"][:10]})
            table.add_row(*compared(line))
        table.add_section()
        if arguments.json:  # after each section: a run that is cut short leaves what it has
            done = {row["section"] for row in rows}
            kept = [row for row in before if row["section"] not in done] + rows
            kept.sort(key=lambda row: list(SECTIONS).index(row["section"]))
            contents = {"machine": about, "quick": arguments.quick, "rows": kept}
            write_whole(arguments.json, json.dumps(contents, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    with script():
        main()
