"""sources.py on small files in every layout, whole and damaged; the network is a server on 127.0.0.1."""

import hashlib
import io
import logging
import os
import pickle
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.official import Official, md5, python2_pickle
from PIL import Image

from datamodules import sources
from datamodules.sources import (
    ARCHIVE,
    BATCHES,
    CLASSES,
    DataError,
    Layout,
    count_overlap,
    download_cifar10,
    find_cifar10,
    load_cifar10,
    resolve_source,
)

REPO = ROOT


def check_message(error: DataError, *parts: object) -> None:
    """One line, ``<file or flag>: <what is wrong>. <what to do>``, with the parts in it."""
    message = str(error)
    assert "\n" not in message
    assert not message.startswith("error")
    where, rest = message.split(": ", 1)
    assert where
    assert ". " in rest
    for part in parts:
        assert str(part) in message


# ---- the official format -----------------------------------------------------------------------------------


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Official:
    return Official(monkeypatch)


def test_figures_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    assert sources.BATCH_MD5S["train"] == dict(CIFAR10.train_list)
    assert sources.BATCH_MD5S["test"] == dict(CIFAR10.test_list)
    assert CIFAR10.tgz_md5 == sources.ARCHIVE_MD5
    assert sources.URLS[0] == CIFAR10.url


@pytest.mark.parametrize("kind", ["batches", "archive"])
def test_official_planes_rows_columns(official: Official, tmp_path: Path, kind: str) -> None:
    layout = official.write_batches(tmp_path) if kind == "batches" else official.write_archive(tmp_path)
    images, targets = load_cifar10(layout, "train")
    assert images.shape == (15, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.int64
    assert targets.tolist() == [label for i in range(1, 6) for label in official.labels[f"data_batch_{i}"]]
    row = official.data["data_batch_2"][1]
    for channel in range(3):
        for y in range(32):
            for x in range(32):
                assert images[4, channel, y, x] == row[1024 * channel + 32 * y + x]
    assert load_cifar10(layout, "test").targets.tolist() == official.labels["test_batch"]


def test_official_as_torchvision_reads_it(official: Official, tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR10

    meta = pickle.dumps({"label_names": list(CLASSES)}, protocol=2)
    official.monkeypatch.setattr(CIFAR10, "train_list", list(sources.BATCH_MD5S["train"].items()))
    official.monkeypatch.setattr(CIFAR10, "test_list", list(sources.BATCH_MD5S["test"].items()))
    official.monkeypatch.setitem(CIFAR10.meta, "md5", md5(meta))
    layout = official.write_batches(tmp_path)
    (layout.path / "batches.meta").write_bytes(meta)
    for split in ("train", "test"):
        theirs = CIFAR10(tmp_path, train=split == "train")
        images, targets = load_cifar10(layout, split)
        assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
        assert targets.tolist() == theirs.targets


def test_flipped_byte(official: Official, tmp_path: Path) -> None:
    layout = official.write_batches(tmp_path)
    path = layout.path / "data_batch_3"
    expected = md5(path.read_bytes())
    raw = bytearray(path.read_bytes())
    raw[500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, path, expected, md5(bytes(raw)), f"Delete the folder {layout.path}")
    load_cifar10(layout, "test")  # the other split's file is whole


def test_missing_batch_is_an_error_under_auto_too(official: Official, tmp_path: Path) -> None:
    (official.write_batches(tmp_path).path / "data_batch_5").unlink()
    layout = resolve_source(tmp_path, "auto")
    assert layout is not None
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, "data_batch_5", "No such file")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_pickle_cant_run_code_even_with_the_right_md5(official: Official, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    raw = pickle.dumps({b"data": Evil(marker), b"labels": []})
    pickle.loads(raw)
    assert marker.is_dir()  # so the pickle would do harm
    marker.rmdir()
    official.files["test_batch"] = raw
    official.expect_these()
    for layout in (official.write_batches(tmp_path), official.write_archive(tmp_path)):
        with pytest.raises(DataError) as caught:
            load_cifar10(layout, "test")
        check_message(caught.value, "test_batch", "mkdir")
        assert not marker.exists()


ZEROS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (python2_pickle(np.zeros((2, 3071), np.uint8), [0, 1]), "(2, 3071), expected uint8 (n, 3072)"),
        (python2_pickle(np.zeros((2, 3072), np.int8), [0, 1]), "int8 (2, 3072), expected uint8"),
        (python2_pickle(ZEROS, [0, 10]), "label 10, expected 0 to 9"),
        (python2_pickle(ZEROS, [0, -1]), "label -1, expected 0 to 9"),
        (python2_pickle(ZEROS, [0]), "1 labels for 2 images"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 batch"),
        (pickle.dumps({b"data": 1, b"labels": [1]}), "data is int"),
        (b"", "not a CIFAR-10 batch"),
    ],
)
def test_wrong_contents(official: Official, tmp_path: Path, raw: bytes, words: str) -> None:
    official.files["test_batch"] = raw
    official.expect_these()
    with pytest.raises(DataError) as caught:
        load_cifar10(official.write_batches(tmp_path), "test")
    check_message(caught.value, "test_batch", words)


def test_truncated_archive(official: Official, tmp_path: Path) -> None:
    layout = official.write_archive(tmp_path)
    raw = layout.path.read_bytes()[:-2000]
    layout.path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, layout.path, md5(raw), sources.ARCHIVE_MD5, "Delete", "run again")
    official.write_archive(tmp_path, raw)  # and where the MD5 does agree, tarfile's and gzip's errors
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, layout.path, "can't be read")


def test_archive_link_and_missing_member(official: Official, tmp_path: Path) -> None:
    layout = official.write_archive(tmp_path, official.archive_bytes(link="test_batch"))
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "test")
    check_message(caught.value, layout.path, "test_batch is a link")
    del official.files["test_batch"]
    layout = official.write_archive(tmp_path)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "test")
    check_message(caught.value, layout.path, "holds no cifar-10-batches-py/test_batch")
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]  # nothing was unpacked


# ---- class folders -----------------------------------------------------------------------------------------


def write_folders(base: Path, suffix: str = ".png", per_class: int = 2) -> Layout:
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for name in reversed(CLASSES):
            (base / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / split / name / f"{i:04}{suffix}")
    return Layout("folders", base)


@pytest.fixture
def folders(tmp_path: Path) -> Layout:
    return write_folders(tmp_path)


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


def test_classes_are_in_the_official_order() -> None:
    assert " ".join(CLASSES) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_descriptions_tell_jpeg_from_lossless(tmp_path: Path, official: Official) -> None:
    words = [
        official.write_batches(tmp_path).description,
        official.write_archive(tmp_path).description,
        write_folders(tmp_path / "a", ".png").description,
        write_folders(tmp_path / "b", ".JPG").description,
    ]
    Image.new("RGB", (32, 32)).save(tmp_path / "a/test/cat/x.jpeg")
    words.append(Layout("folders", tmp_path / "a").description)
    assert words == [
        "CIFAR-10 (official files)",
        "CIFAR-10 (official archive)",
        "CIFAR-10 (PNG copy in class folders)",
        "CIFAR-10 (JPEG copy in class folders)",
        "CIFAR-10 (JPEG and PNG copy in class folders)",
    ]


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


# ---- cache -------------------------------------------------------------------------------------------------


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


# ---- finding and choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_find_prefers_official_files(official: Official, tmp_path: Path, below: str) -> None:
    assert find_cifar10(tmp_path / "nowhere") is None
    assert find_cifar10(tmp_path) is None
    base = tmp_path / below
    expected = write_folders(base, per_class=1)
    assert find_cifar10(tmp_path) == expected
    expected = official.write_archive(base)
    assert find_cifar10(tmp_path) == expected
    expected = official.write_batches(base)
    assert find_cifar10(tmp_path) == expected
    assert resolve_source(tmp_path, "cifar10", download=False) == expected
    assert resolve_source(tmp_path, "auto", download=False) == expected
    assert resolve_source(tmp_path, "shapes10") is None


def test_other_image_folders_are_not_cifar10(tmp_path: Path) -> None:
    (tmp_path / "train" / "aardvark").mkdir(parents=True)
    (tmp_path / "train" / "cat").write_text("a file")
    assert find_cifar10(tmp_path) is None


def test_nothing_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar10", download=False)
    check_message(
        caught.value,
        "--data.root: ",
        tmp_path,
        f"{BATCHES}/",
        ARCHIVE,
        "train/<class>/",
        "python scripts/fit.py -c configs/quickstart.yaml",
    )
    assert resolve_source(tmp_path, "auto", download=False) is None
    assert "no CIFAR-10 in" in caplog.text
    assert caplog.text.rstrip().endswith("Using shapes10, the drawn stand-in, instead.")
    assert "quickstart" not in caplog.text


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar100")  # type: ignore[arg-type]
    check_message(caught.value, "--data.source: ", "'cifar100'")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path / "file", "auto")
    check_message(caught.value, "--data.root: ", tmp_path / "file")
    with pytest.raises(DataError) as caught:
        download_cifar10(tmp_path / "file" / "data")
    check_message(caught.value, "--data.root: ", tmp_path / "file" / "data")


def test_messages_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path / "two\nlines", "cifar10", download=False)
    check_message(caught.value, "two lines")


def test_count_overlap() -> None:
    a = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    assert count_overlap(a, a[[1, 1, 3]]) == 3
    assert count_overlap(a[:2], a[1:]) == 1
    assert count_overlap(a[:2], a[2:]) == 0


# ---- download ----------------------------------------------------------------------------------------------


class Host:
    """A server whose paths are hosts of different temper; ``urls`` makes sources.py try them in turn."""

    def __init__(self, raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        self.raw = raw
        self.monkeypatch = monkeypatch
        self.asked: list[str] = []
        self.closing = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                host.asked.append(self.path[1:])
                with suppress(OSError):  # the client hung up, as it should
                    host.answer(self, self.path[1:])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, temper: str) -> None:
        if temper == "missing":
            request.send_error(404)
            return
        body = self.raw
        if temper == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if temper == "page":
            body = b"<html>Please log in</html>"
        if temper == "endless":
            body *= 3
        request.send_response(200)
        if temper not in ("endless", "unsized"):
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if temper == "stall":
            request.wfile.write(body[:100])
            self.closing.wait(10)
        elif temper == "slow":
            for start in range(0, len(body), 100):
                request.wfile.write(body[start : start + 100])
                if self.closing.wait(0.01):
                    break
        elif temper == "short":
            request.wfile.write(body[:1000])
        else:
            request.wfile.write(body)

    def urls(self, *tempers: str) -> None:
        port = self.server.server_address[1]
        self.monkeypatch.setattr(sources, "URLS", tuple(f"http://127.0.0.1:{port}/{t}" for t in tempers))

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def host(official: Official, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    raw = official.archive_bytes()
    monkeypatch.setattr(sources, "ARCHIVE_MD5", md5(raw))
    monkeypatch.setattr(sources, "ARCHIVE_BYTES", len(raw))
    monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    host = Host(raw, monkeypatch)
    yield host
    host.close()


@pytest.mark.parametrize(
    ("temper", "why"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("stall", "timed out"),
        ("slow", "too slow"),
        ("wrong", "MD5"),
        ("page", "offers 26 bytes"),
        ("short", "broke off after 1000 of"),
        ("endless", "sends more than"),
    ],
)
def test_second_host_is_tried(
    host: Host, tmp_path: Path, temper: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.urls(temper, "good")
    root = tmp_path / "new" / "data"
    layout = resolve_source(root, "cifar10") if temper != "slow" else download_cifar10(root, attempt_seconds=1)
    assert host.asked == [temper, "good"]
    assert layout == Layout("archive", root / ARCHIVE)
    assert [path.name for path in root.iterdir()] == [ARCHIVE]  # no .part
    assert (root / ARCHIVE).read_bytes() == host.raw
    assert load_cifar10(layout, "train").images.shape == (15, 3, 32, 32)
    assert why in caplog.text


def test_the_limit_holds_without_a_projection(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROBE_SECONDS", 1000)
    host.urls("slow")
    with pytest.raises(DataError, match="too slow"):
        download_cifar10(tmp_path, attempt_seconds=0.2)


def test_a_host_that_does_not_tell_the_size(host: Host, tmp_path: Path) -> None:
    host.urls("unsized")
    assert download_cifar10(tmp_path).path.read_bytes() == host.raw


def test_found_is_not_downloaded(host: Host, folders: Layout, tmp_path: Path) -> None:
    host.urls("good")
    assert resolve_source(tmp_path, "auto") == folders
    assert host.asked == []


def test_all_hosts_fail(host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host.urls("missing", "wrong")
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar10")
    check_message(
        caught.value,
        "--data.root: ",
        tmp_path,
        BATCHES,
        ARCHIVE,
        "train/<class>/",
        "HTTP 404 Not Found",
        "MD5 is",
        "python scripts/fit.py -c configs/quickstart.yaml",
    )
    caplog.clear()
    assert resolve_source(tmp_path, "auto") is None
    assert "HTTP 404 Not Found" in caplog.records[-1].getMessage()
    assert caplog.records[-1].getMessage().endswith("Using shapes10, the drawn stand-in, instead.")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    for root in ("old/new/data", "old"):
        with pytest.raises(DataError):
            resolve_source(tmp_path / root, "cifar10")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]  # what it made is gone, what was there is not


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sources, "URLS", ("http://127.0.0.1:1/x",))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1: Connection refused"):
        download_cifar10(tmp_path)


def test_ctrl_c_leaves_no_part(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.urls("good")

    class Interrupted(io.BytesIO):
        def update(self, data: bytes) -> None:
            assert len(list(tmp_path.glob("*.part"))) == 1
            raise KeyboardInterrupt

    monkeypatch.setattr(hashlib, "md5", lambda **kwargs: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        download_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the real thing ----------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_cifar10() -> None:
    layout = find_cifar10(REPO / "data")
    if layout is None:
        pytest.skip("no CIFAR-10 in data/")
    images, targets = load_cifar10(layout, "train")
    assert images.shape == (50_000, 3, 32, 32)
    assert targets.bincount().tolist() == [5_000] * 10
    # CIFAR-10's well-known channel means; JPEG moves them by far less than the tolerance.
    means = images[::5].float().div(255).mean(dim=(0, 2, 3))
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=5e-3)
