"""What predict.py says of the user's own pictures: labels, neighbours, evidence, files, refusals."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import predict
import pytest
import torch
from helpers import error_line
from helpers.official import Official, write_folders
from helpers.small import UNSEEN
from helpers.small import small_net as small_net
from lightning import Trainer
from PIL import Image
from running import gallery
from running.checkpoint import Undrawn
from running.gallery import Gallery, gallery_digest, read_cache

from callbacks.checkpoints.files import write_checkpoint
from callbacks.pure.photo_panel import ROW_HEIGHT, TOP
from datamodules import CIFAR10DataModule
from datamodules.sources import Source
from lightning_modules import AlexNetClassifier

Fit = Callable[..., int]
CKPT = Path("logs/alexnet-shapes10/version_0/checkpoints/best.ckpt")


@pytest.fixture
def trained(fit: Fit, small_net: None, capsys: pytest.CaptureFixture[str]) -> CIFAR10DataModule:
    """``CKPT``: the small network, trained on 100 images of shapes10; those."""
    words = ["--data.crop_size=28", "--data.crop_padding=0", "--trainer.max_epochs=1"]
    assert fit(*UNSEEN, *words, once="whole") == 0
    capsys.readouterr()
    return CIFAR10DataModule(
        source="shapes10", subset_size=100, val_size=40, batch_size=32, crop_size=28, image_size=24
    )


def small_trainer() -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def retrieved(*words: str) -> list[dict[str, str]]:
    predict.main(["--ckpt_path", str(CKPT), *words])
    with Path("predictions.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["what"] == "neighbour"]


def save(image: torch.Tensor, name: str) -> None:
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)


def test_the_nearest_are_those_of_the_data_module_s_own_path(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against Lightning's own loading of the checkpoint, its loaders' batches, and all distances in float64."""
    tests = trained.images_in("test")[0]
    for place in (3, 17):
        save(tests[place], f"{place}.png")
    rows = retrieved("17.png", "3.png", "--k", "4")

    model = AlexNetClassifier.load_from_checkpoint(CKPT, map_location="cpu").eval()
    trained.load_state_dict(torch.load(CKPT, weights_only=True)["CIFAR10DataModule"])

    def features(loader: torch.utils.data.DataLoader) -> torch.Tensor:  # type: ignore[type-arg]
        with torch.no_grad():
            return torch.cat([model.embed(trained.on_after_batch_transfer(b, 0)[0]) for b in loader]).double()

    gallery, queries = features(trained.gallery_dataloader()), features(trained.query_dataloader("test"))[[17, 3]]
    distances = (queries[:, None] - gallery).square().sum(2).sqrt()
    nearest = distances.argsort(dim=1)[:, :4]
    assert [row["picture"] for row in rows] == ["17.png"] * 4 + ["3.png"] * 4
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4] * 2
    assert [int(row["index"]) for row in rows] == trained.split.train[nearest.flatten()].tolist()
    labels = trained.images_in("train")[1][trained.split.train[nearest.flatten()]]
    assert [row["class"] for row in rows] == [trained.class_names[label] for label in labels]
    expected = distances.gather(1, nearest).flatten().tolist()
    assert [float(row["value"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    panel = np.array(Image.open("predictions.png"))
    assert panel.shape[0] > 2 * ROW_HEIGHT
    shown = capsys.readouterr().out
    assert "17.png" in shown
    assert "100 training images (now embedded)" in shown


def test_pictures_whose_names_look_alike_both_have_their_neighbours(trained: CIFAR10DataModule) -> None:
    for letter in "\a\b":
        save(trained.images_in("test")[0][3], f"{letter}.png")
    predict.main(["--ckpt_path", str(CKPT), "\a.png", "\b.png", "--k", "2", "--out", "a.png"])
    found = json.loads(Path("a.json").read_text(encoding="utf-8"))["pictures"]
    assert [picture["picture"] for picture in found] == ["?.png", "?.png"]
    assert found[0] == found[1]
    table = csv.DictReader(Path("a.csv").read_text(encoding="utf-8").splitlines())
    rows = [row for row in table if row["what"] == "neighbour"]
    said = [(near["class"], near["index"]) for picture in found for near in picture["neighbours"]]
    assert said == [(row["class"], int(row["index"])) for row in rows]
    assert len(said) == 4


@pytest.mark.parametrize("crops", ["1", "10"])
def test_labels_are_those_of_lightning_s_own_prediction(trained: CIFAR10DataModule, crops: str) -> None:
    for place in (3, 17):
        save(trained.images_in("test")[0][place], f"{place}.png")
    predict.main(["--ckpt_path", str(CKPT), "3.png", "17.png", "--test_crops", crops, "--k", "0", "--out", "a.png"])
    model = AlexNetClassifier.load_from_checkpoint(CKPT, map_location="cpu")
    trained.test_crops = int(crops)  # type: ignore[assignment]
    trained.load_state_dict(torch.load(CKPT, weights_only=True)["CIFAR10DataModule"])
    batches = small_trainer().predict(model, trained)
    assert batches is not None
    expected = torch.cat(batches)[[3, 17]]  # type: ignore[arg-type]
    found = json.loads(Path("a.json").read_text(encoding="utf-8"))["pictures"]
    assert [picture["picture"] for picture in found] == ["3.png", "17.png"]
    assert all(list(picture["probabilities"]) == list(trained.class_names) for picture in found)
    ours = torch.tensor([list(picture["probabilities"].values()) for picture in found])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert [picture["neighbours"] for picture in found] == [[], []]
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [
        trained.class_names[label] for labels in expected.argsort(1, descending=True)[:, :5] for label in labels
    ]
    assert {row["what"] for row in rows} == {"label"}


@pytest.mark.parametrize("crops", ["1", "10"])
def test_fit_py_predict_says_the_same_of_a_folder(
    trained: CIFAR10DataModule, fit: Fit, caplog: pytest.LogCaptureFixture, crops: str
) -> None:
    """In batches, without the training images, of pictures of any size; what is no picture is passed over."""
    Path("photos").mkdir()
    for place, size in enumerate([(32, 32), (70, 101), (333, 64), (20, 20), (300, 400)]):
        photo = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(f"photos/{place}.png")
    Path("photos/broken.png").write_bytes(b"no")
    checkpoint = torch.load(CKPT, weights_only=True)
    checkpoint["datamodule_hyper_parameters"] |= {"source": "cifar10", "download": True}
    torch.save(checkpoint, "cifar10.ckpt")
    words = ["--ckpt_path=cifar10.ckpt", f"--data.test_crops={crops}", "--data.root=nowhere", "--data.batch_size=2"]
    assert fit("predict", *words, "--data.predict_folder=photos", "--trainer.precision=32-true", small=False) == 0
    assert "skipped: photos/broken.png: no picture" in caplog.text
    path = Path("logs/alexnet/version_0/predictions.csv")
    predict.main(["--ckpt_path=cifar10.ckpt", "photos", "--test_crops", crops, "--k", "0"])
    ours, theirs = (list(csv.reader(name.open(encoding="utf-8"))) for name in (path, Path("predictions.csv")))
    assert len(ours) == 1 + 5 * 5
    assert [row[:4] for row in ours] == [row[:4] for row in theirs]
    assert [float(row[4]) for row in ours[1:]] == pytest.approx([float(row[4]) for row in theirs[1:]], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--data.predict_folder=empty"], "--data.predict_folder: empty: no pictures in this folder"),
        (["--data.predict_folder=nowhere"], "--data.predict_folder: nowhere: there is no such file"),
        (["--data.predict_folder=bad"], "--data.predict_folder: no picture could be read (bad/a.png: no"),
        (["--data.predict_folder=a.png", "--trainer.limit_predict_batches=0"], "--trainer.limit_predict_batches: 0"),
    ],
)
def test_fit_py_predict_refuses_in_one_line(
    trained: CIFAR10DataModule, refused: Callable[..., str], words: list[str], wrong: str
) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/a.png").write_text("text", encoding="utf-8")
    assert wrong in refused("predict", f"--ckpt_path={CKPT}", *words)


def test_without_the_data_all_but_the_neighbours(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    checkpoint = torch.load(CKPT, weights_only=True)
    checkpoint["datamodule_hyper_parameters"] |= {"source": "cifar10", "download": True}
    del checkpoint["CIFAR10DataModule"]["class_names"]  # an earlier version's
    torch.save(checkpoint, "cifar10.ckpt")
    Path("empty").mkdir()
    predict.main(["--ckpt_path", "cifar10.ckpt", "a.png", "--root", "empty", "--k", "20"])
    out, err = capsys.readouterr()
    assert "no neighbours: --root: no CIFAR-10 in " in err
    assert "in the panel" not in out
    (found,) = json.loads(Path("predictions.json").read_text(encoding="utf-8"))["pictures"]
    assert "frog" in found["probabilities"]
    assert found["neighbours"] == []
    assert Path("predictions.png").exists()


def test_the_evidence_is_an_extra(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("captum")
    save(trained.images_in("test")[0][0], "a.png")
    predict.main(["--ckpt_path", str(CKPT), "a.png", "--out", "with.png"])
    monkeypatch.setattr(predict, "find_spec", lambda name: None)
    predict.main(["--ckpt_path", str(CKPT), "a.png", "--out", "without.png"])
    assert "no evidence: captum is not there" in capsys.readouterr().err
    wide, narrow = (Image.open(name).width for name in ("with.png", "without.png"))
    assert wide > narrow
    assert Path("with.csv").read_text(encoding="utf-8") == Path("without.csv").read_text(encoding="utf-8")


def test_a_training_image_is_its_own_nearest(trained: CIFAR10DataModule) -> None:
    place = int(trained.split.train[42])
    Path("photos").mkdir()
    save(trained.images_in("train")[0][place], "photos/it.png")
    Path("photos/broken.png").write_bytes(b"no")
    (row,) = retrieved("photos", "--k", "1")
    assert int(row["index"]) == place
    assert float(row["value"]) < 1e-4


def test_the_gallery_is_embedded_once(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its images and their labels, so that the next time the training split is not even read."""
    save(trained.images_in("test")[0][0], "a.png")
    first = retrieved("a.png")
    files = [Path(f"predictions{ending}") for ending in (".png", ".csv", ".json")]
    contents_then = [path.read_bytes() for path in files]
    (cache,) = Path("logs/alexnet-shapes10/version_0/retrieval_cache").glob("*.pt")
    written = cache.stat().st_mtime_ns
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR10DataModule, "images_in", lambda *_: pytest.fail("it was read"))
        assert retrieved("a.png") == first
    assert [path.read_bytes() for path in files] == contents_then
    assert "(cached)" in capsys.readouterr().out
    assert cache.stat().st_mtime_ns == written

    contents = bytearray(cache.read_bytes())
    contents[len(contents) // 2] ^= 1  # a flipped bit
    cache.write_bytes(contents)
    assert retrieved("a.png") == first
    captured = capsys.readouterr()
    assert "damaged" in captured.err
    assert "anew" in captured.err
    assert "(now embedded)" in captured.out
    assert retrieved("a.png") == first
    assert "(cached)" in capsys.readouterr().out

    cache.with_name(f"{cache.name}.sha256").unlink()
    assert retrieved("a.png") == first
    assert "no SHA-256 beside it" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["official", "folders", "shapes10"])
def test_the_cache_is_of_the_images_and_what_is_done_with_them(
    trained: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """The official files are known by their MD5s and shapes10 by its source, both unread; others by their images."""
    files = Official(monkeypatch)
    {"official": files.write_batches, "folders": write_folders, "shapes10": Path.mkdir}[root](Path(root))
    files.write_archive(Path("archive"))

    def digest(root: str = root, device: str = "cpu", **settings: Any) -> str:
        source: Source = "shapes10" if root == "shapes10" else "cifar10"
        datamodule = CIFAR10DataModule(root, source, False, **{"val_size": 0, "crop_size": 28, **settings})
        datamodule.statistics = trained.statistics
        found = gallery_digest(datamodule, device)
        assert bool(datamodule._images) == (root == "folders")
        return found

    found = [digest(), digest(device="cuda"), digest(crop_size=32), digest(subset_size=10), digest(split_seed=1)]
    assert digest() == found[0]
    assert (digest("archive") == found[0]) == (root == "official")
    for picture in Path().glob("folders/train/frog/*"):
        save(torch.zeros(3, 32, 32, dtype=torch.uint8), str(picture))
    files.files["data_batch_3"] = files.files["data_batch_4"]
    files.expect_these()
    monkeypatch.setattr(gallery.shapes10, "__file__", __file__)
    assert len({*found, digest()}) == 6


def test_a_network_that_is_overwritten_is_not_drawn() -> None:
    state = torch.get_rng_state()
    with Undrawn():
        for settings in ({"init": "fast"}, {"init": "torch"}, {"init": "code"}, {"network": "19pct", "image_size": 32}):
            AlexNetClassifier(**settings)
    assert torch.get_rng_state().equal(state)


def test_another_checkpoint_has_a_cache_of_its_own(trained: CIFAR10DataModule) -> None:
    save(trained.images_in("train")[0][0], "a.png")
    retrieved("a.png")
    checkpoint = torch.load(CKPT, weights_only=True)
    checkpoint["state_dict"]["net.fc7.bias"] += 1
    torch.save(checkpoint, CKPT.with_name("other.ckpt"))
    predict.main(["--ckpt_path", str(CKPT.with_name("other.ckpt")), "a.png"])
    assert len(list(Path("logs").rglob("retrieval_cache/*.pt"))) == 2


def test_a_cache_that_can_not_be_written_is_done_without(
    trained: CIFAR10DataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    save(trained.images_in("test")[0][0], "a.png")
    Path("logs/alexnet-shapes10/version_0/retrieval_cache").write_text("a file in its place", encoding="utf-8")
    assert len(retrieved("a.png")) == 6
    assert "the next time takes as long" in capsys.readouterr().err


def test_a_panel_of_many_is_cut(
    trained: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "SHOWN_PHOTOS", 2)
    Path("photos").mkdir()
    for place in range(3):
        save(trained.images_in("test")[0][place], f"photos/{place}.png")
    assert len(retrieved("photos", "--k", "14")) == 3 * 14
    assert "shown: 2 of 3 pictures; in the panel 12 of 14 neighbours" in capsys.readouterr().out
    assert np.array(Image.open("predictions.png")).shape[0] < TOP + 3 * ROW_HEIGHT


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
        patch.setattr(predict, "probabilities_of", lambda *_: pytest.fail("work began"))
        with pytest.raises(SystemExit) as exit_:
            predict.main(["--ckpt_path", str(CKPT), "cat.png", "--out", out])
    assert exit_.value.code == 2
    line = error_line(capsys.readouterr().err)
    assert f"--out: {out.replace('table.png', 'table.csv')} is " in line
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    for _ in range(2):  # its own it does write over, but not where it is a query
        predict.main(["--ckpt_path", str(CKPT), "cat.png", "--out", "mine.png"])
    with pytest.raises(SystemExit):
        predict.main(["--ckpt_path", str(CKPT), ".", "--out", "mine.png"])


def test_a_name_on_one_line(trained: CIFAR10DataModule) -> None:
    save(trained.images_in("test")[0][0], "two\nlines,\udcff.png")
    rows = retrieved("two\nlines,\udcff.png", "--k", "1")
    assert rows[0]["picture"] == "two?lines,?.png"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are markup to rich, and a word between colons a picture."""
    name = "[red]a:cat:[/x].png"
    predict.print_table([(name, "label", 1, "[bold]frog", 0.5, None), (name, "neighbour", 1, "[i]dog", 2.0, 3)])
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
    assert predict.short_names(names) == short


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["nowhere.png"], "nowhere.png: there is no such file"),
        (["text.png"], "text.png: no picture"),
        (["empty"], "empty: no pictures in this folder"),
        (["bad"], "photo: no picture could be read (bad/a.png: no picture"),
        (["a.png", "--k", "-1"], "--k: -1, expected 0 or more"),
        (["a.png", "--k", "101"], "--k: 101, expected at most 100"),
        (["a.png", "--out", "a.jpg"], "--out: a.jpg, expected a file that ends in .png"),
        (["a.png", "--out", "no/a.png"], "--out: no/a.png, expected a file in a folder that is there"),
        (["a.png", "--ckpt_path", "nowhere.ckpt"], "--ckpt_path: nowhere.ckpt is no file"),
        (["a.png", "--ckpt_path", "text.png"], "text.png: can't be read as a checkpoint"),
        (["a.png", "--ckpt_path", "other.ckpt"], "other.ckpt: does not say what it does with an image"),
        (["a.png", "--ckpt_path", "newer.ckpt"], "newer.ckpt: its settings are not this version's"),
        (["a.png", "--test_crops", "5"], "--test_crops"),
        ([], "PHOTO"),
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
    with pytest.raises(SystemExit) as exit_:
        predict.main(["--ckpt_path", str(CKPT), *words])
    assert exit_.value.code == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("error: ")
    assert wrong in complaint
    assert not Path("predictions.png").exists()


KEPT = {
    "key": "k",
    "features": torch.ones(5, 4),
    "places": torch.arange(5),
    "images": torch.zeros(5, 3, 32, 32, dtype=torch.uint8),
    "targets": torch.arange(5),
}


@pytest.mark.parametrize(
    "contents",
    [
        [],
        {"key": "k"},
        {"key": "k", "features": KEPT["features"]},  # an earlier version's
        {**KEPT, "key": "another"},
        {**KEPT, "features": "text"},
        {**KEPT, "features": torch.zeros(5, 3)},
        {**KEPT, "features": torch.zeros(6, 4)},
        {**KEPT, "features": torch.zeros(5, 4).half()},
        {**KEPT, "features": torch.zeros(5, 4).to_sparse()},
        {**KEPT, "features": torch.full((5, 4), float("nan"))},
        {**KEPT, "places": torch.arange(6)},
        {**KEPT, "images": torch.zeros(5, 3, 32, 32)},
        {**KEPT, "targets": torch.zeros(5, 1, dtype=torch.int64)},
    ],
    ids=range(13),
)
def test_a_cache_of_other_contents_under_a_right_sha256_is_not_taken(
    contents: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("cache.pt")
    write_checkpoint(KEPT, path)
    kept = read_cache(path, "k", 4)
    assert kept is not None
    assert all(getattr(kept, name).equal(KEPT[name]) for name in Gallery._fields)
    write_checkpoint(contents, path)
    assert read_cache(path, "k", 4) is None
    assert "embedding the training images anew" in capsys.readouterr().err
