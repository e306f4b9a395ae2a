"""Say what a trained network makes of your own pictures: the paper's Figure 4, both halves, and where it looks.

python scripts/predict.py --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt cat.jpg holiday/
python scripts/predict.py --ckpt_path best.ckpt cat.jpg --test_crops 10 --k 10 --out cat.png

Writes a panel (``--out``) with a row for each picture: its five most probable labels, the evidence for the first
(Grad-CAM, with ``pip install -e ".[explain]"``), and the nearest training images by fc7, where the data are there. The
same lies beside it as ``.csv`` and ``.json``; ``index`` is an image's place in the training split. A photo's centre
square is reduced to 32x32 pixels and then treated as a test image. Embedding the training images takes the time; the
result is kept in ``retrieval_cache/`` beside the checkpoint's folder.
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import io
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from rich.console import Console
from rich.table import Table
from running.checkpoint import Checkpoint
from running.errors import ScriptParser, argument_errors, flagged, printable, refuse
from running.gallery import check_same_classes, embed, gallery_of, load, probabilities_of, seen_and_heat
from running.outputs import check_output, check_place, png_mark
from running.predictions import COLUMNS, Row, as_csv, rows_of
from torch import Tensor

from callbacks.checkpoints.files import write_whole
from callbacks.checkpoints.structure import all_finite
from callbacks.pure.knn import nearest_neighbours
from callbacks.pure.photo_panel import photo_panel
from datamodules import CIFAR10DataModule
from datamodules.photos import list_photos, read_photos
from lightning_modules import AlexNetClassifier

SHOWN_PHOTOS, SHOWN_NEIGHBOURS = 50, 12  # in the panel; the files have all neighbours
SOFTWARE = "predict.py"  # by which the files are known


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked before anything that takes time."""
    parser = ScriptParser("predict.py", __doc__)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint that fit.py wrote")
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="pictures, or folders of them")
    parser.add_argument("--k", type=int, default=6, help="neighbours of each; 6 in the paper's Figure 4, 0 for none")
    parser.add_argument("--test_crops", type=int, choices=(1, 10), default=1, help="10: section 4.1's ten crops")
    parser.add_argument("--out", type=Path, default=Path("predictions.png"), help="the panel; the files lie beside it")
    parser.add_argument("--root", default="data", help="folder with CIFAR-10, as fit.py's --data.root")
    options = parser.parse_args(words)
    if options.k < 0:
        parser.error(f"--k: {options.k}, expected 0 or more")
    check_place(parser, "--out", options.out, ".png")
    return options


def neighbours_of(
    model: AlexNetClassifier, datamodule: CIFAR10DataModule, checkpoint: Checkpoint, photos: Tensor, k: int
) -> dict[str, Any]:
    """The ``k`` nearest training images of each picture; nothing, and a line that says so, where there are no data."""
    queries = embed(model, datamodule, photos)  # (Q, D)
    try:
        check_same_classes(checkpoint, datamodule)
        gallery, cached = gallery_of(model, datamodule, checkpoint, queries.shape[1], k)
    except ValueError as error:
        print(printable(f"no neighbours: {flagged(str(error), '--')}"), file=sys.stderr)
        return {}
    if not (all_finite(gallery.features) and all_finite(queries)):
        refuse(f"{checkpoint.path}: features are NaN or infinite, expected finite ones. Use another checkpoint.")
    distances, near = nearest_neighbours(queries, gallery.features, k)  # (Q, k)
    names = [[datamodule.class_names[i] for i in row] for row in gallery.targets[near].tolist()]
    origin = "cached" if cached else "now embedded"
    print(f"{datamodule.description}: {len(gallery.places):,} training images ({origin})")
    images = gallery.images[near[:SHOWN_PHOTOS, :SHOWN_NEIGHBOURS]]
    return {"distances": distances.tolist(), "names": names, "indices": gallery.places[near], "images": images}


def as_json(
    path: Path, names: Sequence[str], probabilities: Tensor, classes: Sequence[str], found: dict[str, Any]
) -> str:
    """What :func:`rows_of` is given for programs: every label's probability, of the checkpoint at ``path``."""
    keys, none = ("class", "distance", "index"), [()] * len(names)
    near = (found["names"], found["distances"], found["indices"].tolist()) if found else (none, none, none)
    pictures = [
        {
            "picture": name,
            "probabilities": dict(zip(classes, values.tolist(), strict=True)),
            "neighbours": [dict(zip(keys, one, strict=True)) for one in zip(*its, strict=True)],
        }
        for name, values, *its in zip(names, probabilities, *near, strict=True)
    ]
    return json.dumps({"software": SOFTWARE, "checkpoint": str(path), "pictures": pictures}, indent=2) + "\n"


def print_table(rows: Sequence[Row]) -> None:
    """Print what is said of each picture, and its nearest neighbour, to the console."""
    table = Table("picture", "label", "probability", "nearest", "distance")
    for row in rows:
        if row[1] == "label" and row[2] == 1:
            near = next((r for r in rows if r[0] == row[0] and r[1:3] == ("neighbour", 1)), None)
            table.add_row(row[0], row[3], f"{100 * row[4]:.1f} %", *((near[3], f"{near[4]:#.4g}") if near else "--"))
    Console(markup=False, emoji=False).print(table)  # a file may be called [red].png


def short_names(names: Sequence[str]) -> list[str]:
    """What the panel calls each file: its name, with as many folders before it as tell all of them apart."""
    paths = [Path(name).parts for name in names]
    lengths = range(1, max(map(len, paths)) + 1)
    candidates = [[str(Path(*parts[-length:])) for parts in paths] for length in lengths]
    return next((short for short in candidates if len(set(short)) == len(short)), candidates[-1])


def main(words: Sequence[str] | None = None) -> None:
    """Say what there is to say of the pictures on the command line; None takes it from ``sys.argv``."""
    options = parse(words)
    with argument_errors(""):
        marks = {".png": png_mark(SOFTWARE), ".csv": ",".join(COLUMNS), ".json": f'"software": "{SOFTWARE}"'}
        inputs, _ = list_photos(options.photos)
        for ending, mark in marks.items():
            check_output("--out", options.out.with_suffix(ending), mark, inputs)
        files, photos, skipped = read_photos(options.photos)
        names = [printable(file) for file in files]
        for line in skipped:
            print(line, file=sys.stderr)
        checkpoint = Checkpoint.read(options.ckpt_path)
        path = checkpoint.path
        model, datamodule = load(checkpoint, options.root, options.test_crops)
        probabilities = probabilities_of(checkpoint, model, datamodule, photos)
        classes = checkpoint.class_names
        found = neighbours_of(model, datamodule, checkpoint, photos, options.k) if options.k else {}
        shown = photos[:SHOWN_PHOTOS]
        seen, heat = None, None
        if find_spec("captum"):
            seen, heat = seen_and_heat(model, datamodule, shown, probabilities[: len(shown)].argmax(1))
        else:
            print('no evidence: captum is not there. Run pip install -e ".[explain]".', file=sys.stderr)

        rows = rows_of(names, probabilities, classes, found)
        panel = photo_panel(
            shown.float() / 255,
            short_names(names[: len(shown)]),
            probabilities,
            classes,
            seen,
            heat,
            found["images"].float() / 255 if found else None,
            found.get("names", ()),
            found.get("distances", ()),
            "your pictures, at the data set's 32x32 pixels",
        )
        picture, text = io.BytesIO(), PngImagePlugin.PngInfo()
        text.add_text("Software", SOFTWARE)
        Image.fromarray(panel.permute(1, 2, 0).numpy()).save(picture, "PNG", pnginfo=text)
        contents: dict[str, bytes | str] = {".png": picture.getvalue(), ".csv": as_csv(rows)}
        contents[".json"] = as_json(path, names, probabilities, classes, found)
        for ending, content in contents.items():
            write_whole(options.out.with_suffix(ending), content)
    print_table([row for row in rows if row[0] in names[: len(shown)]])
    k = options.k if found else 0
    if len(shown) < len(names) or k > SHOWN_NEIGHBOURS:
        neighbours = f"; in the panel {min(k, SHOWN_NEIGHBOURS)} of {k} neighbours" if k else ""
        print(f"shown: {len(shown)} of {len(names)} pictures{neighbours}")
    print(printable(f"written: {', '.join(str(options.out.with_suffix(ending)) for ending in contents)}"))


if __name__ == "__main__":
    with script():
        main()
