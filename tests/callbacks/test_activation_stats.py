from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import SmallAlexNet
from helpers.small_net import inputs_of, new_net, run, scalars
from torch import nn

from callbacks import ActivationStats
from callbacks.activation_stats import layer_stats, measure
from datamodules import CIFAR10DataModule


def test_layer_stats() -> None:
    activations = torch.zeros(2, 4, 3, 3)
    activations[1, 2, 0, 1] = 3.0
    activations[0, 3] = 1.0
    stats = layer_stats(activations)
    assert stats.dead == 0.5  # channels 0 and 1
    assert stats.scale == pytest.approx(np.sqrt((9 + 9) / 72))
    assert layer_stats(torch.tensor([[0.0, 2.0], [0.0, 0.0]])) == (0.5, 1.0)


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Tanh()])
def test_measured_after_the_activation_function(act: nn.Module) -> None:
    torch.manual_seed(0)
    net = SmallAlexNet().eval()
    net.act = act
    with torch.no_grad():
        net.conv1.bias[:3] = -100.0  # three of eight channels never fire
        images = torch.rand(5, 3, 24, 24)
        stats = measure(net, lambda: net.embed(images))
        function = (lambda x: np.maximum(x, 0)) if isinstance(act, nn.ReLU) else np.tanh
        pre = net.conv1(images)
        first = function(pre.numpy())
        assert stats["conv1"].dead == pytest.approx(3 / 8 if isinstance(act, nn.ReLU) else 0)
        assert stats["conv1"].scale == pytest.approx(np.sqrt((first**2).mean()), rel=1e-5)
        last = net.embed(images).numpy()
        assert stats["fc7"].scale == pytest.approx(np.sqrt((last**2).mean()), rel=1e-5)
        assert stats["fc7"].dead == pytest.approx((last == 0).all(axis=0).mean())
    assert list(stats) == ["conv1", "conv2", "fc7"]  # the net has no others
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(RuntimeError, match="stop"):
        measure(net, lambda: (_ for _ in ()).throw(RuntimeError("stop")))
    assert not any(module._forward_hooks for module in net.modules())


def test_what_is_logged_is_of_the_same_validation_images(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, _ = run(tmp_path, datamodule, ActivationStats(num_images=8))
    inputs, _ = inputs_of(datamodule, "val", slice(0, 40, 5))
    start = new_net().net.eval()
    with torch.no_grad():
        for step, net in ((0, start), (8, model.net.eval())):
            conv1 = net.conv1(inputs).relu()
            scale, dead = scalars(tmp_path, "activation_scale/conv1"), scalars(tmp_path, "dead/conv1")
            assert sorted(scale) == sorted(dead) == [0, 4, 8]
            assert scale[step] == pytest.approx(float(conv1.square().mean().sqrt()), rel=1e-5)
            assert dead[step] == pytest.approx(float((conv1.amax((0, 2, 3)) == 0).float().mean()))
    assert scale[0] != scale[8]
