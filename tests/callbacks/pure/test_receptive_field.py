from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from callbacks.activation_stats import forward_hooks
from callbacks.pure.receptive_field import ReceptiveField, crops, receptive_fields
from lightning_modules import AlexNet

CONVOLUTIONS = [f"conv{i}" for i in range(1, 6)]


def assert_seen(output: Tensor, images: Tensor, field: ReceptiveField) -> None:
    """The gradient of a position is above 0 where its field lies, at each corner and in the middle."""
    height, width = output.shape[2:]
    for row, column in [(0, 0), (0, width - 1), (height // 2, width // 2), (height - 1, 0), (height - 1, width - 1)]:
        (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), images, retain_graph=True)
        top, left = field.start + row * field.stride, field.start + column * field.stride
        expected = torch.zeros(images.shape[2:], dtype=torch.bool)
        expected[max(top, 0) : top + field.size, max(left, 0) : left + field.size] = True
        assert torch.equal((gradient[0] > 0).any(0), expected), (row, column)


@pytest.mark.parametrize(("size", "stride", "overlap"), [(224, 4, True), (64, 2, True), (32, 2, True), (64, 2, False)])
def test_fields_are_the_support_of_the_gradient(size: int, stride: int, overlap: bool) -> None:
    torch.manual_seed(0)
    net = AlexNet(image_size=size, conv1_stride=stride, lrn=False, overlap_pooling=overlap, init="he")
    fields = receptive_fields(net)
    for name in ("pool1", "pool2", "pool5"):  # of a maximum's gradient only one pixel of the window has any
        setattr(net, name, nn.AvgPool2d(3, 2, ceil_mode=True) if overlap else nn.AvgPool2d(2, 2))
    for name in CONVOLUTIONS:
        weight = net.get_submodule(name).weight
        weight.data = torch.rand_like(weight) / weight[0].numel()
    images = torch.rand(1, 3, size, size, requires_grad=True)
    outputs: dict[str, Tensor] = {}
    with forward_hooks(net, CONVOLUTIONS, outputs.__setitem__):
        net.features(images)
    for name in CONVOLUTIONS:
        assert_seen(outputs[name], images, fields[name])


def test_fields_of_the_papers_network_are_the_known_ones() -> None:
    with torch.device("meta"):
        fields = receptive_fields(AlexNet())
    known = {"conv1": (11, 4), "conv2": (51, 8), "conv3": (99, 16), "conv4": (131, 16), "conv5": (163, 16)}
    assert {name: fields[name][:2] for name in known} == known
    assert fields["pool5"][:2] == (195, 32)


def test_dilation_and_padding_of_any_chain() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 2, 4, stride=3, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(2, 2, 2, dilation=2),
    )
    for weight in net.parameters():
        nn.init.uniform_(weight, 0.1, 1)
    images = torch.rand(1, 3, 23, 29, requires_grad=True)
    assert_seen(net(images), images, receptive_fields(net)["3"])
    assert receptive_fields(nn.Sequential(nn.Conv2d(1, 1, 3, dilation=4)))["0"] == (9, 1, 0)


@pytest.mark.parametrize("options", [{"kernel_size": (3, 5)}, {"stride": (1, 2)}, {"padding": "same"}])
def test_what_is_not_square_is_refused(options: dict[str, object]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, **({"kernel_size": 3} | options)))
    with pytest.raises(ValueError, match=rf"^{next(iter(options))}: .* in 0, expected one number for both directions"):
        receptive_fields(net)


@pytest.mark.parametrize("field", [ReceptiveField(5, 3, -2), ReceptiveField(30, 4, -9), ReceptiveField(4, 2, 1)])
def test_crops_are_slices_of_the_padded_image(field: ReceptiveField) -> None:
    images = torch.arange(1.0, 4 * 3 * 16 * 20 + 1).view(4, 3, 16, 20)
    rows, columns = [0, 2, 4, 1], [0, 4, 5, 3]
    cut = crops(images, field, rows, columns)
    assert cut.shape == (4, 3, field.size, field.size)
    margin = 40
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        top, left = (margin + field.start + place * field.stride for place in (row, column))
        assert np.array_equal(cut[i].numpy(), padded[i, :, top : top + field.size, left : left + field.size])
