"""The user's own pictures: read whatever they are, embedded as the DataModule does, and the nearest found."""

from __future__ import annotations

import csv
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retrieve
import torch
from helpers import error_line
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from PIL import Image, ImageOps
from retrieve import list_photos, read_photo

from callbacks.checkpoints.files import write_checkpoint
from callbacks.pure.retrieval_panel import CELL_HEIGHT, PANEL_TOP
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
CKPT = Path("logs/alexnet-shapes10/version_0/checkpoints/best.ckpt")

# ---- photos ------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(retrieve, "MAX_PIXELS", 100_000)
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


# ---- panel -------------------------------------------------------------------------------------------------


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(fit: Fit, small_net: None, capsys: pytest.CaptureFixture[str]) -> CIFAR10DataModule:
    """``CKPT``: the small network, trained on 100 images of shapes10; those."""
    words = ["--data.crop_size=28", "--data.crop_padding=0", "--trainer.max_epochs=1"]
    assert fit(*UNSEEN, *words, once="whole") == 0
    capsys.readouterr()
    return CIFAR10DataModule(
        source="shapes10", subset_size=100, val_size=40, batch_size=32, crop_size=28, image_size=24
    )


def retrieved(*words: str) -> list[dict[str, str]]:
    retrieve.main(["--ckpt_path", str(CKPT), *words])
    with Path("retrieval.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def save(image: torch.Tensor, name: str) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)


def test_the_nearest_are_those_of_the_data_module_s_own_path(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against Lightning's own loading of the checkpoint, its loaders' batches, and all distances in float64."""
    tests = trained.images_in("test")[0]
    for place in (3, 17):
        save(tests[place], f"{place}.png")
    rows = retrieved("--query", "17.png", "3.png", "--k", "4")

    model = AlexNetClassifier.load_from_checkpoint(CKPT, map_location="cpu").eval()
    trained.load_state_dict(torch.load(CKPT, weights_only=True)["CIFAR10DataModule"])

    def features(loader: torch.utils.data.DataLoader) -> torch.Tensor:  # type: ignore[type-arg]
        with torch.no_grad():
            return torch.cat([model.embed(trained.on_after_batch_transfer(b, 0)[0]) for b in loader]).double()

    gallery, queries = features(trained.gallery_dataloader()), features(trained.query_dataloader("test"))[[17, 3]]
    distances = (queries[:, None] - gallery).square().sum(2).sqrt()
    nearest = distances.argsort(dim=1)[:, :4]
    assert [row["query"] for row in rows] == ["17.png"] * 4 + ["3.png"] * 4
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4] * 2
    assert [int(row["index"]) for row in rows] == trained.split.train[nearest.flatten()].tolist()
    labels = trained.images_in("train")[1][trained.split.train[nearest.flatten()]]
    assert [row["class"] for row in rows] == [trained.class_names[label] for label in labels]
    expected = distances.gather(1, nearest).flatten().tolist()
    assert [float(row["distance"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    panel = np.array(Image.open("retrieval.png"))
    assert panel.shape[0] > 2 * CELL_HEIGHT
    shown = capsys.readouterr().out
    assert "17.png" in shown
    assert "100 training images (now embedded)" in shown


def test_a_training_image_is_its_own_nearest(trained: CIFAR10DataModule) -> None:
    place = int(trained.split.train[42])
    Path("photos").mkdir()
    save(trained.images_in("train")[0][place], "photos/it.png")
    Path("photos/broken.png").write_bytes(b"no")
    (row,) = retrieved("--query", "photos", "--k", "1")
    assert int(row["index"]) == place
    assert float(row["distance"]) < 1e-4


def test_the_gallery_is_embedded_once(trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    first = retrieved("--query", "a.png")
    (cache,) = Path("logs/alexnet-shapes10/version_0/retrieval_cache").glob("*.pt")
    written = cache.stat().st_mtime_ns
    capsys.readouterr()
    assert retrieved("--query", "a.png") == first
    assert "(cached)" in capsys.readouterr().out
    assert cache.stat().st_mtime_ns == written

    contents = bytearray(cache.read_bytes())
    contents[len(contents) // 2] ^= 1  # a flipped bit
    cache.write_bytes(contents)
    assert retrieved("--query", "a.png") == first
    captured = capsys.readouterr()
    assert "damaged" in captured.err
    assert "anew" in captured.err
    assert "(now embedded)" in captured.out
    assert retrieved("--query", "a.png") == first
    assert "(cached)" in capsys.readouterr().out

    cache.with_name(f"{cache.name}.sha256").unlink()
    assert retrieved("--query", "a.png") == first
    assert "no SHA-256 beside it" in capsys.readouterr().err


def test_other_images_or_another_checkpoint_have_a_cache_of_their_own(trained: CIFAR10DataModule) -> None:
    gallery = trained.images_in("train")[0][trained.split.train]
    indices = trained.split.train
    digest = retrieve.gallery_digest(trained, indices, gallery, "cpu")
    other = gallery.clone()
    other[5, 0, 0, 0] ^= 1
    assert retrieve.gallery_digest(trained, indices, other, "cpu") != digest
    assert retrieve.gallery_digest(trained, indices.flip(0), gallery, "cpu") != digest
    assert retrieve.gallery_digest(trained, indices, gallery, "cuda") != digest
    trained.crop_size = 32
    assert retrieve.gallery_digest(trained, indices, gallery, "cpu") != digest
    save(gallery[0], "a.png")
    retrieved("--query", "a.png")
    checkpoint = torch.load(CKPT, weights_only=True)
    checkpoint["state_dict"]["net.fc7.bias"] += 1
    torch.save(checkpoint, CKPT.with_name("other.ckpt"))
    retrieve.main(["--ckpt_path", str(CKPT.with_name("other.ckpt")), "--query", "a.png"])
    assert len(list(Path("logs").rglob("retrieval_cache/*.pt"))) == 2


def test_a_cache_that_can_not_be_written_is_done_without(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    Path("logs/alexnet-shapes10/version_0/retrieval_cache").write_text("a file in its place", encoding="utf-8")
    assert len(retrieved("--query", "a.png")) == 6
    assert "the next time takes as long" in capsys.readouterr().err


def test_a_panel_of_many_is_cut(
    trained: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieve, "SHOWN_QUERIES", 2)
    Path("photos").mkdir()
    for place in range(3):
        save(trained.images_in("test")[0][place], f"photos/{place}.png")
    assert len(retrieved("--query", "photos", "--k", "14")) == 3 * 14
    assert "shown: 2 of 3 queries; in the panel 12 of 14 neighbours" in capsys.readouterr().out
    assert np.array(Image.open("retrieval.png")).shape[0] < PANEL_TOP + 3 * CELL_HEIGHT


@pytest.mark.parametrize("out", ["cat.png", "other.png", "link.png", "table.png"])
def test_a_file_of_the_user_s_is_never_written_over(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the picture that is looked for, by whatever name, nor another, nor a table beside it."""
    for name, place in (("cat.png", 0), ("other.png", 1)):
        save(trained.images_in("test")[0][place], name)
    os.link("cat.png", "link.png")
    Path("table.csv").write_text("name,price\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(retrieve, "embed", lambda *_: pytest.fail("work began"))
        with pytest.raises(SystemExit) as exit_:
            retrieve.main(["--ckpt_path", str(CKPT), "--query", "cat.png", "--out", out])
    assert exit_.value.code == 2
    line = error_line(capsys.readouterr().err)
    assert f"--out: {out.replace('table.png', 'table.csv')} is " in line
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    for _ in range(2):  # its own it does write over, but not where it is a query
        retrieve.main(["--ckpt_path", str(CKPT), "--query", "cat.png", "--out", "mine.png"])
    with pytest.raises(SystemExit):
        retrieve.main(["--ckpt_path", str(CKPT), "--query", ".", "--out", "mine.png"])


def test_a_name_on_one_line(trained: CIFAR10DataModule) -> None:
    save(trained.images_in("test")[0][0], "two\nlines,\udcff.png")
    rows = retrieved("--query", "two\nlines,\udcff.png", "--k", "1")
    assert rows[0]["query"] == "two?lines,?.png"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are markup to rich, and a word between colons a picture."""
    retrieve.print_table([("[red]a:cat:[/x].png", 1, 2, "[bold]frog", 0.5)])
    shown = capsys.readouterr().out
    assert "[red]a:cat:[/x].png" in shown
    assert "[bold]frog" in shown


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a/b.png"], ["b.png"]),
        (["a/b.png", "a/c.png"], ["b.png", "c.png"]),
        (["x/ship/1.png", "x/frog/1.png", "x/frog/2.png"], ["ship/1.png", "frog/1.png", "frog/2.png"]),
        (["1.png", "a/1.png", "/a/1.png"], ["1.png", "a/1.png", "/a/1.png"]),
        (["a/?.png", "a/?.png"], ["a/?.png", "a/?.png"]),  # two names that are printed alike
    ],
)
def test_the_panel_tells_pictures_of_one_name_apart(names: list[str], short: list[str]) -> None:
    assert retrieve.short_names(names) == short


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--query", "nowhere.png"], "nowhere.png: there is no such file"),
        (["--query", "text.png"], "text.png: no picture"),
        (["--query", "empty"], "empty: no pictures in this folder"),
        (["--query", "bad"], "--query: no picture could be read (bad/a.png: no picture"),
        (["--query", "a.png", "--k", "0"], "--k: 0, expected 1 or more"),
        (["--query", "a.png", "--k", "101"], "--k: 101, expected at most 100"),
        (["--query", "a.png", "--out", "a.jpg"], "--out: a.jpg, expected a file that ends in .png"),
        (["--query", "a.png", "--out", "no/a.png"], "--out: no/a.png, expected a file in a folder that is there"),
        (["--query", "a.png", "--ckpt_path", "nowhere.ckpt"], "--ckpt_path: nowhere.ckpt is no file"),
        (["--query", "a.png", "--ckpt_path", "text.png"], "text.png: can't be read as a checkpoint"),
        (["--query", "a.png", "--ckpt_path", "other.ckpt"], "other.ckpt: does not say which images"),
        (["--query", "a.png", "--ckpt_path", "newer.ckpt"], "newer.ckpt: its settings are not this version's"),
        (["--query", "a.png", "--ckpt_path", "cifar10.ckpt", "--root", "empty"], "--root: no CIFAR-10 in"),
        (["--query"], "--query"),
        ([], "--query"),
    ],
)
def test_refusals_take_one_line(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], words: list[str], wrong: str
) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    Path("text.png").write_text("text", encoding="utf-8")
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/a.png").write_text("text", encoding="utf-8")
    checkpoint = torch.load(CKPT, weights_only=True)
    torch.save({**checkpoint, "CIFAR10DataModule": None}, "other.ckpt")
    newer = {**checkpoint["hyper_parameters"], "warp": 9}
    torch.save({**checkpoint, "hyper_parameters": newer}, "newer.ckpt")
    data = {**checkpoint["datamodule_hyper_parameters"], "source": "cifar10", "download": False}
    torch.save({**checkpoint, "datamodule_hyper_parameters": data}, "cifar10.ckpt")
    with pytest.raises(SystemExit) as exit_:
        retrieve.main(["--ckpt_path", str(CKPT), *words])
    assert exit_.value.code == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("error: ")
    assert wrong in complaint
    assert not Path("retrieval.png").exists()


@pytest.mark.parametrize(
    "contents",
    [
        [],
        {"key": "k"},
        {"key": "k", "features": "text"},
        {"key": "k", "features": torch.zeros(5, 3)},
        {"key": "k", "features": torch.zeros(6, 4)},
        {"key": "k", "features": torch.zeros(5, 4).half()},
        {"key": "k", "features": torch.zeros(5, 4).to_sparse()},
        {"key": "k", "features": torch.full((5, 4), float("nan"))},
    ],
    ids=str,
)
def test_a_cache_of_other_contents_under_a_right_sha256_is_not_taken(
    contents: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("cache.pt")
    write_checkpoint({"key": "k", "features": torch.ones(5, 4)}, path)
    kept = retrieve.read_cache(path, "k", (5, 4))
    assert kept is not None
    assert kept.eq(1).all()
    write_checkpoint(contents, path)
    assert retrieve.read_cache(path, "k", (5, 4)) is None
    assert "embedding the training images anew" in capsys.readouterr().err
