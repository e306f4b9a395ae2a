from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_net import SmallNet, events, inputs_of, new_net, run, trainer_for
from torchmetrics.classification import MulticlassCalibrationError

from callbacks import Calibration
from datamodules import CIFAR10DataModule


def by_hand(probabilities: np.ndarray, targets: np.ndarray) -> float:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    error = 0.0
    for number in range(15):
        inside = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_the_error_of_validation_and_test(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, trainer = run(tmp_path, datamodule, Calibration())
    measured = {"val": float(trainer.callback_metrics["val/ece"])}
    trainer.test(model, datamodule, verbose=False)
    measured["test"] = float(trainer.callback_metrics["test/ece"])
    log = events(tmp_path)
    for stage, error in measured.items():
        inputs, targets = inputs_of(datamodule, stage)
        with torch.no_grad():
            probabilities = model.eval().net(inputs).softmax(1)
        assert error == pytest.approx(by_hand(probabilities.numpy(), targets.numpy()), abs=1e-6)
        assert error == pytest.approx(float(MulticlassCalibrationError(10, 15)(probabilities, targets)), abs=1e-6)
        assert error > 0.001
        assert log.Scalars(f"{stage}/ece")[-1].value == pytest.approx(error)
    assert [e.step for e in log.Scalars("val/ece")] == [e.step for e in log.Scalars("val/top1")]


def test_ten_crops_and_limited_batches(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    datamodule.test_crops = 10
    trainer = trainer_for(tmp_path, Calibration(), limit_test_batches=1)
    trainer.test(model := new_net(), datamodule, verbose=False)
    targets = datamodule.images_in("test")[1]
    places = torch.stack([(targets == c).nonzero()[:, 0] for c in range(10)], 1).flatten()[:32]  # classes alternate
    loader = datamodule.predict_dataloader()
    images = torch.cat([batch[0] for batch in loader])[places]
    with torch.no_grad():
        probabilities = model.eval().log_probabilities(images).exp()
    want = by_hand(probabilities.numpy(), targets[places].numpy())
    assert float(trainer.callback_metrics["test/ece"]) == pytest.approx(want, abs=1e-6)


def test_a_validation_run_of_its_own_is_drawn(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    trainer_for(tmp_path, Calibration()).validate(SmallNet(), datamodule, verbose=False)
    assert [path.name for path in tmp_path.glob("calibration/*")] == ["val_epoch_000.png"]


def test_epochs_without_validation_are_not_drawn_again(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path, datamodule, Calibration(every_n_epochs=1), epochs=5, check_val_every_n_epoch=2)
    drawn = [path.name for path in sorted(tmp_path.glob("calibration/*.png"))]
    assert drawn == ["val_epoch_002.png", "val_epoch_004.png"]


def test_a_diverged_network_has_no_error(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model = new_net()
    model.net.fc8.weight.data.fill_(float("nan"))
    trainer = trainer_for(tmp_path, Calibration())
    with pytest.warns(UserWarning, match="Calibration: probabilities are NaN after epoch 0: nothing shown"):
        trainer.validate(model, datamodule, verbose=False)
    assert trainer.callback_metrics["val/ece"].isnan()
