"""Why the paper's initialisation stands at ln 10, and what leaves it: measures, and draws ``docs/plateau.png``.

python scripts/plateau.py                  # every trial, one epoch of 5,000 images each: about a minute a trial
python scripts/plateau.py --only paper he  # some of them
python scripts/plateau.py --plot           # the picture and docs/plateau.md's table from results/plateau.json alone

A trial is the default network (64 pixels, conv1's stride 2) with one thing changed. At the start it measures how much
of each layer's output depends on the image, and how large a step the first gradient asks for; then it trains an epoch
and keeps every loss. What is in the JSON file with the same settings is not done again.
"""

from __future__ import annotations

from running.start import script

# isort: split
import json
import math
import statistics
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from running import markdown
from running.errors import ScriptParser, argument_errors, refuse
from running.figures import MAPPING, NUMBER, Kind, check_figures, read_figures
from running.machine import versions
from running.memory import keep_memory
from running.outputs import check_output, png_mark, png_of
from torch import Tensor

from callbacks import activation_stats
from callbacks.activation_stats import forward_hooks
from callbacks.checkpoints.files import write_whole
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier

LOSS = Kind("a loss", lambda value: isinstance(value, float))  # NaN and infinity too, where a trial ended
LAYERS = (*activation_stats.LAYERS, "fc8")
SIZE = 64  # pixels
PLATEAU = math.log(10)
LEFT = 0.05  # a mean loss this far below ln 10 over the epoch's last ten steps counts as having left
ROOT = Path(__file__).resolve().parent.parent
SOFTWARE = "plateau.py"  # by which the picture is known
KEPT, PAGE = ROOT / "results" / "plateau.json", ROOT / "docs" / "plateau.md"


class Trial(NamedTuple):
    """What a trial changes: arguments of the model and of the data, and the steps over which lr rises; 0 for none."""

    label: str
    model: dict[str, Any]
    data: dict[str, Any] = {}  # noqa: RUF012 - never changed
    warmup: int = 0


RAW = {"input_scale": "raw"}
TRIALS = {
    "paper": Trial("the paper's: N(0, 0.01), biases 1", {"init": "paper"}),
    "paper-raw": Trial("its inputs of 0-255", {"init": "paper"}, RAW),
    "paper-bias0.1": Trial("biases 0.1 (Caffe's)", {"init": "paper", "bias": 0.1}),
    "paper-bias0": Trial("biases 0", {"init": "paper", "bias": 0.0}),
    "paper-warmup": Trial("20 steps of warm-up", {"init": "paper"}, warmup=20),
    "paper-lr0.1": Trial("lr 0.1", {"init": "paper", "lr": 0.1}),
    "paper-nodropout": Trial("no dropout", {"init": "paper", "dropout": 0.0}),
    "paper-raw-bias0.1": Trial("inputs of 0-255, biases 0.1", {"init": "paper", "bias": 0.1}, RAW),
    "code": Trial("the code's: N(0, 0.03) in conv3-conv5", {"init": "code"}),
    "code-raw": Trial("the code's, inputs of 0-255", {"init": "code"}, RAW),
    "code-raw-lr0.002": Trial("the code's, inputs of 0-255, lr 0.002", {"init": "code", "lr": 0.002}, RAW),
    "code-raw-bias0.1": Trial("the code's, inputs of 0-255, biases 0.1", {"init": "code", "bias": 0.1}, RAW),
    "torch": Trial("PyTorch's own: uniform, within 1 / sqrt(fan_in)", {"init": "torch"}),
    "fast": Trial("He's, but N(0, 0.01) in conv1", {"init": "fast"}),
    "he": Trial("He's initialisation, biases 0", {"init": "he"}),
}
MEASURED = {
    "settings": MAPPING,
    "start": {layer: dict.fromkeys(("size", "spread", "step"), NUMBER) for layer in LAYERS},
    "losses": [LOSS],
}
SHOWN = ("paper", "paper-raw", "paper-bias0", "code-raw-lr0.002", "code-raw-bias0.1", "he")  # in the picture


def root_mean_square(values: Tensor) -> float:
    """Of all values, in float64."""
    return values.detach().double().square().mean().sqrt().item()


def signal(outputs: Tensor) -> tuple[float, float]:
    """Root mean square of a layer's outputs ``(B, C, ...)``, and of each place's deviation from its images' mean."""
    values = outputs.detach().double()
    return root_mean_square(values), root_mean_square(values - values.mean(0))


def measure_start(model: AlexNetClassifier, images: Tensor, targets: Tensor) -> dict[str, dict[str, float]]:
    """Each layer before the first step: ``size`` and ``spread`` of :func:`signal`, and ``step``.

    ``step`` is what the first step changes: lr times the root mean square of the weights' gradient, as a share of the
    weights' own. Without dropout, which would make every image differ from every other.
    """
    signals: dict[str, tuple[float, float]] = {}
    model.eval()
    with forward_hooks(model.net, LAYERS, lambda name, outputs: signals.update({name: signal(outputs)})):
        F.nll_loss(model.log_probabilities(images), targets).backward()
    model.train()
    found = {}
    for name, (size, spread) in signals.items():
        weight = model.net.get_parameter(f"{name}.weight")
        assert weight.grad is not None
        step = model.lr * root_mean_square(weight.grad) / root_mean_square(weight)
        found[name] = {"size": size, "spread": spread, "step": step}
    model.zero_grad()
    return found


def run(trial: Trial, seed: int, steps: int | None, **data: Any) -> dict[str, Any]:
    """Measure a trial's start, by layer, and train it for an epoch or so many steps, keeping every loss.

    ``data`` are ``CIFAR10DataModule``'s arguments beside the trial's. A run whose loss is not finite ends there.
    """
    datamodule = CIFAR10DataModule(
        image_size=SIZE, crop_size=32, crop_padding=4, val_size=0, seed=seed, **data, **trial.data
    )
    datamodule.setup("fit")
    torch.manual_seed(seed)
    model = AlexNetClassifier(image_size=SIZE, conv1_stride=2, schedule="constant", seed=seed, **trial.model)
    optimizer = model.configure_optimizers()
    losses: list[float] = []
    start: dict[str, dict[str, float]] = {}
    for number, raw in enumerate(islice(datamodule.train_dataloader(), steps)):
        images, targets = datamodule.on_after_batch_transfer(raw, 0)
        start = start or measure_start(model, images, targets)
        model.on_train_batch_start(raw, number)
        for group in optimizer.param_groups:
            group["lr"] = model.lr * min(1.0, (number + 1) / max(1, trial.warmup))
        loss = F.nll_loss(model.log_probabilities(images), targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"start": start, "losses": losses, "data": datamodule.description}


def read_kept(path: Path) -> dict[str, Any]:
    """What is in the JSON file, by trial; a ValueError of one line where that is nothing this script wrote."""
    remedy = "Delete it, and plateau.py measures anew"
    kept = read_figures(path, remedy)
    for name in kept.keys() & TRIALS.keys():
        check_figures(kept[name], MEASURED, f"{path}: {name}", remedy)
        if not kept[name]["losses"]:
            raise ValueError(f"{path}: {name}: no losses, expected one for each step. {remedy}.")
    return kept


def end(losses: list[float], steps: int = 10) -> float:
    """The mean loss of the last steps."""
    return statistics.fmean(losses[-steps:])


def draw(done: dict[str, Any]) -> Figure:
    """What depends on the image, layer by layer, and the losses of the first epoch."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in (name for name in SHOWN if name in done):
        losses, label = done[name]["losses"], TRIALS[name].label
        (line,) = left.plot(LAYERS, [done[name]["start"][layer]["spread"] for layer in LAYERS], "o-", label=label)
        smooth = [end(losses[: i + 1], 5) for i in range(len(losses))]
        right.plot(range(1, len(losses) + 1), smooth, color=line.get_color(), label=label)
    left.set(yscale="log", title="At the start: how far outputs differ between images", ylabel="standard deviation")
    right.axhline(PLATEAU, color="grey", linestyle=":", linewidth=1)
    right.text(1, PLATEAU + 0.01, "ln 10", color="grey", fontsize=8)
    right.set(ylim=(1.9, 2.8), title="The first epoch: training loss (mean of 5 steps)", xlabel="step")
    left.legend(fontsize=7, frameon=False)
    return figure


def table(done: dict[str, Any]) -> str:
    """A line for each trial, in Markdown."""
    measured = ("fc8's outputs differ between images by", "first step changes conv1 by", "loss, last ten steps")
    rows = []
    for name in [name for name in TRIALS if name in done]:
        start, last = done[name]["start"], end(done[name]["losses"])
        spread, step = f"{start['fc8']['spread']:.1e}", f"{100 * start['conv1']['step']:.2g} %"
        rows.append((TRIALS[name].label, spread, step, f"{last:.3f}", "yes" if last < PLATEAU - LEFT else "no"))
    return markdown.table(("what is changed", *measured, "left?"), rows)


def main() -> None:
    """Do the trials that are asked for and not done, and draw them."""
    parser = ScriptParser("plateau.py", __doc__)
    parser.add_argument("--only", nargs="+", choices=[*TRIALS], metavar="TRIAL", help=f"some of {', '.join(TRIALS)}")
    parser.add_argument("--root", default="data", help="folder that holds CIFAR-10")
    parser.add_argument("--source", default="cifar10", choices=("cifar10", "shapes10"))
    parser.add_argument("--subset_size", type=int, default=5000, help="images to train on")
    parser.add_argument("--steps", type=int, help="stop after so many (default: the whole epoch)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=KEPT, help="where the figures go (default: results/plateau.json)")
    parser.add_argument("--png", type=Path, help="where the picture goes (default: docs/, or beside another --json)")
    parser.add_argument("--md", type=Path, help="the page that has the table (default: docs/, or none)")
    parser.add_argument("--plot", action="store_true", help="picture and table from the figures alone")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps: {args.steps}, expected 1 or more")
    ours = args.json.resolve() == KEPT
    args.png = args.png or (PAGE if ours else args.json).with_suffix(".png")
    args.md = args.md or (PAGE if ours else None)
    for flag, mark in (("json", '"trial"'), ("png", png_mark(SOFTWARE))):
        check_output(f"--{flag}", getattr(args, flag), mark)
    keep_memory()
    options = {key: getattr(args, key) for key in ("seed", "steps", "source", "subset_size")}
    with argument_errors(""):
        kept = read_kept(args.json) if args.json.exists() else {}
        for name in [] if args.plot else kept.keys() & TRIALS.keys():
            was = {key: kept[name]["settings"].get(key) for key in options}
            if was != options:  # side by side they would pass for comparable
                raise ValueError(f"--json: {args.json} has {name} with {was}, not {options}. Choose another --json.")
    for name in [] if args.plot else args.only or TRIALS:
        trial = TRIALS[name]
        settings = {"trial": trial._asdict(), **options}
        if kept.get(name, {}).get("settings") != settings:
            with argument_errors("--"):
                measured = run(trial, root=args.root, **options)
            kept[name] = {"settings": settings, **measured, "versions": versions("torch")}
            write_whole(args.json, json.dumps(kept, indent=1) + "\n")
        print(f"{name}: loss of the last ten steps {end(kept[name]['losses']):.3f}", flush=True)
    if kept:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.png, png_of(draw(kept), SOFTWARE))
        print(table(kept), end="")
        try:
            if args.md and args.md.exists():
                write_whole(args.md, markdown.between(args.md.read_text(encoding="utf-8"), "plateau", table(kept)))
        except ValueError as error:
            refuse(f"{args.md}: {error}.")


if __name__ == "__main__":
    with script():
        main()
