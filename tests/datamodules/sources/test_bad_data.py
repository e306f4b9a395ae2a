"""Damaged data as ``fit.py`` meets them: refused in one line, or accepted with a count."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.official import Official, python2_pickle
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from PIL import Image

from datamodules.sources import ARCHIVE, BATCHES, CLASSES

Fit = Callable[..., int]
DATA = [
    "--data.source=cifar10",
    "--data.root=images",
    "--data.download=false",
    "--data.subset_size=20",
    "--data.val_size=10",
]
ONE = Path("images/train/cat/1.png")


@pytest.fixture
def folders() -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in CLASSES:
            folder = Path("images") / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def sixteen_bits() -> bytes:
    """A PNG of 32x32 in 16-bit grey, which Pillow cuts to 8 or clips."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32), 999, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def giant() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels, and nothing else."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def replace(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an empty file": (lambda: replace(ONE, b""), f"{ONE}: not a PNG or JPEG image (or empty)"),
    "half a file": (lambda: replace(ONE, ONE.read_bytes()[:900]), f"{ONE}: can't be read"),
    "not an image": (lambda: replace(ONE, b"<html>404</html>" * 99), f"{ONE}: not a PNG or JPEG image"),
    "16 bits": (lambda: replace(ONE, sixteen_bits()), f"{ONE}: 16 bits per channel, expected 8"),
    "giant": (lambda: replace(ONE, giant()), f"{ONE}: "),
    "another size": (lambda: Image.new("RGB", (64, 48)).save(ONE), f"{ONE}: 64x48 pixels, expected 32x32"),
    "a link in a circle": (lambda: link_to_itself(ONE), f"{ONE}: "),
    "a class is missing": (lambda: shutil.rmtree("images/train/frog"), "images/train/frog: "),
    "an empty class": (lambda: [p.unlink() for p in Path("images/test/frog").iterdir()], "images/test/frog: "),
    "no test images": (lambda: shutil.rmtree("images/test"), "images/test/airplane: "),
    "a file for a folder": (lambda: (shutil.rmtree("images"), Path("images").touch()), "root: images is a file"),
    "too few for validation": (lambda: ONE.unlink(), "expected at most 30, as many in each class"),
}


@pytest.mark.usefixtures("small_net", "folders")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(refused: Callable[..., str], case: str) -> None:
    harm, message = REFUSED[case]
    harm()
    more = ["--data.subset_size=30"] if case.startswith("too few") else []
    assert message in refused(*DATA, *UNSEEN, *more)


@pytest.mark.usefixtures("small_net", "folders")
def test_accepted_with_a_count(fit: Fit, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Converted modes, an extra folder, and an image of the training set among the test images."""
    for i, mode in enumerate(("L", "RGBA", "P")):
        Image.new(mode, (32, 32), 7).save(f"images/train/cat/{i}.png")
    Image.new("CMYK", (32, 32)).save("images/train/dog/9.jpg")
    Path("images/train/__MACOSX").mkdir()
    for name in CLASSES:  # whichever of them the subset takes
        for i in range(4):
            shutil.copy(f"images/train/{name}/{i}.png", f"images/test/{name}/copy{i}.png")
    assert fit(*DATA, *UNSEEN, "--trainer.max_epochs=1") == 0
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "4 of 41 images converted to RGB (1 CMYK, 1 L, 1 P, 1 RGBA)" in logged
    assert "entries ignored: 1 (not among the ten classes)" in logged
    assert "20 of the 60 test images are also among those to train on" in capsys.readouterr().out


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran.txt", "w")


ZEROS = np.zeros((2, 3072), np.uint8)
HOME = Path("images")
BATCH = HOME / BATCHES / "data_batch_3"


def batch(official: Official, raw: bytes) -> None:
    """Official files of which one is these bytes, and is expected to be."""
    official.files[BATCH.name] = raw
    official.expect_these()
    official.write_batches(HOME)


def unverified(official: Official) -> None:
    """Likewise, but the MD5 is not the official one."""
    official.files[BATCH.name] = pickle.dumps({b"data": Evil(), b"labels": []})
    official.write_batches(HOME)


def flipped(official: Official) -> None:
    official.write_batches(HOME)
    raw = bytearray(BATCH.read_bytes())
    raw[700] ^= 1
    BATCH.write_bytes(raw)


def another(official: Official) -> None:
    official.files[BATCH.name] += b"x"
    official.write_archive(HOME)


BY_MD5 = "damaged, its MD5 is "
OFFICIAL: dict[str, tuple[Callable[[Official], object], str]] = {
    "a batch file is missing": (
        lambda o: (o.write_batches(HOME).path / "data_batch_4").unlink(),
        "data_batch_4: No such file or directory, expected an official file",
    ),
    "a flipped bit": (flipped, f"{BATCH}: {BY_MD5}"),
    "a pickle that runs code": (
        lambda o: batch(o, pickle.dumps({b"data": Evil(), b"labels": []})),
        f"{BATCH}: not a CIFAR-10 batch (UnpicklingError: it asks for io.open)",
    ),
    "a pickle that runs code, unverified": (unverified, f"{BATCH}: {BY_MD5}"),
    "an empty batch file": (lambda o: batch(o, b""), f"{BATCH}: not a CIFAR-10 batch"),
    "wrong shape": (
        lambda o: batch(o, python2_pickle(ZEROS[:, :-1], [0, 1])),
        f"{BATCH}: uint8 (2, 3071) with 2 labels from 0 to 1, expected uint8 (n, 3072)",
    ),
    "label 10": (
        lambda o: batch(o, python2_pickle(ZEROS, [0, 10])),
        f"{BATCH}: uint8 (2, 3072) with 2 labels from 0 to 10, expected",
    ),
    "label -100": (
        lambda o: batch(o, python2_pickle(ZEROS, [0, -100])),
        f"{BATCH}: uint8 (2, 3072) with 2 labels from -100 to 0, expected",
    ),
    "a label too few": (lambda o: batch(o, python2_pickle(ZEROS, [0])), f"{BATCH}: uint8 (2, 3072) with 1 labels"),
    "half an archive": (
        lambda o: o.write_archive(HOME, o.archive_bytes()[:-500]),
        f"{HOME / ARCHIVE}: can't be read",
    ),
    "another archive": (another, f"{HOME / ARCHIVE / BATCHES / 'data_batch_3'}: {BY_MD5}"),
    "an empty archive": (lambda o: o.write_archive(HOME, b""), f"{HOME / ARCHIVE}: "),
    "no archive": (lambda o: o.write_archive(HOME, b"<html>404</html>"), f"{HOME / ARCHIVE}: can't be read"),
    "an archive that leaves its folder": (
        lambda o: o.write_archive(HOME, o.archive_bytes(folder=f"../{BATCHES}")),
        f"{HOME / ARCHIVE}: holds no file {BATCHES}/data_batch_1",
    ),
    "a link in an archive": (
        lambda o: o.write_archive(HOME, o.archive_bytes(link="data_batch_3")),
        f"{HOME / ARCHIVE}: holds no file {BATCHES}/data_batch_3",
    ),
}


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("case", OFFICIAL)
def test_official_files_refused_in_one_line(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Nothing is unpacked, and no code of theirs runs: the folder is as before."""
    harm, message = OFFICIAL[case]
    harm(Official(monkeypatch))
    assert message in refused(*DATA, *UNSEEN)
