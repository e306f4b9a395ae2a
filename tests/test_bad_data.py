"""Damaged images in class folders, as ``fit.py`` meets them: refused in one line, or accepted with a count."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import UNSEEN
from small import small_net as small_net

from datamodules.sources import CLASSES

Fit = Callable[..., int]
DATA = [
    "--data.source=cifar10",
    "--data.root=images",
    "--data.download=false",
    "--data.subset_size=20",
    "--data.val_size=10",
]
ONE = Path("images/train/cat/1.png")


@pytest.fixture(autouse=True)
def _folders() -> None:
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
    "a file for a folder": (lambda: (shutil.rmtree("images"), Path("images").touch()), "--data.root: images is a file"),
    "too few for validation": (lambda: ONE.unlink(), "are more than the 30 there are"),
}


@pytest.mark.usefixtures("small_net")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(fit: Fit, capsys: pytest.CaptureFixture[str], case: str) -> None:
    harm, message = REFUSED[case]
    harm()
    more = ["--data.subset_size=30"] if case.startswith("too few") else []
    assert fit(*DATA, *UNSEEN, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("logs").exists()


@pytest.mark.usefixtures("small_net")
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
