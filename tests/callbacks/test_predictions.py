from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_net import run

from callbacks import Predictions, predictions
from callbacks.pure.prediction_panel import (
    prediction_panel,
)
from datamodules import CIFAR10DataModule


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_images: 0 is below 1, expected"):
        Predictions(num_images=0)


def test_the_same_images_all_along_and_what_the_network_says_of_them(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []

    def listening(images: Any, probabilities: Any, targets: Any, class_names: Any, title: str) -> torch.Tensor:
        shown.append({"images": images, "p": probabilities, "targets": targets, "title": title})
        return prediction_panel(images, probabilities, targets, class_names, title)

    monkeypatch.setattr(predictions, "prediction_panel", listening)
    model, trainer = run(tmp_path, datamodule, Predictions())
    trainer.test(model, datamodule, verbose=False)
    assert [look["title"] for look in shown] == [
        "val images before training",
        "val images after epoch 1 (step 4)",
        "val images after epoch 2 (step 8)",
        "test images after epoch 2",
    ]
    assert len(shown[0]["images"]) == 8
    assert all(torch.equal(look["images"], shown[0]["images"]) for look in shown[:3])
    assert not torch.equal(shown[0]["p"], shown[2]["p"])
    for look, split, places in (
        (shown[2], "train", datamodule.split.val),
        (shown[3], "test", torch.arange(60)),
    ):
        raw, targets = datamodule.images_in(split)  # type: ignore[arg-type]
        assert len(set(look["targets"])) == 8  # eight classes
        with torch.no_grad():
            for image, probabilities, target in zip(look["images"], look["p"], look["targets"], strict=True):
                # Which one it is, found by its pixels (which went through the network's 24-pixel input).
                inputs = datamodule._to_input(raw[places])
                distances = (datamodule.to_rgb(inputs) - image).abs().flatten(1).amax(1)
                place = int(distances.argmin())
                assert distances[place] < 1e-5
                assert int(targets[places[place]]) == target
                logits = model.eval().net(inputs[place : place + 1])[0]
                torch.testing.assert_close(probabilities, logits.softmax(0))


def test_nan_does_not_stop_training(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Diverges(Predictions):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.net.fc8.weight.data.fill_(float("nan"))
            super().on_train_epoch_end(trainer, pl_module)

    with pytest.warns(UserWarning, match="Diverges: probabilities are NaN"):
        _, trainer = run(tmp_path, datamodule, Diverges())
    assert trainer.global_step == 8
    assert len(list(tmp_path.glob("predictions/*"))) == 1
