from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.small_net import calls_of, inputs_of, run

from callbacks import Predictions, predictions
from datamodules import CIFAR10DataModule


def test_the_same_images_all_along_and_what_the_network_says_of_them(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = calls_of(monkeypatch, predictions, "prediction_panel")
    model, trainer = run(tmp_path, datamodule, Predictions())
    trainer.test(model, datamodule, verbose=False)
    assert [title for *_, title in shown] == [
        "val images before training",
        "val images after epoch 1 (step 4)",
        "val images after epoch 2 (step 8)",
        "test images after epoch 2",
    ]
    assert len(shown[0][0]) == 8
    assert all(torch.equal(images, shown[0][0]) for images, *_ in shown[:3])
    assert not torch.equal(shown[0][1], shown[2][1])
    for stage, look in (("val", shown[2]), ("test", shown[3])):
        inputs, right = inputs_of(datamodule, stage)
        assert len(set(look[2])) == 8  # eight classes
        assert look[3] == datamodule.class_names
        with torch.no_grad():
            for image, probabilities, target in zip(*look[:3], strict=True):
                # Which one it is, found by its pixels (which went through the network's 24-pixel input).
                distances = (datamodule.to_rgb(inputs) - image).abs().flatten(1).amax(1)
                place = int(distances.argmin())
                assert distances[place] < 1e-5
                assert int(right[place]) == target
                logits = model.eval().net(inputs[place : place + 1])[0]
                torch.testing.assert_close(probabilities, logits.softmax(0))
