"""Find the training images nearest to any picture, by a trained network's fc7: the paper's Figure 4 (right) for photos.

python scripts/retrieve.py --ckpt_path logs/alexnet/version_0/checkpoints/best.ckpt --query cat.jpg holiday/
python scripts/retrieve.py --ckpt_path best.ckpt --query cat.jpg --k 10 --out cat.png

Writes a panel (``--out``) and a table beside it (``.csv``), whose ``index`` is the image's place in the training split.
A photo's centre square is reduced to 32x32 pixels and then treated as the DataModule treats a test image. Embedding the
training images takes the time; the result is kept in ``retrieval_cache/`` beside the checkpoint's folder.
"""

from __future__ import annotations

from running.start import script

# isort: split
import argparse
import csv
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from rich.console import Console
from rich.table import Table
from running.checkpoint import Checkpoint
from running.errors import ScriptParser, argument_errors, printable, reason, refuse
from running.outputs import check_output
from torch import Tensor
from tqdm import tqdm

from callbacks.checkpoints.files import damage, load_plain, read_regular, sidecar, write_checkpoint, write_whole
from callbacks.checkpoints.structure import all_finite, kind
from callbacks.pure.knn import nearest_neighbours
from callbacks.pure.retrieval_panel import retrieval_panel
from datamodules import CIFAR10DataModule
from datamodules.cifar10 import RawBatch
from datamodules.preprocessing import square
from lightning_modules import AlexNetClassifier

# By name: Pillow would otherwise guess among dozens, one of which runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000  # decoded, 300 MB
# What turns a picture upright, by its EXIF orientation; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SHOWN_QUERIES, SHOWN_NEIGHBOURS = 50, 12  # in the panel; the table has all
COLUMNS = ("query", "rank", "index", "class", "distance")  # rank from 1; index is the place in the training split
SOFTWARE = "Software", "retrieve.py"  # the panel's text in its PNG, by which it is known
Row = tuple[str, int, int, str, float]

# ---- photos ------------------------------------------------------------------------------------------------


def read_photo(path: Path) -> Tensor:
    """A picture of any size and mode as the data set has them: its centre square at 32x32 pixels.

    Turned as its EXIF says, laid on white where it is transparent; of an animation, the first picture.

    Args:
        path: A file in one of :data:`FORMATS`.

    Returns:
        ``(3, 32, 32)`` uint8 RGB. A picture of 32x32 pixels comes out as it is.

    Raises:
        ValueError: If it can't be read, or is too large to be decoded (by its header); one line that names it.
    """
    name = printable(path)
    if path.exists() and not path.is_file():  # a pipe would be read from for ever
        raise ValueError(f"{name}: not a regular file, expected a picture or a folder of pictures. Name one.")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and of odd EXIF
            with open_picture(file) as image:
                rgb = upright(image, as_rgb(image))
    except Image.DecompressionBombError as error:
        wrong = f"too large ({str(error).split(', could')[0]}), expected at most {MAX_PIXELS:,} pixels"
        raise ValueError(f"{name}: {wrong}. Make it smaller.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: no picture, expected one in {', '.join(FORMATS)}. Name one.") from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        wrong = f"can't be read ({' '.join(reason.split())}), expected a whole picture"
        raise ValueError(f"{name}: {wrong}. Name another.") from None
    return square(torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None])[0].contiguous()


def open_picture(file: BinaryIO) -> Image.Image:
    """Read a picture's header. A JPEG that is too large is one to be decoded at an eighth of its height and width.

    Raises:
        Image.DecompressionBombError: If it is too large even so.
    """
    start = file.read(3)
    file.seek(0)
    # Not by Image.open, which refuses pictures for their size before they can be made smaller.
    image = JpegImageFile(file) if start == b"\xff\xd8\xff" else Image.open(file, formats=FORMATS)
    size = "{}x{} pixels".format(*image.size)
    if image.width * image.height > MAX_PIXELS and not image.info.get("progressive"):  # that is decoded as a whole
        image.draft(None, (1, 1))
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(size)
    return image


def upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """The pixels ``rgb`` of a loaded image, turned as its EXIF says; as they are where that can't be read."""
    try:  # not ImageOps.exif_transpose, which writes the EXIF anew and fails at any tag that is odd
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises SyntaxError, ValueError, struct.error, ... on damaged EXIF
        return rgb
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def as_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: transparency on white, 16 bits a channel cut to 8."""
    image.load()  # which may turn a TIFF, or change its mode
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        numbers = "fractions" if image.mode == "F" else "numbers of 32 bits"
        raise ValueError(f"its pixels are {numbers}, of a scale that it does not tell")
    if image.mode.startswith("I"):  # one channel of 16 bits, which Pillow's own conversion would cut off at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def list_photos(words: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files to look for, each once: folders' pictures by name, files as they are named.

    Returns:
        The files, and a line for each thing in a folder that is passed over.

    Raises:
        ValueError: If there is no such file, or no picture in a folder.
    """
    found: list[Path] = []
    skipped: list[str] = []
    for word in words:
        if not word.exists():
            raise ValueError(f"{printable(word)}: there is no such file, expected a picture or a folder. Name one.")
        if not word.is_dir():
            found.append(word)
            continue
        entries = [path for path in sorted(word.iterdir()) if not path.name.startswith(".")]
        pictures = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.is_dir()]
        for path in entries:
            if path not in pictures:
                why = "a folder within a folder" if path.is_dir() else "not named like a picture"
                skipped.append(f"skipped: {printable(path)}: {why}")
        if not pictures:
            endings = ", ".join(SUFFIXES)
            raise ValueError(f"{printable(word)}: no pictures in this folder, expected {endings}. Name another.")
        found += pictures
    return list(dict.fromkeys(found)), skipped


def read_photos(words: Sequence[Path]) -> tuple[list[str], Tensor, list[str]]:
    """Names, pictures ``(Q, 3, 32, 32)`` uint8, and what was skipped. A bad file is refused, in a folder skipped.

    Raises:
        ValueError: As :func:`read_photo` and :func:`list_photos`; also if nothing is left.
    """
    paths, skipped = list_photos(words)
    names, photos = [], []
    for path in paths:
        try:
            photos.append(read_photo(path))
            names.append(printable(path))
        except ValueError as error:
            if path in words:
                raise
            skipped.append(f"skipped: {error}")
    if not photos:
        wrong = skipped[-1].removeprefix("skipped: ").partition(", expected")[0]
        raise ValueError(f"--query: no picture could be read ({wrong}), expected at least one. Name others.")
    return names, torch.stack(photos), skipped


# ---- the network, its gallery ------------------------------------------------------------------------------


def load(checkpoint: Checkpoint, root: str) -> tuple[AlexNetClassifier, CIFAR10DataModule]:
    """Make a checkpoint's network, ready to embed, and the data as it was trained on them; or refuse in one line.

    Args:
        checkpoint: What ``fit.py`` wrote.
        root: Folder with CIFAR-10.
    """
    path, settings = checkpoint.path, checkpoint.settings
    if not settings["data"] or not settings["model"] or checkpoint.statistics is None:
        refuse(f"{path}: does not say which images it was trained on. Use a checkpoint that fit.py wrote.")
    checkpoint.check_settings()
    model = AlexNetClassifier(**{**settings["model"], "compile": False})
    # Model and data agree on the size, so it is kept once.
    datamodule = CIFAR10DataModule(**settings["data"], image_size=model.net.image_size, root=root)
    model.load_state_dict(checkpoint.state_dict)
    datamodule.load_state_dict(checkpoint.statistics)
    with argument_errors("--"):  # --root is all that comes from the command line
        datamodule.setup("fit")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval(), datamodule


@torch.inference_mode()
def embed(model: AlexNetClassifier, datamodule: CIFAR10DataModule, images: Tensor, bar: str = "") -> Tensor:
    """fc7 of raw images, through the DataModule's own path for a test image.

    Args:
        model: In evaluation mode.
        datamodule: With the checkpoint's statistics.
        images: ``(N, 3, 32, 32)`` uint8.
        bar: What a progress bar says; empty for none.

    Returns:
        ``(N, 4096)`` float32 on the CPU.
    """
    features = []
    chunks = images.split(datamodule.batch_size)
    for chunk in tqdm(chunks, desc=bar, disable=None if bar else True, leave=False):
        chunk = chunk.to(model.device)
        labels = torch.zeros(len(chunk), dtype=torch.int64)
        inputs, _ = datamodule.on_after_batch_transfer(RawBatch(chunk, labels, labels, "centre"), 0)
        features.append(model.embed(inputs).flatten(1).float().cpu())
    return torch.cat(features)


# ---- the cache ---------------------------------------------------------------------------------------------


def gallery_digest(datamodule: CIFAR10DataModule, indices: Tensor, images: Tensor, device: str) -> str:
    """SHA-256 of all that the gallery's features depend on beside the checkpoint.

    Args:
        datamodule: What is done with an image.
        indices: ``(G,)`` int64 places of the images in the training split.
        images: ``(G, 3, 32, 32)`` uint8.
        device: Where they are embedded: a GPU rounds otherwise.
    """
    how = {key: getattr(datamodule, key) for key in ("crop_size", "image_size", "input_scale")}
    digest = hashlib.sha256(json.dumps([how, device, torch.__version__], sort_keys=True).encode())
    for tensor in (indices, images, *datamodule.statistics):
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def cache_folder(path: Path) -> Path:
    """``retrieval_cache`` in the run's folder; beside a checkpoint that lies elsewhere."""
    folder = path.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "retrieval_cache"


def read_cache(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Features ``shape`` (G, D) that were kept under ``key``; None, and a line on stderr, where they are damaged."""
    if not path.is_file():
        return None
    wrong = damage(path) if sidecar(path).is_file() else "no SHA-256 beside it"
    if wrong is None:
        try:
            kept = load_plain(read_regular(path))
            features: Tensor = kept["features"]
            fits = kept["key"] == key and kind(features) == shape and features.dtype == torch.float32
            if fits and all_finite(features):
                return features.contiguous()
            wrong = "of other images"
        except Exception as error:  # whatever it holds in place of features
            wrong = f"no features ({type(error).__name__})"
    print(printable(f"{path}: {wrong}; embedding the training images anew"), file=sys.stderr)
    return None


def gallery_features(
    model: AlexNetClassifier, datamodule: CIFAR10DataModule, ckpt_path: Path, images: Tensor
) -> tuple[Tensor, bool]:
    """The training images' fc7 ``(G, 4096)``, from the cache if it has them, and whether it had."""
    digest = gallery_digest(datamodule, datamodule.split.train, images, model.device.type)
    key = f"{hashlib.sha256(ckpt_path.read_bytes()).hexdigest()} {digest}"
    path = cache_folder(ckpt_path) / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.pt"
    kept = read_cache(path, key, (len(images), model.net.fc7.out_features))
    if kept is not None:
        return kept, True
    features = embed(model, datamodule, images, "embedding the training images")
    try:
        if path.parent.is_symlink():  # to a folder of other files, maybe
            raise OSError(0, "its folder is a link")
        write_checkpoint({"key": key, "features": features}, path)
    except OSError as error:
        why = reason(error.__cause__ or error)
        print(printable(f"{path}: can't be written ({why}); the next time takes as long"), file=sys.stderr)
    return features, False


# ---- what is shown -----------------------------------------------------------------------------------------


def table_rows(names: Sequence[str], distances: Tensor, indices: Tensor, classes: Sequence[str]) -> list[Row]:
    """The table: query by query, nearest first.

    Args:
        names: Of the Q queries.
        distances: ``(Q, k)``.
        indices: ``(Q, k)`` places in the training split.
        classes: The name of each training image's class.
    """
    return [
        (name, rank, index, classes[index], distance)
        for name, *row in zip(names, indices.tolist(), distances.tolist(), strict=True)
        for rank, (index, distance) in enumerate(zip(*row, strict=True), start=1)
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """The table as a file: ``query,rank,index,class,distance``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*row[:4], f"{row[4]:.6g}"] for row in rows)
    return text.getvalue()


def print_table(rows: Sequence[Row]) -> None:
    """Print the table to the console, with a rule after each query's last neighbour."""
    table = Table(*COLUMNS)
    k = max(rank for _, rank, *_ in rows)
    for row in rows:
        table.add_row(*map(str, row[:4]), f"{row[4]:#.4g}", end_section=row[1] == k)
    Console(markup=False, emoji=False).print(table)  # a file may be called [red].png


def short_names(names: Sequence[str]) -> list[str]:
    """What the panel calls each file: its name, with as many folders before it as tell all of them apart."""
    paths = [Path(name).parts for name in names]
    lengths = range(1, max(map(len, paths)) + 1)
    candidates = [[str(Path(*parts[-length:])) for parts in paths] for length in lengths]
    return next((short for short in candidates if len(set(short)) == len(short)), candidates[-1])


# ---- the command line --------------------------------------------------------------------------------------


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked before anything that takes time."""
    parser = ScriptParser("retrieve.py", __doc__)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="a checkpoint that fit.py wrote")
    parser.add_argument("--query", type=Path, nargs="+", required=True, metavar="PATH", help="pictures, or folders")
    parser.add_argument("--k", type=int, default=6, help="neighbours of each; 6 in the paper's Figure 4")
    parser.add_argument("--out", type=Path, default=Path("retrieval.png"), help="the panel; the table lies beside it")
    parser.add_argument("--root", default="data", help="folder with CIFAR-10, as fit.py's --data.root")
    options = parser.parse_args(words)
    if options.k < 1:
        parser.error(f"--k: {options.k}, expected 1 or more")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        parser.error(f"--out: {options.out}, expected a file that ends in .png")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out: {options.out}, expected a file in a folder that is there")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Retrieve the neighbours of the pictures on the command line; None takes it from ``sys.argv``."""
    options = parse(words)
    with argument_errors(""):
        outputs = {options.out: "\0".join(SOFTWARE), options.out.with_suffix(".csv"): ",".join(COLUMNS)}
        inputs, _ = list_photos(options.query)
        for output, mark in outputs.items():
            check_output("--out", output, mark, inputs)
        names, photos, skipped = read_photos(options.query)
        for line in skipped:
            print(line, file=sys.stderr)
        checkpoint = Checkpoint.read(options.ckpt_path)
        path = checkpoint.path
        model, datamodule = load(checkpoint, options.root)
        images, targets = datamodule.images_in("train")
        split = datamodule.split.train
        gallery = images[split]  # (G, 3, 32, 32)
        if options.k > len(gallery):
            refuse(f"--k: {options.k}, expected at most {len(gallery)}, the images of {path}. Choose fewer.")
        features, cached = gallery_features(model, datamodule, path, gallery)
        queries = embed(model, datamodule, photos)
        if not bool(features.isfinite().all() and queries.isfinite().all()):
            refuse(f"{path}: features are NaN or infinite, expected finite ones. Use another checkpoint.")
        distances, places = nearest_neighbours(queries, features, options.k)  # (Q, k)

        rows = table_rows(names, distances, split[places], [datamodule.class_names[t] for t in targets.tolist()])
        shown = places[:SHOWN_QUERIES, :SHOWN_NEIGHBOURS]
        panel = retrieval_panel(
            photos[: len(shown)].float() / 255,
            gallery[shown].float() / 255,
            [None] * len(shown),
            targets[split[shown]].tolist(),
            distances[:SHOWN_QUERIES, :SHOWN_NEIGHBOURS].tolist(),
            datamodule.class_names,
            "your pictures, at the data set's 32x32 pixels",
            query_names=short_names(names[: len(shown)]),
        )
        picture, text = io.BytesIO(), PngImagePlugin.PngInfo()
        text.add_text(*SOFTWARE)
        Image.fromarray(panel.permute(1, 2, 0).numpy()).save(picture, "PNG", pnginfo=text)
        write_whole(options.out, picture.getvalue())
        write_whole(options.out.with_suffix(".csv"), as_csv(rows))
    print_table(rows[: len(shown) * options.k])
    if shown.shape != places.shape:
        rows_shown, columns_shown = shown.shape
        print(f"shown: {rows_shown} of {len(names)} queries; in the panel {columns_shown} of {options.k} neighbours")
    print(printable(f"written: {options.out}, {options.out.with_suffix('.csv')}"))
    origin = "cached" if cached else "now embedded"
    print(f"{datamodule.description}: {len(gallery):,} training images ({origin})")


if __name__ == "__main__":
    with script():
        main()
