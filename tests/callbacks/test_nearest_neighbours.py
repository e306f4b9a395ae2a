from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import small_net
from helpers.small_net import SmallNet, calls_of, events, inputs_of, png, scalars
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import NearestNeighbours, nearest_neighbours
from callbacks.pure.choosing import spread_queries
from datamodules import CIFAR10DataModule, shapes10
from datamodules.cifar10 import ImageSet


class Net(SmallNet):
    """Notes how it is called to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[tuple[bool, bool]] = []

    def embed(self, images: Tensor) -> Tensor:
        self.embedded.append((self.training, torch.is_grad_enabled()))
        return super().embed(images)


def run(
    folder: Path, data: CIFAR10DataModule, *callbacks: Callback, test: bool = False, **options: Any
) -> tuple[Any, Trainer]:
    torch.manual_seed(1)
    model, trainer = small_net.run(folder, data, *callbacks, model=Net(), **options)
    if test:
        trainer.test(model, datamodule=data, verbose=False)
    return model, trainer


def brute_force(model: Net, data: CIFAR10DataModule, stage: str, k: int) -> tuple[np.ndarray, Tensor]:
    """Distances and indices with numpy, from the features of each image alone."""
    model.eval()
    with torch.no_grad():
        queries, gallery = (
            torch.cat([model.embed(image[None]) for image in inputs_of(data, name)[0]]).double().numpy()
            for name in (stage, "train")
        )
    distances = np.sqrt(((queries[:, None] - gallery[None]) ** 2).sum(2))
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), torch.from_numpy(indices)


def precision(model: Net, data: CIFAR10DataModule, stage: str, k: int, every: int = 1, searched: int = 1) -> float:
    """Of every ``every``-th query, in every ``searched``-th training image."""
    (_, queries), (_, gallery) = inputs_of(data, stage), inputs_of(data, "train")
    near = brute_force(model, data, stage, len(gallery))[1]
    found = torch.stack([row[row % searched == 0][:k] for row in near])
    hits = gallery[found] == queries[:, None]
    return hits[::every].double().mean().item()


def found_by(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``retrieve`` returns from now on."""
    found: list[Any] = []
    real = nearest_neighbours.retrieve
    monkeypatch.setattr(nearest_neighbours, "retrieve", lambda *words: found.append(real(*words)) or found[-1])
    return found


def pngs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("retrieval/*"))


def test_precision_is_brute_forces_and_reaches_tensorboard(tmp_path: Path, datamodule: CIFAR10DataModule):
    callback = NearestNeighbours(precision_at=(1, 5, 10))
    model, trainer = run(tmp_path, datamodule, callback)
    want = {f"val/retrieval_p{k}": precision(model, datamodule, "val", k) for k in (1, 5, 10)}
    assert len(set(want.values())) > 1
    assert callback.precision == pytest.approx(want, abs=1e-12)
    for tag, value in want.items():
        assert scalars(tmp_path, tag) == {8: pytest.approx(value, abs=1e-6)}

    trainer.test(model, datamodule=datamodule, verbose=False)
    want |= {f"test/retrieval_p{k}": precision(model, datamodule, "test", k) for k in (1, 5, 10)}
    assert callback.precision == pytest.approx(want, abs=1e-12)


def test_a_test_alone_can_look(tmp_path: Path, datamodule: CIFAR10DataModule):
    run(tmp_path, datamodule, NearestNeighbours(after_fit=False), test=True)
    assert pngs(tmp_path) == ["test_epoch_002.png"]


def test_some_of_many_queries(tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch):
    """Every other one of the 40 validation images is looked up; the panel shows those, not their neighbours in line."""
    shown = calls_of(monkeypatch, nearest_neighbours, "retrieval_panel")
    callback = NearestNeighbours(max_queries=20, num_queries=3, precision_at=(5,))
    model, _ = run(tmp_path, datamodule, callback)
    want = precision(model, datamodule, "val", 5, every=2)
    assert callback.precision == {"val/retrieval_p5": pytest.approx(want, abs=1e-12)}
    inputs, targets = inputs_of(datamodule, "val", slice(None, None, 2))
    rows = spread_queries(targets.tolist(), 3)
    torch.testing.assert_close(shown[0][0], datamodule.to_rgb(inputs[rows]))


def test_some_of_many_training_images(tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch):
    """Every other one of the 100 training images is searched; places are those among all."""
    found = found_by(monkeypatch)
    callback = NearestNeighbours(max_gallery=50, precision_at=(5,))
    model, _ = run(tmp_path, datamodule, callback)
    want = precision(model, datamodule, "val", 5, searched=2)
    assert callback.precision == {"val/retrieval_p5": pytest.approx(want, abs=1e-12)}
    indices = brute_force(model, datamodule, "val", 100)[1]
    expected = torch.stack([row[row % 2 == 0][:6] for row in indices])
    assert torch.equal(found[0].indices, expected)


def test_the_panel_shows_the_neighbours_of_brute_force(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
):
    shown = calls_of(monkeypatch, nearest_neighbours, "retrieval_panel")
    model, _ = run(tmp_path, datamodule, NearestNeighbours(1, num_queries=3, k=4))
    assert set(model.embedded) == {(False, False)}
    queries, neighbours, query_targets, neighbour_targets, distances, names, title = shown[-1]
    assert torch.equal(queries, shown[0][0]), "the same queries in the whole run"
    want_distances, want_indices = brute_force(model, datamodule, "val", 4)
    (val, targets), (train, train_targets) = inputs_of(datamodule, "val"), inputs_of(datamodule, "train")
    rows = spread_queries(targets.tolist(), 3)
    torch.testing.assert_close(queries, datamodule.to_rgb(val[rows]))
    for shown_row, indices in zip(neighbours, want_indices[rows], strict=True):
        torch.testing.assert_close(shown_row, datamodule.to_rgb(train[indices]))
    assert query_targets == targets[rows].tolist()
    assert neighbour_targets == train_targets[want_indices[rows]].tolist()
    np.testing.assert_allclose(distances, want_distances[rows], rtol=1e-5)
    assert (names, title) == (datamodule.class_names, "val images after epoch 2, among 100 training images")
    # The query is none of its neighbours: they come from the training images.
    assert all(d > 0 for row in distances for d in row)


def test_images_are_embedded_once_and_few_are_fetched_for_the_panel(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
):
    fetched = calls_of(monkeypatch, ImageSet, "fetch")  # training and validation take theirs by another name
    run(tmp_path, datamodule, NearestNeighbours(num_queries=2, k=3))
    assert [len(places) for _, places in fetched] == [32, 8, 32, 32, 32, 4, 2, 2 * 3]


def test_switched_off_it_embeds_nothing(tmp_path: Path, datamodule: CIFAR10DataModule):
    for enabled, options in ((False, {}), (True, {"fast_dev_run": True})):
        model, _ = run(tmp_path, datamodule, NearestNeighbours(1, enabled=enabled), test=True, **options)
        assert not model.embedded


def test_a_gallery_smaller_than_k(tmp_path: Path, small_shapes: None):
    data = CIFAR10DataModule(source="shapes10", subset_size=10, val_size=10, batch_size=5, image_size=24)
    callback = NearestNeighbours(k=11, precision_at=(1, 20))
    model, _ = run(tmp_path, data, callback)
    assert pngs(tmp_path) == ["val_epoch_002.png"]
    assert callback.precision["val/retrieval_p20"] == pytest.approx(precision(model, data, "val", 10))


def test_no_precision_is_wanted(tmp_path: Path, datamodule: CIFAR10DataModule):
    callback = NearestNeighbours(precision_at=())
    run(tmp_path, datamodule, callback)
    assert callback.precision == {}
    assert pngs(tmp_path) == ["val_epoch_002.png"]


def test_one_image_that_overflows_does_not_stop_the_run(tmp_path: Path, datamodule: CIFAR10DataModule):
    class Overflows(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            real = pl_module.embed
            # Two batches of queries come first; this is the last batch of the gallery.
            pl_module.embed = lambda images: real(images) / (len(pl_module.embedded) != 6)

    callback = NearestNeighbours()
    with pytest.warns(UserWarning, match="NaN or infinite"):
        model, _ = run(tmp_path, datamodule, Overflows(), callback)
    assert len(model.embedded) == 6
    assert not callback.precision


def test_bfloat16(tmp_path: Path, datamodule: CIFAR10DataModule):
    callback = NearestNeighbours()
    model, _ = run(tmp_path, datamodule, callback, precision="bf16-mixed")
    assert callback.precision["val/retrieval_p5"] == pytest.approx(precision(model, datamodule, "val", 5), abs=0.05)


@pytest.mark.parametrize("max_gallery", [100, 9])  # 9 are one batch: none is left for the second process
def test_two_processes_find_what_one_finds(
    tmp_path: Path, small_shapes: None, monkeypatch: pytest.MonkeyPatch, max_gallery: int
) -> None:
    monkeypatch.setattr(shapes10, "_DEFAULT_PER_CLASS", {"train": 16, "test": 7})
    found = found_by(monkeypatch)

    class Keeps(Callback):
        def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            folder = trainer.default_root_dir
            torch.save(
                {"found": [*map(tuple, found)], "precision": callback.precision},
                f"{folder}/rank{trainer.global_rank}.pt",
            )

    for devices, strategy in (("1", "auto"), ("2", "ddp_fork")):
        torch.manual_seed(1)
        callback = NearestNeighbours(max_gallery=max_gallery, precision_at=(1, 5))
        data = CIFAR10DataModule(source="shapes10", subset_size=100, val_size=40, batch_size=9, image_size=24)
        folder = tmp_path / devices
        trainer = small_net.trainer_for(folder, callback, Keeps(), devices=int(devices), strategy=strategy)
        folder.mkdir()
        with patch.dict(os.environ):
            trainer.test(Net(), datamodule=data, verbose=False)
        found.clear()
    one = torch.load(tmp_path / "1/rank0.pt")
    assert len(one["found"]) == 1
    assert one["found"][0][1].shape == (70, 6)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"2/rank{rank}.pt")
        assert all(torch.equal(a, b) for a, b in zip(one["found"][0], two["found"][0], strict=True))
        assert two["precision"] == one["precision"]
    np.testing.assert_array_equal(*(png(tmp_path / f"{n}/retrieval/test_epoch_000.png") for n in (1, 2)))
    assert len(events(tmp_path / "2").Images("retrieval/test")) == 1
