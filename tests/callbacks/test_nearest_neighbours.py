from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, small_net
from helpers.small_net import SmallNet, calls_of, events, png
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from callbacks import NearestNeighbours, nearest_neighbours
from callbacks.pure.choosing import spread_queries

STEPS = 3  # in an epoch


class Pictures(Dataset[Any]):
    """Noise on a colour of the class; fetched a whole batch at a time, as uint8."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(0, 4, (count,), generator=g)
        colours = torch.randint(60, 196, (4, 3, 1, 1), generator=torch.Generator().manual_seed(7))
        self.images = (colours[self.targets] + torch.randint(-59, 59, (count, 3, 24, 24), generator=g)).to(torch.uint8)
        self.fetched: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.targets)

    def fetch(self, places: list[int]) -> tuple[Tensor, Tensor]:
        self.fetched.append(list(places))
        return self.images[places], self.targets[places]

    __getitems__ = fetch  # as DataLoader calls it


class Data(LightningDataModule):
    class_names = ("ant", "bee", "cow", "dog")

    def __init__(self, train: int = 45, val: int = 20, test: int = 24) -> None:
        super().__init__()
        self.sets = {"train": Pictures(train, 1), "val": Pictures(val, 2), "test": Pictures(test, 3)}

    def loader(self, name: str, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(self.sets[name], batch_size=7, shuffle=shuffle, collate_fn=lambda batch: batch)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader("val") if len(self.sets["val"]) else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def gallery_dataloader(self) -> DataLoader[Any]:
        return self.loader("train")

    def query_dataloader(self, stage: str) -> DataLoader[Any]:
        return self.loader(stage)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].float() / 128 - 1, batch[1]

    def to_rgb(self, images: Tensor) -> Tensor:
        return (images + 1) * 128 / 255


class Net(SmallNet):
    """Notes how it is called to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded: list[tuple[bool, bool]] = []

    def embed(self, images: Tensor) -> Tensor:
        self.embedded.append((self.training, torch.is_grad_enabled()))
        return super().embed(images)


def trainer_for(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return small_net.trainer_for(folder, *callbacks, limit_train_batches=STEPS, **options)


def run(folder: Path, *callbacks: Callback, data: Data | None = None, **options: Any) -> tuple[Net, Data, Trainer]:
    torch.manual_seed(1)
    model, data = Net(), data or Data()
    _, trainer = small_net.run(folder, data, *callbacks, model=model, limit_train_batches=STEPS, **options)
    return model, data, trainer


def brute_force(model: Net, data: Data, stage: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices with numpy, from the features of each image alone."""

    def features(name: str) -> np.ndarray:
        pictures = data.sets[name].images.float() / 128 - 1
        return torch.cat([model.embed(picture[None]) for picture in pictures]).double().numpy()

    model.eval()
    with torch.no_grad():
        difference = features(stage)[:, None] - features("train")[None]
    distances = np.sqrt((difference**2).sum(2))
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


def precision(data: Data, stage: str, indices: np.ndarray) -> float:
    queries, gallery = data.sets[stage].targets.tolist(), data.sets["train"].targets.tolist()
    hits = [gallery[i] == query for query, row in zip(queries, indices.tolist(), strict=True) for i in row]
    return sum(hits) / len(hits)


def pngs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("retrieval/*"))


def test_precision_is_brute_forces_and_reaches_tensorboard(tmp_path: Path):
    callback = NearestNeighbours(precision_at=(1, 5, 10))
    model, data, trainer = run(tmp_path, callback)
    _, indices = brute_force(model, data, "val", 10)
    want = {f"val/retrieval_p{k}": precision(data, "val", indices[:, :k]) for k in (1, 5, 10)}
    assert len(set(want.values())) > 1
    assert callback.precision == pytest.approx(want, abs=1e-12)
    log = events(tmp_path)
    for tag, value in want.items():
        assert [(e.step, e.value) for e in log.Scalars(tag)] == [(2 * STEPS, pytest.approx(value, abs=1e-6))]

    trainer.test(model, datamodule=data, verbose=False)
    _, indices = brute_force(model, data, "test", 10)
    want |= {f"test/retrieval_p{k}": precision(data, "test", indices[:, :k]) for k in (1, 5, 10)}
    assert callback.precision == pytest.approx(want, abs=1e-12)
    assert sorted(events(tmp_path).Tags()["images"]) == ["retrieval/test", "retrieval/val"]
    assert pngs(tmp_path) == ["test_epoch_002.png", "val_epoch_002.png"]


def test_a_test_alone_can_look(tmp_path: Path):
    model, data, trainer = run(tmp_path, NearestNeighbours(after_fit=False))
    assert pngs(tmp_path) == []
    trainer.test(model, datamodule=data, verbose=False)
    assert pngs(tmp_path) == ["test_epoch_002.png"]


def test_some_of_many_queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every other one of the 20 validation images is looked up; the panel shows those, not their neighbours in line."""
    shown = calls_of(monkeypatch, nearest_neighbours, "retrieval_panel")
    callback = NearestNeighbours(max_queries=10, num_queries=3, precision_at=(5,))
    model, data, _ = run(tmp_path, callback)
    _, indices = brute_force(model, data, "val", 5)
    targets, gallery = data.sets["val"].targets[::2], data.sets["train"].targets
    want = (gallery[torch.from_numpy(indices[::2].copy())] == targets[:, None]).double().mean().item()
    assert callback.precision == {"val/retrieval_p5": pytest.approx(want, abs=1e-12)}
    rows = [2 * row for row in spread_queries(targets.tolist(), 3)]
    torch.testing.assert_close(shown[0][0], data.sets["val"].images[rows] / 255)


def test_the_panel_shows_the_neighbours_of_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = calls_of(monkeypatch, nearest_neighbours, "retrieval_panel")
    model, data, _ = run(tmp_path, NearestNeighbours(1, num_queries=3, k=4), epochs=2)
    queries, neighbours, query_targets, neighbour_targets, distances, names, title = shown[-1]
    assert torch.equal(queries, shown[0][0]), "the same queries in the whole run"
    want_distances, want_indices = brute_force(model, data, "val", 4)
    rows = spread_queries(data.sets["val"].targets.tolist(), 3)
    val, train = data.sets["val"], data.sets["train"]
    torch.testing.assert_close(queries, val.images[rows] / 255)
    torch.testing.assert_close(neighbours, train.images[want_indices[rows].flatten()].view(3, 4, 3, 24, 24) / 255)
    assert query_targets == val.targets[rows].tolist()
    assert neighbour_targets == train.targets[want_indices[rows]].tolist()
    np.testing.assert_allclose(distances, want_distances[rows], rtol=1e-5)
    assert (names, title) == (data.class_names, "val images after epoch 2")
    # The query is none of its neighbours: they come from the training images.
    assert all(d > 0 for row in distances for d in row)


def test_embeds_in_evaluation_mode_without_gradients(tmp_path: Path):
    model, _, _ = run(tmp_path, NearestNeighbours(1))
    assert set(model.embedded) == {(False, False)}


def test_images_are_embedded_once_and_few_are_fetched_for_the_panel(tmp_path: Path):
    _, data, _ = run(tmp_path, NearestNeighbours(num_queries=2, k=3), limit_val_batches=0)
    whole = [list(range(45))[i : i + 7] for i in range(0, 45, 7)]
    assert data.sets["train"].fetched[-8:-1] == whole  # training itself takes them shuffled
    assert len(data.sets["train"].fetched[-1]) == 2 * 3
    assert [len(places) for places in data.sets["val"].fetched] == [7, 7, 6, 2]


def test_switched_off_it_embeds_nothing(tmp_path: Path):
    for callback, options in (
        (NearestNeighbours(1, enabled=False), {}),
        (NearestNeighbours(1), {"fast_dev_run": True}),
    ):
        model, data, trainer = run(tmp_path, callback, **options)
        trainer.test(model, datamodule=data, verbose=False)
        assert not model.embedded
        assert not callback.precision


def test_a_gallery_smaller_than_k(tmp_path: Path):
    callback = NearestNeighbours(k=6, precision_at=(1, 10))
    model, data, _ = run(tmp_path, callback, data=Data(train=4, val=3))
    assert pngs(tmp_path) == ["val_epoch_002.png"]
    assert callback.precision["val/retrieval_p10"] == pytest.approx(
        precision(data, "val", brute_force(model, data, "val", 4)[1])
    )


def test_no_precision_is_wanted(tmp_path: Path):
    callback = NearestNeighbours(precision_at=())
    run(tmp_path, callback)
    assert callback.precision == {}
    assert pngs(tmp_path) == ["val_epoch_002.png"]


def test_one_image_that_overflows_does_not_stop_the_run(tmp_path: Path):
    class Overflows(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            real = pl_module.embed
            # Three batches of queries come first; this is the last batch of the gallery.
            pl_module.embed = lambda images: real(images) / (len(pl_module.embedded) != 10)

    callback = NearestNeighbours()
    with pytest.warns(UserWarning, match="NaN or infinite"):
        model, _, _ = run(tmp_path, Overflows(), callback)
    assert len(model.embedded) == 10
    assert not callback.precision


def test_bfloat16(tmp_path: Path):
    callback = NearestNeighbours()
    run(tmp_path, callback, precision="bf16-mixed")
    assert 0.25 < callback.precision["val/retrieval_p5"] <= 1


def main(folder: str, devices: str) -> None:
    """Fit and test with so many processes; what came out goes to a file a process."""
    found: list[Any] = []
    real = nearest_neighbours.retrieve

    def listening(*arguments: Any) -> Any:
        found.append(real(*arguments))
        return found[-1]

    nearest_neighbours.retrieve = listening
    torch.manual_seed(1)
    model, data, callback = Net(), Data(), NearestNeighbours(precision_at=(1, 5))
    trainer = trainer_for(Path(folder), callback, devices=int(devices), strategy="ddp" if devices != "1" else "auto")
    trainer.test(model, datamodule=data, verbose=False)
    out = {"found": [tuple(result) for result in found], "precision": callback.precision}
    torch.save(out, f"{folder}/rank{trainer.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path):
    root = ROOT
    for devices in ("1", "2"):
        folder = tmp_path / devices
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, __file__, str(folder), devices],
            env={**os.environ, "PYTHONPATH": f"{root}:{root}/tests", "OMP_NUM_THREADS": "1"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(tmp_path / "1/rank0.pt")
    assert len(one["found"]) == 1
    assert one["found"][0][1].shape == (24, 6)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"2/rank{rank}.pt")
        assert all(torch.equal(a, b) for a, b in zip(one["found"][0], two["found"][0], strict=True))
        assert two["precision"] == one["precision"]
    np.testing.assert_array_equal(*(png(tmp_path / f"{n}/retrieval/test_epoch_000.png") for n in (1, 2)))
    assert len(events(tmp_path / "2").Images("retrieval/test")) == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
