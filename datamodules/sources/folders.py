"""CIFAR-10 in class folders, ``train/<class>/*.png`` and the like: decoded once, then read from a cache."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import stat
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from datamodules.sources.common import (
    SPLIT_SIZES,
    DataError,
    LabelledImages,
    Split,
    class_folders,
    open_regular,
    printable,
    progress_bar,
    reason,
    write_then_replace,
)

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")
REPLACE = "Replace or delete it"


def load_folders(root: Path, split: Split) -> LabelledImages:
    """Read ``root/<split>/<class>/*``, a class by its name or number: in label order, then by file name."""
    files = _list_images(root / split)
    if len(files) != SPLIT_SIZES[split]:
        log.warning("%s: %d images, CIFAR-10 has %d", root / split, len(files), SPLIT_SIZES[split])
    labels = {folder: label for label, folder in enumerate(class_folders(root / split))}
    targets = torch.tensor([labels[path.parent] for path in files])  # (N,) int64
    return LabelledImages(read_images(files, root, split), targets)


def read_images(files: dict[Path, os.stat_result], root: Path, split: Split) -> Tensor:
    """Image files below ``root`` as ``(N, 3, 32, 32)`` uint8 RGB: decoded once, then read from ``root/.cache``."""
    cache, fingerprint = root / ".cache" / f"{split}.npz", _fingerprint(files, root)
    images = _read_cache(cache, fingerprint, (len(files), 3, 32, 32))
    if images is None:
        images = _decode(list(files), split)
        _write_cache(cache, fingerprint, images)
    return torch.from_numpy(images)


def _list_images(folder: Path) -> dict[Path, os.stat_result]:
    files: dict[Path, os.stat_result] = {}
    entries, kinds, classes = 0, "/".join(SUFFIXES), class_folders(folder)
    for class_folder in classes:
        remedy = f"Put the images of class {class_folder.name} there"
        try:
            paths = [class_folder / entry for entry in sorted(os.listdir(class_folder))]
        except OSError as error:
            raise DataError(class_folder, f"{reason(error)}, expected a folder of {kinds} files", remedy) from error
        found = {path: info for path in paths if (info := image_file(path))}
        if not found:
            raise DataError(class_folder, f"no {kinds} files, expected at least one", remedy)
        entries += len(paths)
        files |= found
    others = set(os.listdir(folder)) - {class_folder.name for class_folder in classes}
    for count, why in ((entries - len(files), "hidden or not images"), (len(others), "not among the ten classes")):
        if count:
            log.warning("%s: entries ignored: %d (%s)", folder, count, why)
    return files


def image_file(path: Path) -> os.stat_result | None:
    """None for what is no image by its name, and for folders: a link that goes round in circles is harmless."""
    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
        return None
    try:
        info = path.stat()
    except OSError as error:  # a link to nowhere, or to itself
        raise DataError(path, f"{reason(error)}, expected an image", REPLACE) from error
    if stat.S_ISDIR(info.st_mode):
        return None
    if not stat.S_ISREG(info.st_mode):  # a pipe would be read from for ever
        raise DataError(path, "not a regular file, expected an image", REPLACE)
    return info


def _decode(paths: list[Path], split: Split) -> np.ndarray:
    # One thread: Pillow's overhead per image holds the GIL, and two or four threads measured slower than one.
    images = np.empty((len(paths), 3, 32, 32), dtype=np.uint8)
    modes = Counter[str]()
    for i, path in enumerate(progress_bar(paths, desc=f"Decoding {split} images", unit="image")):
        pixels, mode = _decode_one(path)  # (32, 32, 3)
        images[i] = pixels.transpose(2, 0, 1)  # (3, 32, 32)
        modes[mode] += 1
    del modes["RGB"]
    if modes:
        named = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
        log.warning("%s: %d of %d images converted to RGB (%s)", split, modes.total(), len(paths), named)
    return images


def _decode_one(path: Path) -> tuple[np.ndarray, str]:
    """One image file to pixels ``(32, 32, 3)`` uint8 RGB, and the mode they were stored in."""
    try:
        with path.open("rb") as file:
            head = file.read(25)
            file.seek(0)
            # Two formats by name: Pillow would otherwise guess among dozens, one of which runs Ghostscript.
            with Image.open(file, formats=("PNG", "JPEG")) as image:  # reads the header only
                # Byte 24 of a PNG is its bit depth. The mode doesn't tell: Pillow cuts 16-bit colour to 8.
                if image.size != (32, 32):
                    wrong = f"{image.width}x{image.height} pixels, expected 32x32"
                elif image.format == "PNG" and head[24] == 16:
                    wrong = "16 bits per channel, expected 8"
                else:
                    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), image.mode
    except Image.DecompressionBombError:
        wrong = "far too many pixels, expected 32x32"
    except Image.UnidentifiedImageError:
        wrong = "not a PNG or JPEG image (or empty), expected one"
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        wrong = f"can't be read ({reason(error)}), expected a whole image"
    raise DataError(path, wrong, REPLACE)


def _fingerprint(files: dict[Path, os.stat_result], root: Path) -> str:
    """Changes whenever a file is added, removed, renamed or written to, or the decoder is another."""
    digest = hashlib.sha256(f"pillow {PIL.__version__}\n".encode())
    for path, info in files.items():
        relative = str(path).removeprefix(str(root))  # so that the folder may move
        digest.update(os.fsencode(f"{relative}\0{info.st_size}\0{info.st_mtime_ns}\n"))
    return digest.hexdigest()


def _read_cache(cache: Path, fingerprint: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if not os.path.isfile(cache):
        return None
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open_regular(cache, 2 * math.prod(shape) + 10_000) as file:
            with zipfile.ZipFile(file) as members:  # stored as they are: others might unpack to more than there is room
                if sum(member.file_size for member in members.infolist()) > os.fstat(file.fileno()).st_size:
                    raise ValueError("compressed")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                if str(arrays["fingerprint"]) != fingerprint:
                    return None
                images: np.ndarray = arrays["images"]
                if (images.dtype, images.shape) == (np.uint8, shape) and str(arrays["digest"]) == _digest(images):
                    return images
        raise ValueError("not the pixels that were kept")
    except Exception as error:  # zipfile, zlib and numpy raise many kinds; whichever, the images are still there
        log.info("%s: damaged (%s), decoding the images anew", printable(cache), printable(reason(error)))
        return None


def _digest(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def _write_cache(cache: Path, fingerprint: str, images: np.ndarray) -> None:
    try:
        if cache.parent.is_symlink():  # to a folder of other files, maybe
            raise OSError("its folder is a link")
        cache.parent.mkdir(exist_ok=True)
        with write_then_replace(cache) as file:
            np.savez(file, fingerprint=np.array(fingerprint), digest=np.array(_digest(images)), images=images)
    except OSError as error:
        why = reason(error)
        log.info("%s: can't be written (%s), the images will be decoded again next time", printable(cache), why)
