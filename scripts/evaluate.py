"""Test a network on more than the test set: on it made worse, and on other images of the same classes.

python scripts/evaluate.py --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt
python scripts/evaluate.py --ckpt_path best.ckpt --baseline no_lrn.ckpt --data cifar-10.1/ --images 2000

Top-1 and top-5 of the test split, of five corruptions of it at five strengths each (`datamodules/corruptions.py`: not
CIFAR-10-C's), and of each folder of ``--data``, in a layout that fit.py reads or as CIFAR-10.1's .npy files. One centre
crop. The mean corruption error is the mean of the five kinds', each its errors at all strengths as a share of the
baseline's. Writes ``evaluation.json``, ``.csv`` and ``.png`` (``--out``).
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from running.checkpoint import Checkpoint
from running.errors import ScriptParser, argument_errors, printable, refuse
from running.figures import percent
from running.gallery import check_same_classes, load, probabilities_of
from running.outputs import check_output, check_place, csv_text, png_mark, png_of
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoints.files import write_whole
from datamodules.corruptions import CORRUPTIONS
from datamodules.sources import CLASSES, find_cifar10, load_cifar10
from datamodules.sources.arrays import load_arrays
from datamodules.subset import alternating

SOFTWARE = "evaluate.py"  # by which the files are known
COLUMNS = ("images", "strength", "size", "top1", "top5", "baseline_top1")


class Score(NamedTuple):
    """How many of some images were right."""

    images: str  # "test", a corruption, or a folder's name
    strength: float | None  # a corruption's
    size: int
    top1: float
    top5: float


def score(probabilities: Tensor, targets: Tensor) -> tuple[float, float]:
    """Top-1 and top-5, in ``[0, 1]``, of probabilities ``(N, C)`` and labels ``(N,)``."""
    best = probabilities.topk(5, dim=1).indices
    right = best == targets[:, None]
    return float(right[:, 0].double().mean()), float(right.any(1).double().mean())


def scores_of(
    checkpoints: Sequence[Checkpoint], root: str, folders: Mapping[str, tuple[Tensor, Tensor]], most: int | None
) -> list[list[Score]]:
    """All of each checkpoint's scores: the test split, its corruptions, the folders."""
    networks = [load(checkpoint, root, 1) for checkpoint in checkpoints]
    for checkpoint, (_, data) in zip(checkpoints, networks, strict=True):
        check_same_classes(checkpoint, data)
    if folders and data.class_names != CLASSES:
        raise ValueError(f"data: images of CIFAR-10's classes, which are not {checkpoint.path}'s. Leave it out.")
    images, targets = data.images_in("test")  # of one root and the same classes, so the same to all
    chosen = alternating(targets, torch.arange(len(targets)))[:most]  # a sample of all classes
    images, targets = images[chosen], targets[chosen]
    sets: list[tuple[str, float | None]] = [("test", None)]
    sets += [(name, strength) for name, (_, strengths) in CORRUPTIONS.items() for strength in strengths]
    found: list[list[Score]] = [[] for _ in networks]
    for name, strength in tqdm([*sets, *((name, None) for name in folders)], desc="testing", disable=None, leave=False):
        seen = images if strength is None else CORRUPTIONS[name][0](images, strength)
        seen, labels = folders.get(name, (seen, targets))
        for scores, checkpoint, network in zip(found, checkpoints, networks, strict=True):
            said = probabilities_of(checkpoint, *network, seen)
            scores.append(Score(name, strength, len(seen), *score(said, labels)))
    return found


def corruption_error(ours: Sequence[Score], baseline: Sequence[Score]) -> float:
    """The mean over kinds of our errors at all strengths, as a share of the baseline's: 1 where both are alike."""

    def errors(scores: Sequence[Score], kind: str) -> float:
        return sum((1 - s.top1) * s.size for s in scores if s.images == kind and s.strength is not None)

    # As if a baseline without an error had one.
    return statistics.fmean(errors(ours, kind) / max(1, errors(baseline, kind)) for kind in CORRUPTIONS)


def read_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """The test images of a folder, and their labels."""
    if not folder.is_dir():
        raise ValueError(f"--data: {folder}, expected a folder of images. Name one.")
    if arrays := load_arrays(folder):
        return arrays
    layout = find_cifar10(folder)
    if layout is None:
        expected = "*_data.npy with *_labels.npy, or CIFAR-10 in a layout that fit.py reads"
        raise ValueError(f"--data: {folder} holds no images that are read, expected {expected}. Name another.")
    return load_cifar10(layout, "test")


def figure_of(ours: Sequence[Score], baseline: Sequence[Score]) -> Figure:
    """Top-1 over the strength of each corruption, with the uncorrupted test at 0."""
    figure = Figure(figsize=(11, 3), dpi=120, layout="constrained")
    for place, (axis, kind) in enumerate(
        zip(figure.subplots(1, len(CORRUPTIONS), sharey=True), CORRUPTIONS, strict=True)
    ):
        for label, scores, style in (("this network", ours, "o-"), ("baseline", baseline, "s--")):
            values = [s.top1 for s in scores if s.images == "test" or (s.images == kind and s.strength is not None)]
            if values:
                axis.plot(range(len(values)), values, style, label=label, markersize=4)
        axis.set(title=kind, xlabel="strength", ylabel="" if place else "test top-1")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
    if baseline:
        axis.legend(fontsize=8, frameon=False)
    return figure


def as_csv(ours: Sequence[Score], baseline: Sequence[Score]) -> str:
    """The table as a file."""
    theirs: list[float | None] = [found.top1 for found in baseline] or [None] * len(ours)
    return csv_text([COLUMNS, *([*found, top1] for found, top1 in zip(ours, theirs, strict=True))])


def print_table(ours: Sequence[Score], baseline: Sequence[Score]) -> None:
    """A row for the test, for each corruption its five strengths, and for each folder."""
    table = Table("images", "top-1", "top-5", *(["baseline top-1"] if baseline else []))
    for name in dict.fromkeys(found.images for found in ours):
        places = [i for i, found in enumerate(ours) if found.images == name]
        cells = [", ".join(percent([getattr(ours[i], part)]) for i in places) for part in ("top1", "top5")]
        cells += [", ".join(percent([baseline[i].top1]) for i in places)] if baseline else []
        table.add_row(f"{name}, {ours[places[0]].size:,}", *cells)
    Console(markup=False, emoji=False).print(table)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked before anything that takes time."""
    parser = ScriptParser("evaluate.py", __doc__)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint that fit.py wrote")
    parser.add_argument("--baseline", type=Path, metavar="CKPT", help="another, which the errors are held against")
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="other images to test on")
    parser.add_argument("--images", type=int, help="so many of the test split's; a quick look (default: all)")
    parser.add_argument("--out", type=Path, default=Path("evaluation.json"), help="figures; .csv and .png lie beside")
    parser.add_argument("--root", default="data", help="folder with CIFAR-10, as fit.py's --data.root")
    options = parser.parse_args(words)
    if options.images is not None and options.images < 1:
        parser.error(f"--images: {options.images}, expected 1 or more")
    check_place(parser, "--out", options.out, ".json")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Test, and write down what came of it."""
    options = parse(words)
    with argument_errors("--"):
        marks = {".json": f'"software": "{SOFTWARE}"', ".csv": ",".join(COLUMNS), ".png": png_mark(SOFTWARE)}
        for ending, mark in marks.items():
            check_output("--out", options.out.with_suffix(ending), mark)
        folders = {path.resolve().name: read_folder(path) for path in options.data}
        if len(folders) < len(options.data):
            refuse("--data: two folders of one name, expected a name for each. Rename one.")
        if clash := folders.keys() & {"test", *CORRUPTIONS}:
            refuse(f"--data: {clash.pop()}, expected another name than a corruption's. Rename the folder.")
        given = {"--ckpt_path": options.ckpt_path, "--baseline": options.baseline}
        checkpoints = [Checkpoint.read(path, flag) for flag, path in given.items() if path]
        names = [checkpoint.class_names for checkpoint in checkpoints]
        if names[0] != names[-1]:
            refuse(f"--baseline: {options.baseline}, of other classes than {options.ckpt_path}. Name another.")
        ours, *others = scores_of(checkpoints, options.root, folders, options.images)
        baseline = others[0] if others else []
        figures: dict[str, Any] = {
            "software": SOFTWARE,
            "checkpoint": str(options.ckpt_path),
            "baseline": str(options.baseline) if options.baseline else None,
            "mean_corruption_error": corruption_error(ours, baseline) if baseline else None,
            "scores": [found._asdict() for found in ours],
            "baseline_scores": [found._asdict() for found in baseline],
        }
        contents: dict[str, bytes | str] = {".json": json.dumps(figures, indent=2) + "\n"}
        contents[".csv"] = as_csv(ours, baseline)
        contents[".png"] = png_of(figure_of(ours, baseline), SOFTWARE)
        for ending, content in contents.items():
            write_whole(options.out.with_suffix(ending), content)
    print_table(ours, baseline)
    if baseline:
        print(f"mean corruption error: {100 * figures['mean_corruption_error']:.1f} % of the baseline's")
    print(printable(f"written: {', '.join(str(options.out.with_suffix(ending)) for ending in marks)}"))


if __name__ == "__main__":
    with script():
        main()
