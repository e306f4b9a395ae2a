from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY
from helpers.small_net import calls_of, inputs_of, new_net, run, trainer_for
from torch import Tensor

from callbacks import TopPatches, top_patches
from callbacks.base import model_of
from callbacks.pure.receptive_field import crops, receptive_fields
from datamodules import CIFAR10DataModule
from lightning_modules import AlexNetClassifier

Panels = list[tuple[Any, ...]]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> Panels:
    """What is drawn from now on: patches, deconvolutions, units, values, title, note."""
    return calls_of(monkeypatch, top_patches, "patch_panel")


def maps_of(net: Any, images: Tensor) -> dict[str, np.ndarray]:
    """What SmallNet's two convolutions put out, after the ReLU."""
    with torch.no_grad():
        first = net.conv1(images).relu()
        return {"conv1": first.numpy(), "conv2": net.conv2(first).relu().numpy()}


def brute_force(maps: np.ndarray, images: np.ndarray, size: int, stride: int, unit: int) -> tuple[float, np.ndarray]:
    """A unit's strongest activation, and the nine patches; all fields of SmallNet lie within the image."""
    highest = maps[:, unit].max((1, 2))
    order = [i for i in np.argsort(-highest, kind="stable")[:9] if highest[i] > 0]
    patches = []
    for i in order:
        row, column = np.unravel_index(maps[i, unit].argmax(), maps.shape[2:])
        patches.append(images[i, :, row * stride : row * stride + size, column * stride : column * stride + size])
    return highest.max(), np.stack(patches)


@pytest.mark.parametrize("num_images", [1000, 30])
def test_patches_are_a_brute_force_searchs(
    tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels, num_images: int
) -> None:
    callback = TopPatches(num_images=num_images, units=5, deconvolution=False)
    model, _ = run(tmp_path, datamodule, callback)
    inputs = inputs_of(datamodule, "train")[0]
    places = range(100) if num_images >= 100 else [i * 100 // 30 for i in range(30)]
    inputs = inputs[list(places)]
    rgb, maps = datamodule.to_rgb(inputs).numpy(), maps_of(model.net, inputs)
    for (patches, deconvolutions, units, values, title, note), name in zip(panels, maps, strict=True):
        assert deconvolutions is None
        assert title == f"{name} after epoch 2: 5 of 8 units"
        assert f"\nof {len(inputs)} training images" in note
        highest = maps[name].max((0, 2, 3))
        assert units == np.argsort(-highest, kind="stable")[:5].tolist()
        for unit, value, of_unit in zip(units, values, patches, strict=True):
            size = {"conv1": 11, "conv2": 19}[name]
            strongest, expected = brute_force(maps[name], rgb, size, 4, unit)
            assert value == pytest.approx(strongest, rel=1e-5)
            assert np.allclose(of_unit.numpy(), expected, atol=1e-6)


def test_a_planted_patch_is_found(tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels) -> None:
    """No other patch has as large a product with the longest of all as that has with itself."""
    inputs = inputs_of(datamodule, "train")[0]
    every = F.unfold(inputs, 11, stride=4).transpose(1, 2)  # (100, 16, 363)
    image, position = divmod(int(every.norm(dim=2).argmax()), 16)
    model = new_net()
    model.net.conv1.weight.data[6] = every[image, position].view(3, 11, 11)
    model.net.conv1.bias.data.zero_()
    trainer_for(tmp_path, TopPatches()).test(model, datamodule, verbose=False)
    patches, _, units, *_ = panels[0]
    assert units[0] == 6
    row, column = divmod(position, 4)
    planted = datamodule.to_rgb(inputs[image : image + 1])[0, :, 4 * row : 4 * row + 11, 4 * column : 4 * column + 11]
    assert torch.allclose(patches[0][0], planted, atol=1e-6)


def test_units_that_nothing_excites_are_left_out(tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels) -> None:
    model = new_net()
    model.net.conv1.bias.data[:5] = -1000.0
    model.net.conv2.bias.data.fill_(-1000.0)
    with pytest.warns(UserWarning, match="no unit of conv2 responds to any of 100 training images"):
        trainer_for(tmp_path, TopPatches()).test(model, datamodule, verbose=False)
    assert len(panels) == 1
    assert sorted(panels[0][2]) == [5, 6, 7]


def test_only_when_it_is_told_to(tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels) -> None:
    model, trainer = run(tmp_path, datamodule, TopPatches(after_fit=False))
    assert not panels
    trainer.test(model, datamodule, verbose=False)
    names = sorted(path.name for path in tmp_path.glob("top_patches/*"))
    assert names == ["conv1_epoch_002.png", "conv2_epoch_002.png"]


# ---- deconvolution -----------------------------------------------------------------------------------------


def test_without_captum_there_are_patches_alone(
    tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = calls_of(monkeypatch, top_patches, "rank_zero_info")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    run(tmp_path, datamodule, TopPatches(deconvolution=False))
    assert not said
    run(tmp_path, datamodule, TopPatches())
    assert [line for (line,) in said] == [
        "TopPatches: without captum there are no deconvolutions. Run pip install -e '.[explain]'."
    ]
    assert [panel[1] for panel in panels] == [None] * 4


def deconvolved(net: Any, image: Tensor, unit: int, row: int, column: int) -> Tensor:
    """Zeiler and Fergus' way down from conv2, by transposed convolutions and max pooling's switches."""
    padded = F.pad(image[None], (0, net.padding, 0, net.padding))
    first = net.conv1(padded).relu()
    _, switches = F.max_pool2d(first, 3, 2, ceil_mode=True, return_indices=True)
    signal = torch.zeros(1, 256, *switches.shape[2:])
    signal[0, unit, row, column] = 1
    signal = F.conv_transpose2d(signal, net.conv2.weight, padding=2, groups=2)
    unpooled = torch.zeros(1, 96, first[0, 0].numel()).scatter_add(2, switches.flatten(2), signal.flatten(2))
    signal = F.conv_transpose2d(unpooled.view_as(first).relu(), net.conv1.weight, stride=2)
    return signal[0, :, : image.shape[1], : image.shape[2]]


@pytest.mark.parametrize("inference", [False, True])
def test_deconvolution_is_zeiler_and_fergus(inference: bool) -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    model = AlexNetClassifier(**TINY, lrn=False, init="he").eval()
    with torch.inference_mode(inference), torch.no_grad():
        images = torch.randn(3, 3, 24, 24)
        deconvolve = top_patches.deconvolution_of(model_of(model))
        assert deconvolve is not None
        rows, columns = [0, 2, 3], [1, 3, 0]
        signals = deconvolve(model.net.conv2, images, [200, 7, 200], rows, columns)
        for i in range(3):
            expected = deconvolved(model.net, images[i], [200, 7, 200][i], rows[i], columns[i])
            assert expected.abs().max() > 0
            assert torch.allclose(signals[i], expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"activation": "tanh"}])
def test_deconvolution_goes_through_local_response_normalization_and_leaves_all_as_it_was(options: Any) -> None:
    pytest.importorskip("captum")
    torch.manual_seed(0)
    model = AlexNetClassifier(**TINY, init="he", **options).eval()
    before = [(p.clone(), p.requires_grad, p.grad) for p in model.parameters()]
    images = torch.randn(2, 3, 24, 24)
    deconvolve = top_patches.deconvolution_of(model_of(model))
    assert deconvolve is not None
    for name, field in receptive_fields(model.net).items():
        if name not in ("conv2", "conv3", "conv4", "conv5"):
            continue
        signal = deconvolve(model.net.get_submodule(name), images, 5, [0, 1], [1, 0])
        assert signal.isfinite().all()
        assert bool((signal.abs().amax((1, 2, 3)) > 0).all())
        # All of it lies within the field.
        assert crops(signal, field, [0, 1], [1, 0]).abs().sum() == pytest.approx(float(signal.abs().sum()), rel=1e-5)
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, kind) for module in model.modules() for kind in kinds)
    for parameter, (value, required, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert (parameter.requires_grad, parameter.grad) == (required, gradient)
    assert not any(module.training for module in model.modules())
    assert not images.requires_grad


def test_conv1_has_patches_alone(tmp_path: Path, datamodule: CIFAR10DataModule, panels: Panels) -> None:
    pytest.importorskip("captum")
    run(tmp_path, datamodule, TopPatches(units=4))
    first, second = panels
    assert first[1] is None
    assert [block.shape for block in second[1]] == [block.shape for block in second[0]] == [(9, 3, 19, 19)] * 4
