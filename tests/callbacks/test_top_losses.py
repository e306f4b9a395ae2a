from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import SmallNet, calls_of, events, inputs_of, trainer_for
from torch import Tensor

from callbacks import TopLosses, top_losses
from datamodules import CIFAR10DataModule


class Net(SmallNet):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.net.fc8.weight.data *= 20  # of various opinions

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.log_probabilities(batch[0]).exp()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("crops", "batches", "images"), [(1, None, 60), (10, None, 60), (1, 2, 32)])
def test_it_says_of_each_image_what_predict_does(
    tmp_path: Path, small_shapes: None, crops: Any, batches: int | None, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = calls_of(monkeypatch, top_losses, "loss_panel")
    data = CIFAR10DataModule(source="shapes10", subset_size=100, batch_size=16, val_size=40, image_size=24)
    data.test_crops = crops
    model, trainer = Net(), trainer_for(tmp_path, TopLosses(num_images=7), limit_test_batches=batches)
    trainer.test(model, data, verbose=False)
    probabilities = torch.cat(trainer.predict(model, data)).numpy()  # type: ignore[arg-type]
    targets = data.images_in("test")[1].tolist()

    # The test goes through the images in an order in which classes alternate.
    of_class = [[i for i in range(60) if targets[i] == c] for c in range(10)]
    tested = sorted([of_class[c][turn] for turn in range(6) for c in range(10)][:images])
    assert images == 60 or tested != list(range(images))
    rows = table(tmp_path)
    assert [int(row["place"]) for row in rows] == tested
    for row in rows:
        said, target = probabilities[int(row["place"])], targets[int(row["place"])]
        assert row["true_class"] == data.class_names[target]
        assert row["predicted_class"] == data.class_names[said.argmax()]
        numbers = [float(row[name]) for name in ("confidence", "loss", "true_class_probability")]
        assert numbers == pytest.approx([said.max(), -np.log(said[target]), said[target]], rel=1e-4)
    assert len({row["loss"] for row in rows}) > images / 2

    ((drawn, scored, names, title),) = shown
    losses = {i: -np.log(probabilities[i][targets[i]]) for i in tested}
    assert scored.places.tolist() == sorted(tested, key=lambda i: -losses[i])[:7]
    assert torch.allclose(drawn, data.to_rgb(inputs_of(data, "test", scored.places)[0]), atol=1e-6)
    assert (names, title) == (data.class_names, f"test images after epoch 0: highest losses of {images}")
    assert events(tmp_path).Tags()["images"] == ["top_losses/test"]


def test_nothing_to_draw(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    trainer_for(tmp_path / "none", TopLosses(num_images=0)).test(Net(), datamodule, verbose=False)
    model = Net()
    model.net.fc8.weight.data.fill_(float("nan"))
    with pytest.warns(UserWarning, match="TopLosses: losses are NaN after epoch 0: no image shown"):
        trainer_for(tmp_path / "nan", TopLosses()).test(model, datamodule, verbose=False)
    assert not list(tmp_path.rglob("*.png"))
    assert [len(table(tmp_path / name)) for name in ("none", "nan")] == [60, 60]
    assert {row["loss"] for row in table(tmp_path / "nan")} == {"nan"}


def test_a_perfect_network_and_a_silent_one(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Oracle(SmallNet):
        def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"log_probabilities": torch.nn.functional.one_hot(batch[1], 10).float().log()}

    class Silent(SmallNet):
        def test_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            pass

    trainer_for(tmp_path, TopLosses()).test(Oracle(), datamodule, verbose=False)
    assert {(row["confidence"], row["loss"], row["true_class_probability"]) for row in table(tmp_path)} == {
        ("1", "0", "1")
    }
    with pytest.raises(TypeError, match="TopLosses needs .* log_probabilities, got NoneType from Silent"):
        trainer_for(tmp_path, TopLosses()).test(Silent(), datamodule, verbose=False)
