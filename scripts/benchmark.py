"""Measure this project against what people write instead, side by side, and against what the machine can do.

python scripts/benchmark.py                                # all of it: about 20 minutes on two cores
python scripts/benchmark.py --only lrn step --json benchmark.json
python scripts/benchmark.py --quick                        # toy sizes, to see that it works; no figures to quote

Contenders take turns (A, B, A, B, ...) and the median of the rounds counts, so that a machine that is slow for a while
is slow for all of them. Retrieval's peers need ``pip install -e '.[benchmark]'``; without them their rows are left out.
"""

from __future__ import annotations

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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning import Callback
from rich.console import Console
from rich.table import Table
from running.errors import ScriptParser
from running.machine import processor, versions
from running.markdown import COMPARED, compared, rounded
from running.memory import keep_memory
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import CIFAR10

from callbacks.pure.knn import nearest_neighbours
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNet, AlexNetClassifier, LocalResponseNorm

SCRIPTS = Path(__file__).resolve().parent
DEFAULT = yaml.safe_load((SCRIPTS.parent / "configs" / "default.yaml").read_text())
PAPER = {"image_size": 224, "conv1_stride": 4}  # the network of 2012
PRODUCT_SIZE = 2048  # a matrix product large enough to run at the cores' peak, or at what is left of it

# ---- rows and turns ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: What is measured; with two spaces before it where it is a detail of the rows above.
        ours: Our figure.
        unit: Of both figures; a rate's ends with ``/s``.
        peer: The other's figure; nan where there is none.
        against: Whose it is.
    """

    what: str
    ours: float
    unit: str = ""
    peer: float = math.nan
    against: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast we are, or as small; nan without a peer."""
        if math.isnan(self.peer):
            return math.nan
        return self.ours / self.peer if self.unit.endswith("/s") else self.peer / self.ours


class Lap(NamedTuple):
    """One go of one contender: seconds, memory in MB at its peak and when it began, and what it gave, if anything."""

    seconds: float
    peak: float = math.nan
    start: float = math.nan
    value: Any = None


Job = Callable[[], Lap]


def timed(work: Callable[[], Any]) -> Lap:
    """Run ``work`` once. Memory is that of the whole process, where the system tells (Linux)."""
    start_memory = memory_mb("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    except OSError:
        start_memory = math.nan
    start = time.perf_counter()
    value = work()
    return Lap(time.perf_counter() - start, memory_mb("VmHWM"), start_memory, value)


def memory_mb(field: str) -> float:
    """``VmRSS``, the memory that this process holds now, or ``VmHWM``, its peak, in MB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    kilobytes = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(kilobytes[1]) * 1024 / 1e6 if kilobytes else math.nan


def timed_by_torch(work: Callable[[], Any]) -> Job:
    """A job on torch's own timer, which warms up and repeats: for work of well under a second, without its memory."""
    from torch.utils.benchmark import Timer  # takes a while, and fit.py imports this file for its StepClock

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return lambda: Lap(timer.blocked_autorange().median)


def take_turns(jobs: dict[str, Job], rounds: int) -> dict[str, Lap]:
    """Let each job have a go, then each a second one, and so on; the median seconds and the highest peak of each."""
    laps: dict[str, list[Lap]] = defaultdict(list)
    for _ in range(rounds):
        for name, job in jobs.items():
            laps[name].append(job())
    return {
        name: ran[-1]._replace(seconds=statistics.median(lap.seconds for lap in ran), peak=max(lap.peak for lap in ran))
        for name, ran in laps.items()
    }


@contextmanager
def contender(make: Callable[..., Job], keep: bool = True, **settings: Any) -> Iterator[Job]:
    """``make(**settings)`` in a process of its own, which waits between its turns.

    Of its own, because a process has one allocator and one peak of memory.

    Args:
        make: Builds what is to be run; a function at the top of a module.
        keep: Keep freed memory, as ``fit.py`` does; False leaves glibc's defaults, as a user's script would.
        settings: For ``make``.
    """
    spawn = multiprocessing.get_context("spawn")  # a fresh process: a fork would inherit the allocator's settings
    with ProcessPoolExecutor(1, spawn) as process:

        def ask(work: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return process.submit(work, *arguments).result()
            except BrokenProcessPool:
                raise RuntimeError(f"{make.__name__}: its process ended, perhaps for want of memory") from None

        ask(_build, make, keep, settings)  # nobody is measured while another is being built
        yield lambda: ask(_go)


@contextmanager
def contenders(by_name: dict[str, dict[str, Any]]) -> Iterator[dict[str, Job]]:
    """Several at a time: by their name the arguments of :func:`contender`, and their jobs."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(contender(**arguments)) for name, arguments in by_name.items()}


def _build(make: Callable[..., Job], keep: bool, settings: dict[str, Any]) -> None:
    global _job
    multiprocessing.set_start_method(None, force=True)  # workers are to start as they do in a user's own script
    if keep:
        keep_memory()
    torch.manual_seed(0)
    _job = make(**settings)


def _go() -> Lap:
    return _job()


_job: Job  # in a contender's process

# ---- 1. local response normalization alone -----------------------------------------------------------------


def lrn_rows(
    batch: int = 64, sizes: Iterable[tuple[str, int, int]] = (("conv1", 96, 55), ("conv2", 256, 27)), rounds: int = 9
) -> list[Row]:
    """Forward and backward at conv1's and conv2's sizes, ours against ``nn.LocalResponseNorm``, in both layouts."""
    layers = {"ours": LocalResponseNorm(), "peer": nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)}
    rows = []
    for (name, channels, size), last in itertools.product(sizes, (False, True)):
        x = torch.randn(batch, channels, size, size).relu().mul_(5)
        x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
        grad = torch.randn_like(x)  # in x's layout

        def run(layer: nn.Module, x: Tensor = x, grad: Tensor = grad) -> tuple[Tensor, Tensor]:
            out = layer(x)
            return out.detach(), torch.autograd.grad(out, x, grad)[0]

        pairs = zip(*map(run, layers.values()), strict=True)
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        laps = take_turns({name: timed_by_torch(partial(run, layer)) for name, layer in layers.items()}, rounds)
        ours, peer = (1e3 * lap.seconds for lap in laps.values())
        shape = f"{batch} x {channels} x {size} x {size}, {'channels_last' if last else 'NCHW'}"
        rows += [
            Row(f"LRN, forward and backward, {name}'s {shape}", ours, "ms", peer, "`nn.LocalResponseNorm`"),
            Row("  largest difference, of the largest value", difference),
        ]
    return rows


# ---- 2. a training step ------------------------------------------------------------------------------------


class PlainAlexNet(nn.Sequential):
    """The same network as people write it, with what torch brings along."""

    def __init__(self, image_size: int = 224, conv1_stride: int = 4) -> None:
        padding = (11 - image_size) % conv1_stride  # on the right and at the bottom, as ours adds it
        size = (image_size + padding - 11) // conv1_stride + 1
        relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        norm, drop = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), nn.Dropout()
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
    plain: bool, images: Tensor, targets: Tensor, **settings: Any
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A network, and its training step on one batch: every tutorial's, or ours, as Lightning does it."""
    if plain:
        net: nn.Module = PlainAlexNet(**settings)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    else:
        model = AlexNetClassifier(**{"schedule": "constant", **settings})
        net, optimizer = model.net, model.configure_optimizers()

    def plain_step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def our_step() -> Tensor:
        loss = F.nll_loss(model.log_probabilities(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, plain_step if plain else our_step


def make_step(plain: bool, batch: int, steps: int = 1, **settings: Any) -> Job:
    """``steps`` training steps on a batch of noise; a warm-up step is behind them."""
    images = torch.randn(batch, 3, settings["image_size"], settings["image_size"])
    _, step = training_step(plain, images, torch.arange(batch) % 10, **settings)
    step()
    return lambda: timed(lambda: [step() for _ in range(steps)])


def step_rows(batch: int = 128, rounds: int = 5, **network: Any) -> list[Row]:
    """A full step: ours against the plain one, against ours without LRN, and against the cores' peak."""
    size = {**PAPER, **network}
    ours = {"make": make_step, "plain": False, "batch": batch, **size}
    plain = {**ours, "plain": True}
    product = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE)
    # In two groups: all at once would take 15 GB.
    with contenders(
        {"ours": ours, "plain PyTorch": {**plain, "keep": False}, "ours without LRN": {**ours, "lrn": False}}
    ) as jobs:
        laps = take_turns(jobs, rounds)
    kept = {"plain PyTorch, freed memory kept": plain, "ours, freed memory given back": {**ours, "keep": False}}
    with contenders(kept) as jobs:
        laps |= take_turns({**jobs, "product": timed_by_torch(lambda: torch.mm(*product))}, rounds)
    mine, peak = laps.pop("ours"), PRODUCT_SIZE**3 / 1e9 / laps.pop("product").seconds
    work = multiply_adds(batch, **size) / 1e9
    what = f"training step, {size['image_size']} pixels, batch {batch}"
    return [
        *(Row(what, mine.seconds, "s", lap.seconds, name) for name, lap in laps.items()),
        *(Row("  its peak of memory", mine.peak, "MB", lap.peak, name) for name, lap in laps.items()),
        Row(f"  multiply-adds ({rounded(work)} G) a second", work / mine.seconds, "G/s", peak, "a matrix product"),
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


class Noise(CIFAR10DataModule):
    """Our DataModule on images of noise: what they show takes no part in the time."""

    def images_in(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """The same images whenever they are asked for."""
        number, draws = self.subset_size or 0, torch.Generator().manual_seed(0)
        images = torch.randint(256, (number, 3, 32, 32), generator=draws, dtype=torch.uint8)
        return images, torch.arange(number) % 10


def plain_loader(module: CIFAR10DataModule) -> DataLoader[Any]:
    """A training DataLoader for the same batches as the module's, as people write it."""
    from torchvision.transforms import v2

    images, targets = module.images_in("train")
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
    """An epoch of ``images``, timed after batch ``skip``, when workers have started and queues are full."""
    module = Noise(source="shapes10", subset_size=images, val_size=0, batch_size=batch, **data)
    loader = plain_loader(module) if plain else module.train_dataloader()

    def epoch() -> Lap:
        start = 0.0
        for number, raw in enumerate(loader, 1):
            module.on_after_batch_transfer(raw, 0)  # leaves alone what isn't ours
            if number == skip:
                start = time.perf_counter()
        return Lap((time.perf_counter() - start) / (images - skip * batch))  # seconds an image

    return epoch


def pipeline_rows(
    images: int = 5120, batch: int = 128, sizes: tuple[int, ...] = (224, 64), rounds: int = 5
) -> list[Row]:
    """Crop, flip, lighting, resizing: our whole batches in one process against single images in two workers."""
    rows = []
    for size in sizes:
        crop = {"crop_size": 28} if size == 224 else {"crop_size": 32, "crop_padding": 4}  # paper.yaml, default.yaml
        ours = {"make": make_pipeline, "plain": False, "images": images, "batch": batch, "image_size": size, "skip": 4}
        ours |= crop
        with contenders({"ours": ours, "peer": {**ours, "plain": True, "keep": False}}) as jobs:
            take_turns(jobs, 1)
            rate, plain = (1 / lap.seconds for lap in take_turns(jobs, rounds).values())
        rows.append(Row(f"input to {size} pixels", rate, "images/s", plain, "torchvision v2 with two workers"))
    return rows


# ---- 4. end to end -----------------------------------------------------------------------------------------


class StepClock(Callback):
    """Note when each training step ended; after ``steps`` of them write the times to ``path`` and end the run."""

    def __init__(self, path: str, steps: int) -> None:
        self.path, self.steps = path, steps
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Metrics and logs of the step are behind it; what comes after training is not measured."""
        self.ends.append(time.time())
        if len(self.ends) == self.steps:
            Path(self.path).write_text(json.dumps(self.ends))
            raise SystemExit(0)


def run_fit(steps: int, *words: str) -> tuple[float, list[float]]:
    """Run ``fit.py`` on shapes10 for some steps, as a user would, with a StepClock: its start, and each step's end."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder, "clock.json")
        command = [
            *(sys.executable, str(SCRIPTS / "fit.py"), "--data.source=shapes10"),
            *(f"--trainer.logger.init_args.save_dir={folder}", *words),
            *("--trainer.callbacks+=benchmark.StepClock", f"--trainer.callbacks.init_args.path={clock}"),
            f"--trainer.callbacks.init_args.steps={steps}",
        ]
        start = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not clock.exists():
            raise RuntimeError(f"fit.py ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
        return start, json.loads(clock.read_text())


def loop_rows(rounds: int = 5, skip: int = 5, steps: int = 20, batch: int = 128, **network: Any) -> list[Row]:
    """``fit.py``'s loop after ``skip`` steps, at default.yaml's size, against the bare loop on one batch in memory."""
    settings = {**DEFAULT["model"], "schedule": "constant", **network}
    words = [f"--data.batch_size={batch}", *(f"--model.{key}={value}" for key, value in network.items())]

    def whole() -> Lap:
        _, ends = run_fit(skip + steps, *words)
        return Lap(ends[-1] - ends[skip - 1])

    with contender(make_step, plain=False, batch=batch, steps=steps, **settings) as bare:
        laps = take_turns({"ours": whole, "bare": bare}, rounds)
    ours, peer = (steps * batch / lap.seconds for lap in laps.values())
    what = f"`fit.py`'s loop at {settings['image_size']} pixels"
    return [Row(what, ours, "images/s", peer, "the bare loop on one batch")]


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
    settings = {"make": make_search, "queries": queries, "gallery": gallery, "width": width, "k": k, "keep": False}
    with contenders({method: {**settings, "method": method} for method in ("ours", *peers)}) as jobs:
        # Memory by the first go alone: what it and our check afterwards leave in the heap would blur the next.
        memory = {name: max(1.0, lap.peak - lap.start) for name, lap in take_turns(jobs, 1).items()}
        laps = take_turns(jobs, rounds)
    ours, rows = laps.pop("ours"), []
    what = f"retrieval, {queries:,} x {gallery:,} x {width}, k = {k}"
    for name, peer in laps.items():
        # Sorted: where a peer's rounding swaps two neighbours, its later place holds the nearer one.
        no_farther = ours.value[1] <= np.sort(peer.value[1], axis=1) * (1 + 1e-9)
        rows += [
            Row(what, ours.seconds, "s", peer.seconds, PEERS[name]),
            Row("its memory above the inputs", memory["ours"], "MB", memory[name], PEERS[name]),
            Row("  places with the peer's very neighbour", 100 * float((ours.value[0] == peer.value[0]).mean()), "%"),
            Row("  places no farther than the peer's, in float64", 100 * float(no_farther.mean()), "%"),
        ]
    return rows


# ---- 6. start-up -------------------------------------------------------------------------------------------


def startup_rows(rounds: int = 3, top: int = 8, words: tuple[str, ...] = ()) -> list[Row]:
    """``fit.py --help`` and the first training step, against importing what any Lightning script with a CLI imports."""
    imports = "import torch, torchmetrics; from lightning.pytorch.cli import LightningCLI"

    def run(*command: str) -> Job:
        return lambda: timed(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))

    def first_step() -> Lap:
        start, ends = run_fit(1, *words)
        return Lap(ends[0] - start)

    jobs = {
        "`fit.py --help`": run(str(SCRIPTS / "fit.py"), "--help"),
        "`fit.py` to the end of its first step": first_step,
        "imports": run("-c", imports),
    }
    laps = take_turns(jobs, rounds)
    floor, against = laps.pop("imports").seconds, "importing torch, torchmetrics and LightningCLI"
    return [
        *(Row(name, lap.seconds, "s", floor, against) for name, lap in laps.items()),
        *(Row(f"  importing {package}", seconds, "s") for package, seconds in import_times()[:top]),
    ]


def import_times() -> list[tuple[str, float]]:
    """Seconds that ``fit.py --help`` spends importing each top-level package's own modules, longest first."""
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / "fit.py"), "--help"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    seconds: dict[str, float] = defaultdict(float)
    for line in lines:
        own, _, module = line.removeprefix("import time:").split("|") if line.count("|") == 2 else ("", "", "")
        if own.strip().isdigit():
            seconds[module.strip().split(".")[0]] += int(own) / 1e6
    return sorted(seconds.items(), key=lambda item: -item[1])


# ---- the command line --------------------------------------------------------------------------------------

TINY = {"image_size": 24, "conv1_stride": 2}
SECTIONS: dict[str, tuple[Callable[..., list[Row]], dict[str, Any]]] = {  # what measures them, and --quick's settings
    "lrn": (lrn_rows, {"batch": 2, "sizes": (("conv1", 8, 5),), "rounds": 1}),
    "step": (step_rows, {"batch": 4, "rounds": 1, **TINY}),
    "pipeline": (pipeline_rows, {"images": 100, "batch": 16, "sizes": (64,), "rounds": 1}),
    "loop": (loop_rows, {"rounds": 1, "skip": 1, "steps": 2, "batch": 16, **TINY}),
    "retrieval": (retrieval_rows, {"queries": 20, "gallery": 100, "width": 16, "k": 3, "rounds": 1}),
    "startup": (startup_rows, {"rounds": 1, "words": tuple(f"--model.{key}={value}" for key, value in TINY.items())}),
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


def as_json(rows: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """Rows as plain values; a number that isn't there is null."""
    return [
        {key: None if value != value else value for key, value in values.items()}  # nan
        for section, lines in rows.items()
        for values in ({"section": section, **row._asdict(), "ratio": row.ratio} for row in lines)
    ]


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> Table:
    """The rows for people, a block for each section."""
    title = f"{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}, {about['date'][:10]}"
    drawn = Table(*COMPARED, title=title)
    for _, section in itertools.groupby(rows, lambda row: row["section"]):
        for row in section:
            drawn.add_row(*compared(row))
        drawn.add_section()
    return drawn


def main(words: list[str] | None = None) -> None:
    """Measure the sections that are asked for, and show them."""
    parser = ScriptParser("benchmark.py", __doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one round: a trial of the tool itself")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    arguments = parser.parse_args(words)
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"json: {arguments.json}, expected a path in a folder that is there")

    keep_memory()  # for what is measured in this process
    about, rows = machine(), dict[str, list[Row]]()
    if about["load"] and about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): don't keep these figures", file=sys.stderr)
    for section in arguments.only or SECTIONS:
        print(f"measuring {section} ...", file=sys.stderr, flush=True)
        measure, quick = SECTIONS[section]
        rows[section] = measure(**(quick if arguments.quick else {}))
        if arguments.json:  # after each section: a run that is cut short leaves what it has
            contents = {"machine": about, "quick": arguments.quick, "rows": as_json(rows)}
            arguments.json.write_text(json.dumps(contents, indent=2) + "\n")
    Console().print(table(as_json(rows), about))


if __name__ == "__main__":
    main()
