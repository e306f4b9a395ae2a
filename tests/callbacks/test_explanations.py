"""Where the network looks: heat where the evidence was put, and on the shapes of a network that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_net import new_net, run
from torch import Tensor, nn

from callbacks import Explanations, explanations
from callbacks.pure.heat import grad_cam, occlusion
from datamodules import CIFAR10DataModule
from datamodules.shapes10 import draw_shapes10

pytest.importorskip("captum", reason="pip install -e '.[explain]'")


class Corner(nn.Module):
    """Says 1 where the upper left corner, 6 of 24 pixels wide, is bright, and looks at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, images: Tensor) -> Tensor:
        evidence = self.conv(images)[:, 0, :6, :6].mean((1, 2))
        return torch.stack([-evidence, evidence], 1).log_softmax(1)


def test_heat_lies_where_the_evidence_was_put() -> None:
    torch.manual_seed(0)
    net, images = Corner(), 0.03 * torch.rand(3, 3, 24, 24)
    images[:, :, :6, :6] += 1
    labels = torch.tensor([1, 1, 1])
    with torch.no_grad():
        cam, covering = grad_cam(net, net, images, labels), occlusion(net, images, labels)
    for heat in (cam, covering):
        assert heat.shape == (3, 24, 24)
        # Grad-CAM weighs whole maps: of this one all that is bright. An occluding square reaches 5 pixels further.
        assert float(heat[:, :6, :6].sum()) > 0.6 * float(heat.clamp_min(0).sum())
    assert float(covering[:, 12:, 12:].abs().max()) < 1e-6
    with torch.no_grad():  # by hand: the square that covers the corner
        covered = images.clone()
        covered[:, :, :6, :6] = 0
        fall = (net(images) - net(covered))[:, 1]
    assert float(covering[0, 0, 0]) == pytest.approx(float(fall[0]), rel=1e-4)


def test_a_trained_network_s_heat_lies_on_the_shape() -> None:
    """More than on as many pixels elsewhere; where shapes are is told from the colour of their images' corners."""
    torch.manual_seed(0)
    images, targets = (torch.cat(parts) for parts in zip(shapes("train", 150), shapes("test", 10), strict=True))
    inputs = (images - images.mean((2, 3), keepdim=True)) / images.std()
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 6), nn.LogSoftmax(1))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(8):
        for batch in torch.randperm(900).split(32):
            optimizer.zero_grad()
            nn.functional.nll_loss(net(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    seen, labels = inputs[900:], targets[900:]
    right = net(seen).argmax(1) == labels
    assert float(right.float().mean()) > 0.5
    corners = images[900:][:, :, [0, 0, -1, -1], [0, -1, 0, -1]].median(2).values
    away = (images[900:] - corners[..., None, None]).abs().sum(1)
    mask = away > 0.5 * away.amax((1, 2), keepdim=True)
    for heat in (grad_cam(net, net, seen, labels), occlusion(net, seen, labels)):
        heat = heat.clamp_min(0)
        assert float(heat[mask].mean()) > 1.3 * float(heat[~mask].mean())


def shapes(split: Any, count: int) -> tuple[Tensor, Tensor]:
    """So many images of each of shapes10's first six classes, which are shapes and not textures, in [0, 1]."""
    images, targets = draw_shapes10(split, count)
    return images[targets < 6].float() / 255, targets[targets < 6]


def test_after_the_test_the_network_is_as_before(tmp_path: Path, datamodule: CIFAR10DataModule) -> None:
    model, trainer = run(tmp_path, datamodule, Explanations())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.test(model, datamodule, verbose=False)
    assert (tmp_path / "explanations/test_epoch_002.png").is_file()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) or not any(
        parameter.grad is not None and parameter.grad.any() for parameter in model.net.fc8.parameters()
    )
    assert not any(module._forward_hooks for module in model.modules())


def test_without_captum_it_says_so(
    tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="captum is not there, so nothing is explained"):
        run(tmp_path, datamodule, Explanations(), epochs=1)
    assert not list(tmp_path.rglob("*.png"))


def test_compiled(tmp_path: Path, datamodule: CIFAR10DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks are called all the same."""
    net: Any = new_net()
    net.net.compile(backend="eager")
    images = torch.randn(2, 3, 24, 24)
    plain = new_net()
    plain.load_state_dict(net.state_dict())
    labels = torch.tensor([1, 2])
    ours, theirs = (grad_cam(n.log_probabilities, n.net, images, labels) for n in (net.eval(), plain.eval()))
    torch.testing.assert_close(ours, theirs)
