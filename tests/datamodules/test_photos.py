"""The user's own pictures are read whatever they are, or refused in one line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datamodules import photos
from datamodules.photos import list_photos, read_photo


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_an_image_of_the_data_set_s_size_stays_as_it_is() -> None:
    image = pixels(32, 32)
    Image.fromarray(image).save("a.png")
    assert (read_photo(Path("a.png")).numpy().transpose(1, 2, 0) == image).all()


@pytest.mark.parametrize(("height", "width"), [(320, 500), (500, 320), (333, 320)])
def test_the_centre_square_is_reduced_without_aliasing(height: int, width: int) -> None:
    """A fine checkerboard becomes grey, what is outside the square is not seen, and halves stay where they are."""
    side = min(height, width)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 255  # red around
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    square[...] = np.where(np.indices((side, side)).sum(0)[..., None] % 2, 255, 0)
    square[:, : side // 2, 2] = 0  # no blue on the left
    Image.fromarray(image).save("a.png")
    found = read_photo(Path("a.png")).float()
    assert found.shape == (3, 32, 32)
    assert (found[:2] - 127.5).abs().max() < 3
    assert found[2, :, :14].max() < 3
    assert (found[2, :, 18:] - 127.5).abs().max() < 3


def test_a_picture_smaller_than_the_data_set_s_is_enlarged() -> None:
    Image.new("RGB", (5, 3), (10, 20, 30)).save("a.png")
    assert (read_photo(Path("a.png")) == torch.tensor([10, 20, 30])[:, None, None]).all()


def test_exif_says_which_side_is_up() -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: the upper half becomes the right one
    image.save("a.jpg", exif=exif, quality=95)
    found = read_photo(Path("a.jpg")).float()
    assert found[:, :, 18:].mean() > 250
    assert found[:, :, :14].mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillow_s(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels(32, 32)).save("a.png", exif=exif)
    with Image.open("a.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert (read_photo(Path("a.png")).numpy().transpose(1, 2, 0) == expected).all()


def exif_of(*tags: bytes) -> bytes:
    """Big-endian EXIF with these entries of twelve bytes."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + b"".join(tags) + bytes(4)


TURNED = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (exif_of(TURNED, struct.pack(">HHI4s", 0x0213, 2, 1, b"1\0\0\0")), True),  # text where a number is due
        (b"Exif\0\0nonsense", False),
    ],
    ids=["an odd tag", "not to be read"],
)
def test_odd_exif_is_no_reason_to_refuse_a_photo(exif: bytes, turned: bool) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))
    image.save("a.jpg", exif=exif, quality=95)
    found = read_photo(Path("a.jpg")).float()
    assert (found[:, :, 18:].mean() > 250) == turned
    assert (found[:, :14, :].mean() > 250) != turned


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_too_large_is_decoded_at_an_eighth(monkeypatch: pytest.MonkeyPatch, progressive: bool) -> None:
    Image.linear_gradient("L").resize((960, 640)).convert("RGB").save("a.jpg", progressive=progressive)
    whole = read_photo(Path("a.jpg")).int()
    monkeypatch.setattr(photos, "MAX_PIXELS", 100_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    if progressive:  # all of its coefficients are in memory first
        with pytest.raises(ValueError, match=r"a\.jpg: too large \(960x640 pixels\)"):
            read_photo(Path("a.jpg"))
    else:
        assert (read_photo(Path("a.jpg")).int() - whole).abs().max() <= 2


def test_32_bits_have_no_scale_but_16_have() -> None:
    """They became black, or white."""
    Image.fromarray(np.full((40, 40), 200, np.int32)).save("a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff: can't be read \(its pixels are numbers of 32 bits, of a scale"):
        read_photo(Path("a.tiff"))
    Image.fromarray(np.full((40, 40), 0x8000, np.uint16)).save("b.tiff")
    Path("c.pgm").write_bytes(b"P5 40 40 65535\n" + b"\x80\0" * 1600)
    for name in ("b.tiff", "c.pgm"):
        assert (read_photo(Path(name)) == 128).all()


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 77, (77, 77, 77)),
        ("1", "png", 1, (255, 255, 255)),
        ("LA", "png", (100, 255), (100, 100, 100)),
        ("RGBA", "png", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", "png", (10, 20, 30, 0), (255, 255, 255)),  # laid on white
        ("RGBA", "webp", (0, 0, 0, 128), (127, 127, 127)),
        ("CMYK", "jpg", (0, 255, 255, 0), (255, 0, 0)),
        ("P", "gif", 0, (0, 0, 0)),
        ("I;16", "png", 0x8000, (128, 128, 128)),
        ("RGB", "bmp", (10, 20, 30), (10, 20, 30)),
        ("RGB", "tiff", (10, 20, 30), (10, 20, 30)),
    ],
)
def test_any_mode_becomes_rgb(mode: str, suffix: str, colour: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    path = Path(f"a.{suffix}")
    Image.new(mode, (40, 40), colour).save(path)
    found = read_photo(path)
    assert found.dtype == torch.uint8
    assert (found.int() - torch.tensor(expected)[:, None, None]).abs().max() <= 3


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, body))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("contents", "wrong"),
    [
        (b"", "no picture"),
        (b"just text", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (png_header(20_000, 20_000), "too large"),
        (png_header(11_000, 10_000), "too large (11000x10000 pixels)"),
        (png_header(40, 40), "can't be read"),
    ],
)
def test_what_is_no_picture_is_refused(contents: bytes, wrong: str) -> None:
    Path("bad.png").write_bytes(contents)
    with pytest.raises(ValueError, match="^bad.png: ") as error:
        read_photo(Path("bad.png"))
    assert wrong in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_off_photo_is_refused() -> None:
    Image.fromarray(pixels(300, 300)).save("a.jpg")
    Path("a.jpg").write_bytes(Path("a.jpg").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.jpg: can't be read"):
        read_photo(Path("a.jpg"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("a.png")
    with pytest.raises(ValueError, match="not a regular file"):
        read_photo(Path("a.png"))


def test_folders_are_sorted_and_what_is_skipped_is_said() -> None:
    Path("photos/more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "c.jfif", "notes.txt", ".hidden.png"):
        Path("photos", name).touch()
    found, skipped = list_photos([Path("photos"), Path("photos/b.png")])
    assert found == [Path("photos/a.JPG"), Path("photos/b.png"), Path("photos/c.jfif")]
    assert skipped == [
        "skipped: photos/more: a folder within a folder",
        "skipped: photos/notes.txt: not named like a picture",
    ]
    Path("empty").mkdir()
    for path, wrong in ((Path("empty"), "no pictures in this folder"), (Path("nowhere"), "no such file")):
        with pytest.raises(ValueError, match=wrong):
            list_photos([path])
