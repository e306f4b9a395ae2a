from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_net import SmallNet, calls_of, events, new_net, png, run, scalars, trainer_for
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from callbacks import Conv1Filters, conv1_filters
from callbacks.conv1_filters import filters_of
from callbacks.pure.filter_grid import filter_grid
from datamodules import CIFAR10DataModule


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("conv1_filters/*"))


def initial_weights() -> Tensor:
    return new_net().net.conv1.weight.detach()


def test_the_first_image_is_of_the_initial_weights_and_the_last_of_the_final_ones(
    tmp_path: Path, datamodule: CIFAR10DataModule
) -> None:
    model, _ = run(tmp_path, datamodule, Conv1Filters(0, scale=0.2))
    assert saved(tmp_path) == ["epoch_000.png", "epoch_002.png"]
    final = model.net.conv1.weight.detach()
    assert not torch.equal(initial_weights(), final)
    for epoch, weights, title in (
        (0, initial_weights(), "conv1 before training"),
        (2, final, "conv1 after epoch 2 (step 8)"),
    ):
        want = filter_grid(weights, 2, 0.2, title).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(png(tmp_path / f"conv1_filters/epoch_{epoch:03d}.png"), want)


def test_filters_of_the_named_layer_and_the_groups_of_the_next() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(
                nn.Conv2d(1, 3, 1), nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.Linear(8, 8)
            )
            self.later = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8))

    other = Other()
    weights, groups = filters_of(other, "parts.1")
    assert torch.equal(weights, other.parts[1].weight)
    assert groups == 2
    del other.later
    assert filters_of(other, "parts.1")[1] == 1  # there is none
    assert filters_of(SmallNet(groups=1))[1] == 1
    # parts.0 is of grey images.
    wrong = {"parts.0": "a Conv2d", "parts.4": "a Linear", "parts.9": "not in Other", "": "a Other"}
    for layer, found in wrong.items():
        with pytest.raises(TypeError, match=rf"^layer: {layer} is {found}, expected a Conv2d of RGB filters\. Choose"):
            filters_of(other, layer)


def test_another_layer_and_none_such(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    class Renamed(SmallNet):
        def __init__(self) -> None:
            super().__init__(groups=1)
            self.net.add_module("stem", self.net.conv1)
            del self.net.conv1
            self.net.conv1 = lambda images: self.net.stem(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert started, "trained"
            return super().training_step(batch, batch_idx)

    started = False
    with pytest.raises(TypeError, match=r"layer: net\.conv1 is not in Renamed"):  # before the first step
        trainer_for(tmp_path / "none", Conv1Filters()).fit(Renamed(), datamodule)
    started = True
    trainer_for(tmp_path / "off", Conv1Filters(enabled=False), epochs=1).fit(Renamed(), datamodule)
    model = Renamed()
    start = model.net.stem.weight.detach().clone()
    trainer_for(tmp_path, Conv1Filters(0, scale=0.3, layer="net.stem"), epochs=1).fit(model, datamodule)
    want = filter_grid(start, 1, 0.3, "stem before training").permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(png(tmp_path / "conv1_filters/epoch_000.png"), want)


def test_bad_scales() -> None:
    for scale in (0.0, -1.0, float("nan"), float("inf"), "firts"):
        with pytest.raises(ValueError, match=r"^scale: .+, expected 'first', 'each' or .+\. Choose one"):
            Conv1Filters(scale=scale)


def test_one_scale_for_the_whole_run(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales: dict[Any, list[float]] = {}
    shown = calls_of(monkeypatch, conv1_filters, "filter_grid")

    class Grows(Conv1Filters):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.get_submodule("net.conv1").weight.data.mul_(2)
            super().on_train_epoch_end(trainer, pl_module)

    for setting in ("first", "each", 0.7):
        run(tmp_path / str(setting), datamodule, Grows(scale=setting))
        scales[setting] = [scale for _, _, scale, _ in shown[-3:]]
    initial = np.quantile(initial_weights().abs().numpy(), 0.995)
    assert scales["first"] == pytest.approx([initial] * 3, rel=1e-5)
    assert scales["each"][0] == pytest.approx(initial, rel=1e-5)
    assert scales["each"][2] > 2 * scales["each"][0]
    assert scales[0.7] == [0.7] * 3


def test_how_far_filters_moved(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, trainer = run(tmp_path, datamodule, Conv1Filters())
    start, end = initial_weights().numpy(), model.net.conv1.weight.detach().numpy()
    moved = [np.sqrt(((b - a) ** 2).sum()) / np.sqrt((a**2).sum()) for a, b in zip(start, end, strict=True)]
    log = events(tmp_path)
    for tag, want in (("filters/moved_mean", np.mean(moved)), ("filters/moved_max", np.max(moved))):
        found = scalars(tmp_path, tag)
        assert found == {0: 0, 4: found[4], 8: pytest.approx(want, rel=1e-5)}
    last = log.Histograms("filters/moved")[-1].histogram_value
    assert (last.num, last.max) == (8, pytest.approx(max(moved), rel=1e-5))

    # A resumed run measures from the first run's start, with its scale; a new fit of the same callback does not.
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    callback = Conv1Filters()
    run(tmp_path / "resumed", datamodule, callback, model=SmallNet(), logger=False, ckpt_path=tmp_path / "run.ckpt")
    assert callback._start is not None
    np.testing.assert_array_equal(callback._start.numpy(), start)
    run(tmp_path / "again", datamodule, callback, epochs=1)
    assert saved(tmp_path / "again") == ["epoch_000.png", "epoch_001.png"]
    np.testing.assert_array_equal(callback._start.numpy(), initial_weights().numpy())


def test_how_many_filters_have_formed_and_how_colourful_each_group_is(
    tmp_path: Path, datamodule: CIFAR10DataModule
) -> None:
    """A network that stands still, with three gratings, grey in the first group, among noise."""
    wave = torch.arange(11.0).mul(torch.pi / 2).cos().expand(11, 11)
    for groups in (2, 1):
        model = new_net(lr=0.0, groups=groups)
        weights = model.net.conv1.weight.data
        assert weights.shape == (8, 3, 11, 11)
        weights[:4] = weights[:4].mean(1, keepdim=True)
        weights[0], weights[5], weights[7] = wave, wave.T, 0.01 * wave
        weights[4:, 2] = -weights[4:, :2].sum(1)  # the channels add up to nothing
        run(tmp_path / str(groups), datamodule, Conv1Filters(), model=model, epochs=1)
        assert scalars(tmp_path / str(groups), "filters/structured") == {0: 3 / 8, 4: 3 / 8}
    for group, colour in ((1, 0), (2, 1)):
        found = scalars(tmp_path / "2", f"filters/colour_group{group}")
        assert found == {0: pytest.approx(colour, abs=1e-6), 4: pytest.approx(colour, abs=1e-6)}
    assert not [tag for tag in events(tmp_path / "1").Tags()["scalars"] if "colour" in tag]
