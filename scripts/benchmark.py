"""Measure this project against what people write instead, side by side, and against what the machine can do.

python scripts/benchmark.py                                # all of it: about 20 minutes on two cores
python scripts/benchmark.py --only lrn step --json benchmark.json
python scripts/benchmark.py --quick                        # toy sizes, to see that it works; no figures to quote

Contenders take turns (A, B, A, B, ...) and the median of the rounds counts, so that a machine that is slow for a while
is slow for all of them. Retrieval's peers need ``pip install -e '.[benchmark]'``; without them their rows are left out.

From top to bottom: rows and turns, the six sections, the command line.
"""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning import Callback
from PIL import Image
from rich.console import Console
from rich.table import Table
from running.errors import ScriptParser
from running.machine import processor, versions
from running.memory import keep_memory
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from callbacks.pure.knn import nearest_neighbours
from datamodules import CIFAR10DataModule
from datamodules.pca_lighting import RGBStatistics
from lightning_modules import AlexNetClassifier, LocalResponseNorm

SCRIPTS = Path(__file__).resolve().parent
DEFAULT = yaml.safe_load((SCRIPTS.parent / "configs" / "default.yaml").read_text())
PAPER = {"image_size": 224, "conv1_stride": 4, "schedule": "constant"}  # the network of 2012

# ------------------------------------------------------------------------------------------------------ rows and turns


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        what: What is measured, against whom.
        ours: Our figure.
        peer: The other's; nan where there is none.
        unit: Of both.
        ratio: How many times as fast we are, or, for a share of some limit, that share: what ``aim`` speaks of.
        aim: What issue 3 asked of ``ratio``, such as ``>= 7``; empty where it asked for nothing.
    """

    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    aim: str = ""

    @property
    def met(self) -> bool | None:
        """Whether ``ratio`` is what was aimed at; None without an aim."""
        if not self.aim:
            return None
        sign, bound = self.aim.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)


class Lap(NamedTuple):
    """One go of one contender: seconds, memory in MB at its peak and when it began, and what it gave, if anything."""

    seconds: float
    peak: float = math.nan
    start: float = math.nan
    value: Any = None


Job = Callable[[], Lap]


def timed(work: Callable[[], Any]) -> Lap:
    """Run ``work`` once. Its peak of memory is the process's since it began, where the system tells (Linux)."""
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
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field)), math.nan)


def take_turns(jobs: dict[str, Job], rounds: int) -> dict[str, Lap]:
    """Let each job have a go, then each a second one, and so on; the median seconds and the highest peak of each."""
    laps: dict[str, list[Lap]] = defaultdict(list)
    for _ in range(rounds):
        for name, job in jobs.items():
            laps[name].append(job())
    return {
        name: Lap(
            statistics.median(lap.seconds for lap in ran), max(lap.peak for lap in ran), ran[0].start, ran[-1].value
        )
        for name, ran in laps.items()
    }


@contextmanager
def contender(make: Callable[..., Job], settings: dict[str, Any], keep: bool = True) -> Iterator[Job]:
    """``make(**settings)`` in a process of its own, which waits between its turns.

    Of its own, because a process has one allocator and one peak of memory.

    Args:
        make: Builds what is to be run; a function at the top of a module.
        settings: For ``make``.
        keep: Keep freed memory, as ``fit.py`` does; False leaves glibc's defaults, as a user's script would.
    """
    spawn = multiprocessing.get_context("spawn")  # a fresh process: a fork would inherit the allocator's settings
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, make, settings, keep))
    process.start()
    theirs.close()

    def answer() -> Any:
        try:
            return ours.recv()
        except (EOFError, OSError):
            process.join(1)
            raise RuntimeError(f"{make.__name__}: its process ended (exit code {process.exitcode})") from None

    def go() -> Lap:
        ours.send("go")
        lap: Lap = answer()
        return lap

    try:
        answer()  # it is built: nobody is measured while another is being built
        yield go
    finally:
        ours.close()
        process.join(30)
        process.kill()


def _serve(pipe: Connection, make: Callable[..., Job], settings: dict[str, Any], keep: bool) -> None:
    multiprocessing.set_start_method(None, force=True)  # workers are to start as they do in a user's own script
    if keep:
        keep_memory()
    torch.manual_seed(0)
    job = make(**settings)
    pipe.send("ready")
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(job())


# ------------------------------------------------------------------------------- 1. local response normalization alone


def lrn_rows(batch: int = 64, sizes: tuple[tuple[int, int], ...] = ((96, 55), (256, 27)), rounds: int = 9) -> list[Row]:
    """Forward and backward at conv1's and conv2's sizes, ours against ``nn.LocalResponseNorm``, in both layouts."""
    rows = []
    with contender(make_lrn, {"batch": batch, "sizes": sizes, "rounds": rounds}) as go:
        for name, ours, peer, difference in go().value:
            rows.append(Row(f"{name}, vs nn.LocalResponseNorm", ours * 1e3, peer * 1e3, "ms", peer / ours, ">= 7"))
            rows.append(Row("  largest difference, of the largest value", difference, 0, "", difference, "<= 1e-6"))
    return rows


def make_lrn(batch: int, sizes: tuple[tuple[int, int], ...], rounds: int) -> Job:
    """All of the section in one process, where both have the same memory settings."""

    def job(layer: nn.Module, x: Tensor, grad: Tensor) -> Job:
        def run() -> tuple[Tensor, Tensor]:
            out = layer(x)
            return out.detach(), torch.autograd.grad(out, x, grad)[0]

        return lambda: timed(run)

    def section() -> list[tuple[str, float, float, float]]:
        found = []
        for channels, size in sizes:
            for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
                x = torch.randn(batch, channels, size, size).relu().mul_(5).to(memory_format=layout).requires_grad_()
                grad = torch.randn_like(x)  # in x's layout
                jobs = {
                    "ours": job(LocalResponseNorm(), x, grad),
                    "peer": job(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), x, grad),
                }
                take_turns(jobs, 1)
                ours, peer = take_turns(jobs, rounds).values()
                pairs = zip(ours.value, peer.value, strict=True)
                difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
                found.append((f"{batch}x{channels}x{size}x{size} {name}", ours.seconds, peer.seconds, difference))
        return found

    return lambda: timed(section)


# --------------------------------------------------------------------------------------------------- 2. a training step


class PlainAlexNet(nn.Sequential):
    """The same network as people write it, with what torch brings along."""

    def __init__(self, num_classes: int = 10, image_size: int = 224, conv1_stride: int = 4, padding: int = 3) -> None:
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
            *(nn.Linear(4096, 4096), relu, drop, nn.Linear(4096, num_classes)),
        )


def our_step(images: Tensor, targets: Tensor, **settings: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Our network, and its training step on one batch: what Lightning does, without Lightning."""
    model = AlexNetClassifier(**settings)
    optimizer = model.configure_optimizers()

    def step() -> Tensor:
        loss = F.nll_loss(model.log_probabilities(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model.net, step


def plain_step(images: Tensor, targets: Tensor, **settings: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The plain network, and the loop's body as every tutorial has it."""
    model = PlainAlexNet(**settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


def make_step(plain: bool, batch: int, steps: int = 1, **settings: Any) -> Job:
    """``steps`` training steps on a batch of noise; a warm-up step is behind them."""
    images, targets = torch.randn(batch, 3, settings["image_size"], settings["image_size"]), torch.arange(batch) % 10
    _, step = (plain_step if plain else our_step)(images, targets, **settings)
    step()

    def run() -> None:
        for _ in range(steps):
            step()

    return lambda: timed(run)


def step_rows(batch: int = 128, rounds: int = 5, **network: Any) -> list[Row]:
    """A full step: ours against the plain one, against ours without LRN, and against the cores' peak."""
    settings = {**PAPER, **network}
    plain = {key: settings[key] for key in ("image_size", "conv1_stride")} | {"padding": padding_of(settings)}
    contenders: dict[str, tuple[Callable[..., Job], dict[str, Any], bool]] = {  # what, its settings, memory kept or not
        "ours": (make_step, {"plain": False, **settings}, True),
        "ours without LRN": (make_step, {"plain": False, **settings, "lrn": False}, True),
        "plain": (make_step, {"plain": True, **plain}, False),
        "plain, memory kept": (make_step, {"plain": True, **plain}, True),
        "ours, glibc's defaults": (make_step, {"plain": False, **settings}, False),
        "GEMM": (make_gemm, {}, True),
    }
    laps: dict[str, Lap] = {}
    for group in (list(contenders)[:3], list(contenders)[3:]):  # all at once would take 15 GB
        with ExitStack() as stack:
            jobs = {}
            for name in group:
                make, arguments, keep = contenders[name]
                jobs[name] = stack.enter_context(contender(make, {**arguments, "batch": batch}, keep))
            laps |= take_turns(jobs, rounds)
    mine, operations = laps["ours"], multiply_adds(batch, **settings)
    ours = mine.seconds

    def against(name: str, aim: str = "") -> Row:
        return Row(f"step of {batch}, vs {name}", ours, laps[name].seconds, "s", laps[name].seconds / ours, aim)

    without = laps["ours without LRN"].seconds
    peak = GEMM_SIZE**3 / laps["GEMM"].seconds / 1e9
    return [
        against("plain", ">= 2"),
        against("plain, memory kept"),
        against("ours, glibc's defaults"),
        Row(f"step of {batch}, ours as a share of ours without LRN", ours, without, "s", ours / without, "<= 1.10"),
        *(
            Row(f"  peak memory, vs {name}", mine.peak, laps[name].peak, "MB", laps[name].peak / mine.peak)
            for name in ("plain", "plain, memory kept", "ours, glibc's defaults")
        ),
        Row(
            f"  multiply-adds ({operations / 1e9:.0f} G) a second, as a share of a matrix product's",
            operations / ours / 1e9,
            peak,
            "G/s",
            operations / ours / 1e9 / peak,
        ),
    ]


def padding_of(settings: dict[str, Any]) -> int:
    """Zeros on the right and at the bottom, as our network adds them: the plain one is to do the same work."""
    return (11 - settings["image_size"]) % settings["conv1_stride"]


def multiply_adds(batch: int, **settings: Any) -> int:
    """Multiply-adds of a training step's convolutions and matrix products.

    Forward, for the weights' gradient and for the input's, each a product of every weight with every position it is
    used at. The images need no gradient. (torch's own counter takes grouped convolutions' gradients for larger.)
    """
    net: nn.Module = AlexNetClassifier(**settings).net
    size, total = settings["image_size"], 0
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    def count(layer: Any, _: Any, out: Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * out[0, 0].numel() * (2 if layer is layers[0] else 3) * batch

    for layer in layers:
        layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    return total


GEMM_SIZE = 2048


def make_gemm(batch: int) -> Job:
    """A float32 matrix product large enough to run at the cores' peak, or at what is left of it in practice."""
    a, b = torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    out = torch.mm(a, b)
    return lambda: timed(lambda: torch.mm(a, b, out=out))


# ----------------------------------------------------------------------------------------------- 3. the input pipeline


class PlainImages(Dataset[tuple[Tensor, int]]):
    """One PIL image at a time through ``transform``, like torchvision's ``CIFAR10``."""

    def __init__(self, images: np.ndarray, targets: list[int], transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image and its target."""
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


class PlainLighting(nn.Module):
    """PCA lighting of one image; torchvision has none."""

    def __init__(self, statistics: RGBStatistics) -> None:
        super().__init__()
        self.axes = statistics.eigvecs * statistics.eigvals.sqrt()

    def forward(self, image: Tensor) -> Tensor:
        """``(3, H, W)`` in ``[0, 1]`` to the same, not clipped."""
        return image + (self.axes @ (torch.randn(3) * 0.1))[:, None, None]


class Noise(CIFAR10DataModule):
    """Our DataModule on images of noise: what they show takes no part in the time."""

    def images_in(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """The same images whenever they are asked for."""
        if split not in self._splits:
            images = torch.randint(256, (self.subset_size or 0, 3, 32, 32), dtype=torch.uint8)
            self._splits[split] = images, torch.arange(len(images)) % 10
        return self._splits[split]


def make_pipeline(plain: bool, images: int, batch: int, image_size: int, skip: int, **data: Any) -> Job:
    """An epoch of ``images``, timed after batch ``skip``, when workers have started and queues are full."""
    module = Noise(source="shapes10", subset_size=images, val_size=0, batch_size=batch, image_size=image_size, **data)
    if plain:
        from torchvision.transforms import v2

        pixels, targets = module.images_in("train")
        mean, std = module.statistics[:2]
        transform = v2.Compose(
            [
                v2.RandomCrop(module.crop_size, padding=module.crop_padding or None, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.Resize(image_size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                PlainLighting(module.statistics),
                v2.Normalize(mean.tolist(), std.tolist()),
            ]
        )
        dataset = PlainImages(pixels.permute(0, 2, 3, 1).numpy(), targets.tolist(), transform)
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=2)
    else:
        loader = module.train_dataloader()

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
        settings = {"images": images, "batch": batch, "image_size": size, "skip": 4, **crop}
        with (
            contender(make_pipeline, {"plain": False, **settings}) as ours,
            contender(make_pipeline, {"plain": True, **settings}, keep=False) as peer,
        ):
            jobs = {"ours": ours, "peer": peer}
            take_turns(jobs, 1)
            rate, plain = (1 / lap.seconds for lap in take_turns(jobs, rounds).values())
        name = f"input to {size} px, vs torchvision v2 with 2 workers"
        rows.append(Row(name, rate, plain, "images/s", rate / plain, ">= 10"))
    return rows


# ------------------------------------------------------------------------------------------------------ 4. end to end


class StepClock(Callback):
    """Note when each training step ended; after ``steps`` of them write the times to ``path`` and end the run."""

    def __init__(self, path: str, steps: int) -> None:
        self.path, self.steps = path, steps
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Lightning's hook; metrics and logs of the step are behind it."""
        self.ends.append(time.time())
        if len(self.ends) == self.steps:
            Path(self.path).write_text(json.dumps(self.ends))
            raise SystemExit(0)  # what comes after training is not measured here


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
        ends: list[float] = json.loads(clock.read_text())
    return start, ends


def loop_rows(rounds: int = 5, skip: int = 5, steps: int = 20, batch: int = 128, **network: Any) -> list[Row]:
    """``fit.py``'s loop after ``skip`` steps, at default.yaml's size, against the bare loop on one batch in memory."""
    settings = {**DEFAULT["model"], "schedule": "constant", **network}
    words = [f"--data.batch_size={batch}", *(f"--model.{key}={value}" for key, value in network.items())]

    def whole() -> Lap:
        _, ends = run_fit(skip + steps, *words)
        return Lap(ends[-1] - ends[skip - 1])

    with contender(make_step, {"plain": False, "batch": batch, "steps": steps, **settings}) as bare:
        laps = take_turns({"ours": whole, "bare": bare}, rounds)
    ours, peer = (steps * batch / laps[name].seconds for name in ("ours", "bare"))
    name = f"fit.py's loop at {settings['image_size']} px, vs the bare loop"
    return [Row(name, ours, peer, "images/s", ours / peer, ">= 0.95")]


# --------------------------------------------------------------------------------------------------------- 5. retrieval


def make_search(method: str, queries: int, gallery: int, width: int, k: int) -> Job:
    """The k nearest of ``gallery`` embeddings to each of ``queries``: non-negative and in ten classes, as fc7's are."""
    centres = torch.randn(10, width)

    def embeddings(n: int) -> Tensor:
        return torch.randn(n, width).add_(centres[torch.arange(n) % 10]).relu_()

    near, far = embeddings(queries), embeddings(gallery)

    def ours() -> np.ndarray:
        return nearest_neighbours(near, far, k)[1].numpy()

    def faiss() -> np.ndarray:
        import faiss

        index = faiss.IndexFlatL2(width)
        index.add(far.numpy())
        found: np.ndarray = index.search(near.numpy(), k)[1]
        return found

    def sklearn() -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(far.numpy())
        found: np.ndarray = index.kneighbors(near.numpy(), return_distance=False)
        return found

    method_of = {"ours": ours, "faiss": faiss, "sklearn": sklearn}[method]
    if method != "ours":
        importlib.import_module(method)

    def job() -> Lap:
        lap = timed(method_of)
        pairs = zip(near.split(100), torch.from_numpy(lap.value).split(100), strict=True)
        exact = [(q[:, None].double() - far[found].double()).square().sum(2).sqrt() for q, found in pairs]
        return lap._replace(value=(lap.value, torch.cat(exact).numpy()))  # outside the time

    return job


def retrieval_rows(
    queries: int = 10_000, gallery: int = 50_000, width: int = 4096, k: int = 10, rounds: int = 3
) -> list[Row]:
    """Time, memory above the inputs, and whether the neighbours are the same, ours against faiss and scikit-learn."""
    peers = [name for name in ("faiss", "sklearn") if importlib.util.find_spec(name)]
    if len(peers) < 2:
        print("retrieval: a peer is missing; pip install -e '.[benchmark]'", file=sys.stderr)
    with ExitStack() as stack:
        settings: dict[str, Any] = {"queries": queries, "gallery": gallery, "width": width, "k": k}
        jobs = {
            name: stack.enter_context(contender(make_search, {"method": name, **settings}, keep=False))
            for name in ("ours", *peers)
        }
        # Memory by the first go alone: what it and our check afterwards leave in the heap would blur the next.
        memory = {name: above(job()) for name, job in jobs.items()}
        laps = take_turns(jobs, rounds)
    ours = laps["ours"]
    rows = []
    for name in peers:
        peer = laps[name]
        what = f"{queries} x {gallery} x {width}, k={k}, vs {name}"
        same = 100 * float((ours.value[0] == peer.value[0]).mean())
        # Sorted: where a peer's rounding swaps two neighbours, its later place holds the nearer one.
        no_farther = float((ours.value[1] <= np.sort(peer.value[1], axis=1) * (1 + 1e-9)).mean())
        aim = ">= 1" if peer.seconds == min(laps[other].seconds for other in peers) else ""
        rows += [
            Row(what, ours.seconds, peer.seconds, "s", peer.seconds / ours.seconds, aim),
            Row(f"  places with {name}'s very neighbour", same, math.nan, "%", math.nan),
            Row("  places no farther than its, in float64", 100 * no_farther, math.nan, "%", no_farther, ">= 1"),
            Row("  peak memory above the inputs", memory["ours"], memory[name], "MB", memory[name] / memory["ours"]),
        ]
    rows.append(
        Row("  peak memory above the inputs, of 500 MB", memory["ours"], 500, "MB", memory["ours"] / 500, "<= 1")
    )
    return rows


def above(lap: Lap) -> float:
    """MB above what the process held when the lap began."""
    return max(1.0, lap.peak - lap.start)


# ---------------------------------------------------------------------------------------------------------- 6. start-up


def startup_rows(rounds: int = 3, top: int = 8, words: tuple[str, ...] = ()) -> list[Row]:
    """``fit.py --help`` and the first training step, against importing what any Lightning script with a CLI imports."""
    imports = "import torch, torchmetrics; from lightning.pytorch.cli import LightningCLI"
    commands = {
        "help": [sys.executable, str(SCRIPTS / "fit.py"), "--help"],
        "imports": [sys.executable, "-c", imports],
    }

    def first_step() -> Lap:
        start, ends = run_fit(1, *words)
        return Lap(ends[0] - start)

    def run(name: str) -> Job:
        return lambda: timed(lambda: subprocess.run(commands[name], check=True, capture_output=True))

    laps = take_turns({"help": run("help"), "imports": run("imports"), "step": first_step}, rounds)
    floor = laps["imports"].seconds
    rows = [
        Row(f"{name}, vs importing torch, torchmetrics and LightningCLI", laps[key].seconds, floor, "s", math.nan)
        for name, key in (("fit.py --help", "help"), ("fit.py to the end of its first step", "step"))
    ]
    rows = [row._replace(ratio=row.peer / row.ours) for row in rows]
    return rows + [
        Row(f"  importing {package}", seconds, math.nan, "s", math.nan) for package, seconds in import_times()[:top]
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


# ----------------------------------------------------------------------------------------------------- the command line

SECTIONS: dict[str, Callable[..., list[Row]]] = {
    "lrn": lrn_rows,
    "step": step_rows,
    "pipeline": pipeline_rows,
    "loop": loop_rows,
    "retrieval": retrieval_rows,
    "startup": startup_rows,
}
TINY = {"image_size": 24, "conv1_stride": 2}
QUICK: dict[str, dict[str, Any]] = {
    "lrn": {"batch": 2, "sizes": ((8, 5),), "rounds": 1},
    "step": {"batch": 4, "rounds": 1, **TINY},
    "pipeline": {"images": 100, "batch": 16, "sizes": (64,), "rounds": 1},
    "loop": {"rounds": 1, "skip": 1, "steps": 2, "batch": 16, **TINY},
    "retrieval": {"queries": 20, "gallery": 100, "width": 16, "k": 3, "rounds": 1},
    "startup": {"rounds": 1, "words": tuple(f"--model.{key}={value}" for key, value in TINY.items())},
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


def table(rows: dict[str, list[Row]], about: dict[str, Any]) -> Table:
    """The rows for people, a block for each section."""
    title = f"{about['processor']}, {about['cores']} cores, torch {about['versions']['torch']}, {about['date'][:10]}"
    drawn = Table("", "ours", "peer", "unit", "ratio", "aim", "met", title=title)
    for column in drawn.columns[1:3]:
        column.justify = "right"
    for lines in rows.values():
        for row in lines:
            figures = [_short(number) for number in (row.ours, row.peer)]
            met = {True: "yes", False: "no", None: ""}[row.met]
            drawn.add_row(row.what, *figures, row.unit, _short(row.ratio), row.aim, met)
        drawn.add_section()
    return drawn


def _short(number: float) -> str:
    """Three digits or so."""
    if math.isnan(number):
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def main(words: list[str] | None = None) -> None:
    """The command line."""
    parser = ScriptParser("benchmark.py", __doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one round: a trial of the tool itself")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    arguments = parser.parse_args(words)
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.resolve().parent}")

    about, rows = machine(), dict[str, list[Row]]()
    if about["load"] and about["load"] > 0.5:
        print(f"the machine is busy (load {about['load']:.1f}): don't keep these figures", file=sys.stderr)
    for section in arguments.only or SECTIONS:
        print(f"measuring {section} ...", file=sys.stderr, flush=True)
        rows[section] = SECTIONS[section](**(QUICK[section] if arguments.quick else {}))
        if arguments.json:  # after each section: a run that is cut short leaves what it has
            contents = {"machine": about, "quick": arguments.quick, "rows": as_json(rows)}
            arguments.json.write_text(json.dumps(contents, indent=2) + "\n")
    Console().print(table(rows, about))


def as_json(rows: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """Rows as plain values; a number that isn't there is null."""
    return [
        {"section": section}
        | {key: None if value != value else value for key, value in row._asdict().items()}  # nan
        | {"met": row.met}
        for section, lines in rows.items()
        for row in lines
    ]


if __name__ == "__main__":
    main()
