from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import run

from callbacks import Predictions, predictions
from callbacks.pure.canvas import RIGHT
from callbacks.pure.prediction_panel import (
    BAR_HEIGHT,
    BAR_STEP,
    BAR_WIDTH,
    BARS_TOP,
    CELL_WIDTH,
    COLUMNS,
    LEFT,
    NAME_WIDTH,
    OTHER,
    TOP,
    TRACK,
    prediction_panel,
)
from datamodules import CIFAR10DataModule

NAMES = [f"class {i}" for i in range(7)]


def bars(panel: torch.Tensor, cell: int, shown: int = 5) -> list[tuple[str, int]]:
    """Colour and length in pixels of each bar of a cell, read off the picture."""
    cell_height = BARS_TOP + shown * BAR_STEP + 22
    top, left = TOP + cell // COLUMNS * cell_height + BARS_TOP, LEFT + cell % COLUMNS * CELL_WIDTH + NAME_WIDTH
    names = {RIGHT: "right", OTHER: "other"}
    found = []
    for bar in range(shown):
        row = top + bar * BAR_STEP + BAR_HEIGHT // 2
        pixels = [tuple(p) for p in panel[:, row, left : left + BAR_WIDTH].T.tolist()]
        length = next((i for i, p in enumerate(pixels) if p == TRACK), BAR_WIDTH)
        assert len(set(pixels[:length])) == 1
        found.append((names[pixels[0]], length))
    return found


def test_bars_are_the_five_most_probable_and_the_right_one_is_green() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(6, 7, generator=generator)
    probabilities /= probabilities.sum(1, keepdim=True)
    targets = [0, 1, 2, 3, 4, 5]
    panel = prediction_panel(torch.rand(6, 3, 9, 9, generator=generator), probabilities, targets, NAMES)
    outside = 0
    for cell, row in enumerate(probabilities.numpy()):
        order = np.argsort(-row)[:5]
        want = [("right" if c == targets[cell] else "other", max(1, round(float(row[c]) * BAR_WIDTH))) for c in order]
        assert bars(panel, cell) == want
        outside += targets[cell] not in order
    assert 0 < outside < 6  # both kinds were there


def test_a_sure_network_and_few_classes() -> None:
    panel = prediction_panel(torch.rand(1, 3, 9, 9), torch.tensor([[0.0, 1.0]]), [1], ["a", "b"])
    assert bars(panel, 0, shown=2) == [("right", BAR_WIDTH), ("other", 1)]


def test_images_are_where_they_belong() -> None:
    images = torch.zeros(5, 3, 4, 4)
    images[4, 0] = 1  # the first of the second row is red
    panel = prediction_panel(images, torch.full((5, 7), 1 / 7), [0] * 5, NAMES)
    cell_height = BARS_TOP + 5 * BAR_STEP + 22
    middle = LEFT + (NAME_WIDTH + BAR_WIDTH) // 2
    assert panel[:, TOP + 50, middle].tolist() == [0, 0, 0]
    assert panel[:, TOP + cell_height + 50, middle].tolist() == [255, 0, 0]
    assert panel[:, TOP + cell_height + 50, middle + CELL_WIDTH].tolist() == [255, 255, 255]


def test_bad_arguments() -> None:
    good: dict[str, Any] = {
        "images": torch.rand(2, 3, 4, 4),
        "probabilities": torch.full((2, 7), 1 / 7),
        "targets": [0, 1],
        "class_names": NAMES,
    }
    prediction_panel(**good)
    for name, value, message in (
        ("images", torch.rand(2, 1, 4, 4), "images"),
        ("images", torch.rand(0, 3, 4, 4), "images"),
        ("probabilities", torch.rand(2, 6), "probabilities"),
        ("probabilities", torch.full((2, 7), float("nan")), "NaN"),
        ("targets", [0], "targets"),
    ):
        with pytest.raises(ValueError, match=message):
            prediction_panel(**(good | {name: value}))
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
