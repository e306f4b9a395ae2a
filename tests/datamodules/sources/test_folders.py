"""Class folders, whole and damaged, and their cache."""

import io
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official import Evil, check_message, write_folders
from PIL import Image

from datamodules.sources import CLASSES, DataError, Layout, find_cifar10, load_cifar10


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_folders_pixel_by_pixel(tmp_path: Path, suffix: str) -> None:
    layout = write_folders(tmp_path, suffix)
    images, targets = load_cifar10(layout, "test")
    assert images.shape == (20, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.int64
    assert targets.tolist() == [label for label in range(10) for _ in range(2)]
    for index, name, file in ((0, "airplane", "0000"), (7, "cat", "0001"), (19, "truck", "0001")):
        with Image.open(tmp_path / "test" / name / f"{file}{suffix}") as image:
            for y in range(32):
                for x in range(32):
                    assert tuple(images[index, :, y, x].tolist()) == image.getpixel((x, y))


@pytest.mark.parametrize("rename", [str.capitalize, str.upper, lambda name: str(CLASSES.index(name))])
def test_classes_by_number_or_in_other_case(tmp_path: Path, rename: Callable[[str], str]) -> None:
    plain, other = write_folders(tmp_path / "a"), write_folders(tmp_path / "b")
    for split in ("train", "test"):
        for name in CLASSES:
            folder = other.path / split / name
            folder.rename(folder.with_name(rename(name)))
    assert find_cifar10(tmp_path / "b") == other
    assert other.description == plain.description
    for split in ("train", "test"):
        for theirs, ours in zip(load_cifar10(other, split), load_cifar10(plain, split), strict=True):
            assert torch.equal(theirs, ours)


def test_a_class_by_its_name_wins(folders: Layout, caplog: pytest.LogCaptureFixture) -> None:
    before = load_cifar10(folders, "train")
    for name in ("Airplane", "0"):
        (folders.path / "train" / name).mkdir()
    caplog.clear()
    assert torch.equal(load_cifar10(folders, "train").images, before.images)
    assert "entries ignored: 2 (not among the ten classes)" in caplog.text


@pytest.mark.parametrize("empty", [True, False])
def test_missing_or_empty_class_folder(folders: Layout, empty: bool) -> None:
    folder = folders.path / "train" / "deer"
    for path in folder.iterdir():
        path.unlink()
    if not empty:
        folder.rmdir()
    with pytest.raises(DataError) as caught:
        load_cifar10(folders, "train")
    check_message(caught.value, folder, "deer")
    assert len(load_cifar10(folders, "test").images) == 20


def test_missing_split(folders: Layout) -> None:
    (folders.path / "test").rename(folders.path / "tset")
    assert find_cifar10(folders.path) == folders
    with pytest.raises(DataError) as caught:
        load_cifar10(folders, "test")
    check_message(caught.value, folders.path / "test" / "airplane")


def test_extra_entries_are_ignored_with_a_count(folders: Layout, caplog: pytest.LogCaptureFixture) -> None:
    train = folders.path / "train"
    before = load_cifar10(folders, "train")
    (train / "__MACOSX").mkdir()
    (train / "aardvark").mkdir()  # would shift the labels of code that lists folders
    (train / ".DS_Store").write_bytes(b"x")
    (train / "cat" / "._0000.png").write_bytes(b"x")
    (train / "cat" / "Thumbs.db").write_bytes(b"x")
    (train / "cat" / "folder.png").mkdir()
    caplog.clear()
    after = load_cifar10(folders, "train")
    assert torch.equal(before.images, after.images)
    assert torch.equal(before.targets, after.targets)
    warnings = [record.getMessage() for record in caplog.records if "entries ignored: 3 " in record.getMessage()]
    assert len(warnings) == 2


def test_a_short_split_is_pointed_out(folders: Layout, caplog: pytest.LogCaptureFixture) -> None:
    load_cifar10(folders, "train")
    assert "20 images, CIFAR-10 has 50000" in caplog.text


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; nothing behind it."""
    raw = bytearray(png(Image.new("RGB", (32, 32))))
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


def rgb16() -> bytes:
    """A PNG of 16 bits per colour channel, which Pillow opens as 8-bit RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x12\x34" * 96) * 32)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "gif")
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"just some text", "not a PNG or JPEG image"),
        (gif(), "not a PNG or JPEG image"),
        (png(NOISE)[:1500], "can't be read"),
        (png(NOISE)[:20], "expected"),
        (png(Image.new("RGB", (33, 32))), "33x32 pixels, expected 32x32"),
        (png_of_size(5000, 5000), "5000x5000 pixels, expected 32x32"),
        (png_of_size(60000, 60000), "far too many pixels"),
        (png(Image.new("I;16", (32, 32))), "16 bits per channel"),
        (rgb16(), "16 bits per channel"),
    ],
    ids=["empty", "text", "gif", "truncated", "header", "33x32", "big", "bomb", "grey16", "rgb16"],
)
def test_bad_image_file(folders: Layout, raw: bytes, words: str) -> None:
    path = folders.path / "train" / "horse" / "0001x.png"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_cifar10(folders, "train")
    check_message(caught.value, path, words, "Replace or delete it")
    assert not (folders.path / ".cache").exists()  # nothing half done is kept


def test_truncated_jpeg(folders: Layout) -> None:
    path = folders.path / "train" / "ship" / "x.jpg"
    NOISE.save(path, quality=95)
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(DataError) as caught:
        load_cifar10(folders, "train")
    check_message(caught.value, path, "truncated")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(folders: Layout, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    path = folders.path / "train" / "truck" / f"zzz{suffix}"
    NOISE.convert(mode).save(path)
    images = load_cifar10(folders, "train").images
    with Image.open(path) as stored:
        assert stored.mode == mode
        rgb = stored.convert("RGB")
    assert [rgb.getpixel((x, 9)) for x in range(32)] == [tuple(images[-1, :, 9, x].tolist()) for x in range(32)]
    assert f"1 of 21 images converted to RGB (1 {mode})" in caplog.text


def test_links(folders: Layout, tmp_path: Path) -> None:
    cat = folders.path / "train" / "cat"
    (cat / "loop").symlink_to(cat, target_is_directory=True)
    (cat / "loop.png").symlink_to(folders.path, target_is_directory=True)
    (cat / "zz.png").symlink_to(folders.path / "train" / "dog" / "0000.png")
    images, targets = load_cifar10(folders, "train")
    assert targets.bincount().tolist() == [2, 2, 2, 3, 2, 2, 2, 2, 2, 2]
    assert torch.equal(images[8], images[targets == CLASSES.index("dog")][0])
    for target in ("nowhere.png", "round.png"):
        link = cat / "round.png"
        link.unlink(missing_ok=True)
        link.symlink_to(cat / target)
        with pytest.raises(DataError) as caught:
            load_cifar10(folders, "train")
        check_message(caught.value, link)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_refused_not_read(folders: Layout) -> None:
    os.mkfifo(folders.path / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match="regular file"):
        load_cifar10(folders, "train")


# ---- cache --------------------------------------------------------------------------------------------------


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", refuse)


def test_cache_hit(folders: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_cifar10(folders, "train")
    forbid_decoding(monkeypatch)
    second = load_cifar10(folders, "train")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    second.images[0] = 0  # writable
    with pytest.raises(DataError):
        load_cifar10(folders, "test")  # which has a cache of its own


def test_cache_survives_a_move(folders: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "a"
    layout = write_folders(base)
    load_cifar10(layout, "train")
    base.rename(tmp_path / "longer")
    forbid_decoding(monkeypatch)
    load_cifar10(Layout("folders", tmp_path / "longer"), "train")


@pytest.mark.parametrize("change", ["size", "mtime", "rename", "add", "remove"])
def test_cache_follows_a_change(folders: Layout, change: str) -> None:
    path = folders.path / "train" / "frog" / "0001.png"
    NOISE.save(path, compress_level=0)
    before = load_cifar10(folders, "train").images
    info = path.stat()
    if change == "size":  # other content; the old time put back
        Image.new("RGB", (32, 32)).save(path)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert path.stat().st_size != info.st_size
    elif change == "mtime":
        NOISE.rotate(90).save(path, compress_level=0)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000))
        assert path.stat().st_size == info.st_size
    elif change == "rename":
        path.rename(path.with_name("000.png"))  # now the first of its class
    elif change == "add":
        NOISE.save(path.with_name("0002.png"))
    else:
        path.unlink()
    after = load_cifar10(folders, "train").images
    assert len(after) == {"add": 21, "remove": 19}.get(change, 20)
    assert not torch.equal(before, after)
    assert [path.name for path in (folders.path / ".cache").iterdir()] == ["train.npz"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "pickle"])
def test_damaged_cache_is_decoded_anew(folders: Layout, damage: str, tmp_path: Path) -> None:
    before = load_cifar10(folders, "train").images
    cache = folders.path / ".cache" / "train.npz"
    raw = bytearray(cache.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    if damage == "truncate":
        del raw[-100:]
    if damage == "empty":
        raw.clear()
    cache.write_bytes(raw)
    marker = tmp_path / "ran"
    if damage == "pickle":
        np.savez(cache, fingerprint=np.array([Evil(marker)], dtype=object), images=before.numpy())
    assert torch.equal(load_cifar10(folders, "train").images, before)
    assert not marker.exists()
    with np.load(cache) as arrays:  # and written anew
        assert np.array_equal(arrays["images"], before.numpy())


def test_unwritable_folder_means_no_cache(folders: Layout, caplog: pytest.LogCaptureFixture) -> None:
    (folders.path / ".cache").write_text("a file in the folder's place; works for root too, unlike chmod")
    caplog.set_level(logging.INFO)
    assert len(load_cifar10(folders, "train").images) == 20
    assert "can't be written" in caplog.text


def test_full_disk_leaves_no_half_cache(folders: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(load_cifar10(folders, "train").images) == 20
    assert list((folders.path / ".cache").iterdir()) == []


@pytest.mark.parametrize("kept", ["other pixels", "other shape", "other kind"])
def test_a_cache_of_other_pixels_is_decoded_anew(folders: Layout, kept: str) -> None:
    """Under the right fingerprint, and whole: nothing would be seen of it in training."""
    before = load_cifar10(folders, "train").images
    cache = folders.path / ".cache" / "train.npz"
    with np.load(cache) as arrays:
        contents = dict(arrays)
    other = {"other pixels": 255 - before.numpy(), "other shape": before.numpy()[:10], "other kind": before.numpy() / 2}
    np.savez(cache, **{**contents, "images": other[kept]})
    assert torch.equal(load_cifar10(folders, "train").images, before)


def test_a_cache_is_not_written_through_a_link(folders: Layout, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "train.npz").write_bytes(b"precious")
    (folders.path / ".cache").symlink_to(theirs)
    assert len(load_cifar10(folders, "train").images) == 20
    assert [(path.name, path.read_bytes()) for path in theirs.iterdir()] == [("train.npz", b"precious")]


def test_a_cache_that_unpacks_to_more_than_it_is_is_not_unpacked(folders: Layout) -> None:
    before = load_cifar10(folders, "train").images
    cache = folders.path / ".cache" / "train.npz"
    with np.load(cache) as arrays:
        fingerprint = arrays["fingerprint"]
    np.savez_compressed(cache, fingerprint=fingerprint, images=np.zeros(500_000_000, np.uint8))
    start = time.monotonic()
    assert torch.equal(load_cifar10(folders, "train").images, before)
    assert time.monotonic() - start < 0.5


def test_a_pipe_for_a_cache_is_not_waited_for(folders: Layout) -> None:
    (folders.path / ".cache").mkdir()
    os.mkfifo(folders.path / ".cache" / "train.npz")
    assert len(load_cifar10(folders, "train").images) == 20
    assert (folders.path / ".cache" / "train.npz").is_file()


def test_a_name_with_a_terminal_s_escapes_is_printable_in_an_error(folders: Layout) -> None:
    (folders.path / "train" / "cat" / "\x1b]0;owned\x07.png").write_bytes(b"")
    with pytest.raises(DataError, match="cat/\\?]0;owned\\?.png: not a PNG"):
        load_cifar10(folders, "train")
