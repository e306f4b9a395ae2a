"""Which data a run uses, and what is said about them."""

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.official import Official, check_message, write_folders
from PIL import Image

from datamodules.sources import (
    ARCHIVE,
    BATCHES,
    BINARY,
    CLASSES,
    DataError,
    Layout,
    count_overlap,
    find_cifar10,
    load_cifar10,
    resolve_source,
)
from datamodules.sources.download import download_cifar10


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_find_prefers_official_files(official: Official, tmp_path: Path, below: str) -> None:
    assert find_cifar10(tmp_path / "nowhere") is None
    assert find_cifar10(tmp_path) is None
    base = tmp_path / below
    expected = write_folders(base, per_class=1)
    assert find_cifar10(tmp_path) == expected
    expected = official.write_binary(base)
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
        "root: ",
        tmp_path,
        f"{BATCHES}/",
        ARCHIVE,
        f"{BINARY}/",
        "train/<class>/",
        "python scripts/fit.py -c configs/quickstart.yaml",
    )
    assert resolve_source(tmp_path, "auto", download=False) is None
    assert "no CIFAR-10 in" in caplog.text
    assert caplog.text.rstrip().endswith("Using shapes10, the drawn stand-in, instead.")
    assert "quickstart" not in caplog.text


@pytest.mark.parametrize("below", ["", "cifar10"])
@pytest.mark.parametrize(
    "name",
    [
        "trainLabels.csv",
        "train.parquet",
        "plain_text/test-00000-of-00001.parquet",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-mat/test_batch.mat",
        "cifar10.npz",
    ],
)
def test_images_that_are_not_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, below: str, name: str
) -> None:
    path = tmp_path / below / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    named = path if path.suffix != ".mat" else path.parent
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar10", download=False)
    check_message(caught.value, f"{named} is not read (", "Put one of these there")
    assert resolve_source(tmp_path, "auto", download=False) is None
    assert f"{named} is not read (" in caplog.text


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path, "cifar100")  # type: ignore[arg-type]
    check_message(caught.value, "source: ", "'cifar100'")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path / "file", "auto")
    check_message(caught.value, "root: ", tmp_path / "file")
    with pytest.raises(DataError) as caught:
        download_cifar10(tmp_path / "file" / "data")
    check_message(caught.value, "root: ", tmp_path / "file" / "data")


def test_messages_stay_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve_source(tmp_path / "two\nlines", "cifar10", download=False)
    check_message(caught.value, "two lines")


def test_count_overlap() -> None:
    a = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    assert count_overlap(a, a[[1, 1, 3]]) == 3
    assert count_overlap(a[:2], a[1:]) == 1
    assert count_overlap(a[:2], a[2:]) == 0


def test_classes_are_in_the_official_order() -> None:
    assert " ".join(CLASSES) == "airplane automobile bird cat deer dog frog horse ship truck"


def test_descriptions_tell_jpeg_from_lossless(tmp_path: Path, official: Official) -> None:
    words = [
        official.write_batches(tmp_path).description,
        official.write_archive(tmp_path).description,
        official.write_binary(tmp_path).description,
        write_folders(tmp_path / "a", ".png").description,
        write_folders(tmp_path / "b", ".JPG").description,
    ]
    Image.new("RGB", (32, 32)).save(tmp_path / "a/test/cat/x.jpeg")
    words.append(Layout("folders", tmp_path / "a").description)
    assert words == [
        "CIFAR-10 (official files)",
        "CIFAR-10 (official archive)",
        "CIFAR-10 (official binary version)",
        "CIFAR-10 (PNG copy in class folders)",
        "CIFAR-10 (JPEG copy in class folders)",
        "CIFAR-10 (JPEG and PNG copy in class folders)",
    ]


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["batches", "folders"])
def test_real_cifar10(kind: str) -> None:
    """The official files have CIFAR-10's published channel means; JPEG moves them by far less than the tolerance."""
    paths = {"batches": ROOT / "data" / BATCHES, "folders": ROOT / "data" / "cifar10"}
    if not paths[kind].is_dir():
        pytest.skip(f"no CIFAR-10 in {paths[kind].relative_to(ROOT)}")
    split, count, tolerance = ("train", 5000, 5e-5) if kind == "batches" else ("test", 500, 5e-3)  # decoding takes long
    images, targets = load_cifar10(Layout(kind, paths[kind]), split)  # type: ignore[arg-type]
    assert images.shape == (10 * count, 3, 32, 32)
    assert targets.bincount().tolist() == [count] * 10
    means = images.float().div(255).mean(dim=(0, 2, 3))
    published = {"train": [0.4914, 0.4822, 0.4465], "test": [0.4942, 0.4851, 0.4504]}
    assert torch.allclose(means, torch.tensor(published[split]), rtol=0, atol=tolerance + 1e-6)


@pytest.mark.real_data
def test_real_test_images() -> None:
    """All 10,000, and the mean of all of the official files' test images."""
    layout = find_cifar10(ROOT / "data")
    if layout is None or layout.kind != "batches":
        pytest.skip(f"no CIFAR-10 in data/{BATCHES}")
    images, targets = load_cifar10(layout, "test")
    assert targets.bincount().tolist() == [1_000] * 10
    means = images.float().div(255).mean(dim=(0, 2, 3))
    assert torch.allclose(means, torch.tensor([0.4942, 0.4851, 0.4504]), rtol=0, atol=1e-4)
