"""Pictures of any kind, read as the data set has its images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from datamodules.preprocessing import square
from datamodules.sources.common import printable, progress_bar

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


class Photos(NamedTuple):
    """Pictures as the data set has its images, 3 KB each."""

    names: list[str]  # of their files, as they are
    images: Tensor  # (N, 3, 32, 32) uint8
    skipped: list[str]  # a line for each file and folder that was passed over


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


def read_photos(words: Sequence[Path]) -> Photos:
    """All pictures of files and folders; a bar on a terminal. A bad file is refused, in a folder skipped.

    Raises:
        ValueError: As :func:`read_photo` and :func:`list_photos`; also if nothing is left.
    """
    paths, skipped = list_photos(words)
    names, photos = [], []
    for path in progress_bar(paths, desc="Reading pictures", unit="picture"):
        try:
            photos.append(read_photo(path))
            names.append(str(path))
        except ValueError as error:
            if path in words:
                raise
            skipped.append(f"skipped: {error}")
    if not photos:
        wrong = skipped[-1].removeprefix("skipped: ").partition(", expected")[0]
        raise ValueError(f"photo: no picture could be read ({wrong}), expected at least one. Name others.")
    return Photos(names, torch.stack(photos), skipped)
