from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import SmallNet, calls_of, events, inputs_of, run, trainer_for
from lightning import LightningModule
from torch import Tensor

from callbacks import ConfusionMatrix, confusion_matrix
from callbacks.pure.confusion_panel import confusion_text, most_confused
from datamodules import CIFAR10DataModule


def brute_force(targets: Tensor, predicted: Tensor) -> np.ndarray:
    counts = np.zeros((10, 10), dtype=np.int64)
    for target, prediction in zip(targets.tolist(), predicted.tolist(), strict=True):
        counts[target][prediction] += 1
    return counts


def test_it_counts_what_validation_and_test_predict(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = calls_of(monkeypatch, confusion_matrix, "confusion_panel")
    callback = ConfusionMatrix(pairs=4, examples=2)
    model, trainer = run(tmp_path, datamodule, callback)
    kept = [("val", callback.counts, shown[-1][2])]
    trainer.test(model, datamodule, verbose=False)
    kept.append(("test", callback.counts, shown[-1][2]))
    log = events(tmp_path)
    for stage, counts, examples in kept:
        inputs, targets = inputs_of(datamodule, stage)
        with torch.no_grad():
            probabilities = model.eval().net(inputs).softmax(1)
        predicted = probabilities.argmax(1)
        want = brute_force(targets, predicted)
        np.testing.assert_array_equal(counts, want)
        assert 0 < want.trace() < want.sum()

        thumbs = torch.nn.functional.interpolate(datamodule.to_rgb(inputs), (32, 32), mode="bilinear")
        assert list(examples) == most_confused(torch.from_numpy(want), 4)
        for pair, images in examples.items():
            wrong = [i for i in range(len(targets)) if (targets[i], predicted[i]) == (pair.target, pair.predicted)]
            assert len(wrong) == pair.times
            surest = sorted(wrong, key=lambda i: -probabilities[i, pair.predicted])[:2]
            assert len(images) == len(surest)
            for image, i in zip(images, surest, strict=True):
                differences = (thumbs - image).abs().flatten(1).amax(1)
                assert int(differences.argmin()) == i
                assert differences[i] < 1 / 255

        right = f"{want.trace()} of {want.sum()} right, {100 * want.trace() / want.sum():.2f} %"
        title = f"{stage} images after epoch 2: {right}"
        text = confusion_text(counts, datamodule.class_names, most_confused(counts, 4), title)
        assert (tmp_path / f"confusion/{stage}_epoch_002.md").read_text() == text + "\n"
        assert log.Tensors(f"confusion/{stage}/text_summary")[-1].tensor_proto.string_val[0].decode() == text


def test_a_validation_run_of_its_own_is_drawn(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    trainer_for(tmp_path, ConfusionMatrix(every_n_epochs=0)).validate(SmallNet(), datamodule, verbose=False)
    assert [path.name for path in sorted(tmp_path.glob("confusion/*"))] == ["val_epoch_000.md", "val_epoch_000.png"]


def test_epochs_without_validation_are_not_drawn_again(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    run(tmp_path, datamodule, ConfusionMatrix(), epochs=5, check_val_every_n_epoch=2)
    drawn = [path.name for path in sorted(tmp_path.glob("confusion/*.png"))]
    assert drawn == ["val_epoch_002.png", "val_epoch_004.png"]


def test_a_perfect_network_and_no_examples(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Oracle(SmallNet):
        def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"log_probabilities": torch.nn.functional.one_hot(batch[1], 10).float().log()}

    callback = ConfusionMatrix()
    trainer_for(tmp_path, callback).test(Oracle(), datamodule, verbose=False)
    assert callback.counts is not None
    assert torch.equal(callback.counts, 6 * torch.eye(10, dtype=torch.int64))
    run(tmp_path, datamodule, ConfusionMatrix(examples=0), epochs=1)
    run(tmp_path, datamodule, ConfusionMatrix(pairs=0), epochs=1)


def test_a_silent_model(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Silent(SmallNet):
        def test_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            pass

    model: LightningModule = Silent()
    with pytest.raises(TypeError, match="log_probabilities, got NoneType from Silent"):
        trainer_for(tmp_path, ConfusionMatrix()).test(model, datamodule, verbose=False)
