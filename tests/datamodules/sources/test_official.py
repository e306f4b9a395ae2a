"""The official files, unpacked and in their archive, whole and damaged."""

import gzip
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.official import Evil, Official, check_message, md5, python2_pickle

from datamodules.sources import ARCHIVE, CLASSES, DataError, Layout, download, load_cifar10, resolve_source
from datamodules.sources import official as official_files


def test_figures_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10

    assert official_files.BATCH_MD5S["train"] == dict(CIFAR10.train_list)
    assert official_files.BATCH_MD5S["test"] == dict(CIFAR10.test_list)
    assert CIFAR10.tgz_md5 == download.ARCHIVE_MD5
    assert download.URLS[0] == CIFAR10.url


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
    official.monkeypatch.setattr(CIFAR10, "train_list", list(official_files.BATCH_MD5S["train"].items()))
    official.monkeypatch.setattr(CIFAR10, "test_list", list(official_files.BATCH_MD5S["test"].items()))
    official.monkeypatch.setitem(CIFAR10.meta, "md5", md5(meta))
    layout = official.write_batches(tmp_path)
    (layout.path / "batches.meta").write_bytes(meta)
    for split in ("train", "test"):
        theirs = CIFAR10(tmp_path, train=split == "train")
        images, targets = load_cifar10(layout, split)
        assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
        assert targets.tolist() == theirs.targets


def test_binary_version_is_the_same_images(official: Official, tmp_path: Path) -> None:
    pickles, binary = official.write_batches(tmp_path), official.write_binary(tmp_path)
    for split in ("train", "test"):
        for theirs, ours in zip(load_cifar10(binary, split), load_cifar10(pickles, split), strict=True):
            assert torch.equal(theirs, ours)
            assert theirs.dtype == ours.dtype
            assert theirs.is_contiguous()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (bytes(3073 * 2), "damaged, 6146 bytes, expected 9219"),
        (bytes([10]) + bytes(3073 * 3 - 1), "damaged, a label is 10, expected 0 to 9"),
        (None, "No such file or directory, expected an official file"),
    ],
)
def test_binary_version_is_checked(official: Official, tmp_path: Path, raw: bytes | None, words: str) -> None:
    layout = official.write_binary(tmp_path)
    path = layout.path / "data_batch_2.bin"
    path.unlink()
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, path, words, "Unpack the binary version anew")


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
        (
            python2_pickle(np.zeros((2, 3071), np.uint8), [0, 1]),
            "uint8 (2, 3071) with 2 labels from 0 to 1, expected uint8 (n, 3072)",
        ),
        (
            python2_pickle(np.zeros((2, 3072), np.int8), [0, 1]),
            "int8 (2, 3072) with 2 labels from 0 to 1, expected uint8",
        ),
        (python2_pickle(ZEROS, [0, 10]), "2 labels from 0 to 10, expected uint8 (n, 3072) with n labels from 0 to 9"),
        (python2_pickle(ZEROS, [0, -1]), "2 labels from -1 to 0, expected"),
        (python2_pickle(ZEROS, [0]), "uint8 (2, 3072) with 1 labels"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 batch"),
        (pickle.dumps({b"data": 1, b"labels": [1]}), "not a CIFAR-10 batch (AttributeError"),
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
    check_message(caught.value, layout.path, "can't be read", "Delete", "run again")


def test_archive_link_and_missing_member(official: Official, tmp_path: Path) -> None:
    layout = official.write_archive(tmp_path, official.archive_bytes(link="test_batch"))
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "test")
    check_message(caught.value, layout.path, "holds no file cifar-10-batches-py/test_batch")
    del official.files["test_batch"]
    layout = official.write_archive(tmp_path)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "test")
    check_message(caught.value, layout.path, "holds no file cifar-10-batches-py/test_batch")
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]  # nothing was unpacked


@pytest.mark.parametrize("kind", ["batches", "binary"])
@pytest.mark.parametrize("thing", ["pipe", "device", "sparse"])
def test_what_is_no_file_of_that_size_is_not_read(official: Official, tmp_path: Path, kind: str, thing: str) -> None:
    """A pipe would be waited for, /dev/zero has no end, and a sparse file of 100 GB takes no room on the disk."""
    layout = official.write_batches(tmp_path) if kind == "batches" else official.write_binary(tmp_path)
    path = layout.path / ("data_batch_1" if kind == "batches" else "data_batch_1.bin")
    path.unlink()
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 10**11)
    with pytest.raises(DataError) as caught:
        load_cifar10(layout, "train")
    check_message(caught.value, path, "damaged" if thing == "sparse" else "not a regular file")


@pytest.mark.parametrize("header", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_archive_that_unpacks_to_a_gigabyte_is_refused(official: Official, tmp_path: Path, header: bytes) -> None:
    """Of a megabyte. tarfile reads what describes a member whole, before anybody sees the member."""
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.size, member.type = 2**30, header
    archive = tmp_path / "cifar-10-python.tar.gz"
    with gzip.open(archive, "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(4):  # as much as it takes to show that it would go on
            file.write(bytes(2**24))
    with pytest.raises(DataError) as caught:
        load_cifar10(Layout("archive", archive), "train")
    check_message(caught.value, archive, "can't be read (1073741824 bytes")
