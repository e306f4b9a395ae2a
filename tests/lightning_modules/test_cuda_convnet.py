"""The paper's small networks: parameter counts, shapes, the local layer against a loop, the layer files' numbers."""

import re
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules import AlexNetClassifier, CudaConvnet
from lightning_modules.classifier import Network
from lightning_modules.cuda_convnet import Layers, LocallyConnected2d

FILES = get_args(Layers)
CONVOLUTIONS = (3 * 25 * 64 + 64) + (64 * 25 * 64 + 64)  # the conv-local networks' first two layers, with biases


def test_the_classifier_offers_every_layer_file() -> None:
    assert get_args(Network) == ("alexnet", *FILES)


@pytest.mark.parametrize(
    ("layers", "image_size", "parameters"),
    [
        # conv1, conv2, conv3, fc10, each with its biases
        ("19pct", 32, (3 * 25 * 32 + 32) + (32 * 25 * 32 + 32) + (32 * 25 * 64 + 64) + (64 * 4 * 4 * 10 + 10)),
        # Then kernels and biases of two local layers at each of 6x6 positions, fc10
        (
            "conv-local-13pct",
            24,
            CONVOLUTIONS + 36 * (64 * 9 * 32 + 32) + 36 * (32 * 9 * 32 + 32) + (32 * 36 * 10 + 10),
        ),
        (
            "conv-local-11pct",
            24,
            CONVOLUTIONS + 36 * (64 * 9 * 64 + 64) + 36 * (64 * 9 * 32 + 32) + (32 * 36 * 10 + 10),
        ),
        (
            "conv-local-11pct-first",
            24,
            CONVOLUTIONS + 36 * (64 * 9 * 32 + 32) + 36 * (32 * 9 * 32 + 32) + (32 * 36 * 10 + 10),
        ),
    ],
)
def test_parameters(layers: Layers, image_size: int, parameters: int) -> None:
    net = CudaConvnet(layers, image_size=image_size)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert f"{parameters:,}" in (CudaConvnet.__doc__ or "")


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("layers", FILES)
def test_network_is_the_layer_file(layers: Layers, activation: Any) -> None:
    """Against torch's functions, called one after the other as the file lists its layers, in float64."""
    torch.manual_seed(0)
    net = CudaConvnet(layers, image_size=24, activation=activation).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, 24, 24, dtype=torch.float64)
    act = torch.relu if activation == "relu" else torch.tanh
    w = dict(net.named_parameters())

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=2)

    def max_pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    def average(x: Tensor) -> Tensor:  # of the pixels that are there
        sums, ones = F.pad(x, (0, 2, 0, 2)), F.pad(torch.ones_like(x), (0, 2, 0, 2))
        size = x.shape[2] // 2
        pooled, count = (F.avg_pool2d(t, 3, 2)[:, :, :size, :size] for t in (sums, ones))
        return pooled / count

    def lrn(x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5 if "first" in layers else 9, alpha=0.001, beta=0.75, k=1.0)

    if layers == "19pct":
        x = act(max_pool(conv(images, "conv1")))  # the file's pool comes before its neuron: the same for a maximum
        x = average(act(conv(x, "conv2")))
        x = average(act(conv(x, "conv3")))
    else:
        norm = lrn if "11pct" in layers else (lambda x: x)
        x = act(conv(images, "conv1"))
        x = max_pool(norm(x)) if "first" in layers else norm(max_pool(x))
        x = max_pool(norm(act(conv(x, "conv2"))))
        assert x.shape == (2, 64, 6, 6)
        x = act(local_by_loop(x, w["local3.weight"], w["local3.bias"]))
        x = act(local_by_loop(x, w["local4.weight"], w["local4.bias"]))
        assert x.shape == (2, 32, 6, 6)
    assert torch.allclose(net.embed(images), x.flatten(1), rtol=1e-10, atol=1e-12)
    assert torch.allclose(net(images), F.linear(x.flatten(1), w["fc10.weight"], w["fc10.bias"]), rtol=1e-10)


def local_by_loop(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 kernels, padded by 1, with weights ``(size, size, 3, 3, channels, out)`` of their own at each position."""
    size = x.shape[2]
    padded = F.pad(x, (1, 1, 1, 1))
    out = x.new_zeros(len(x), weight.shape[5], size, size)
    for row in range(size):
        for column in range(size):
            patch = padded[:, :, row : row + 3, column : column + 3]
            out[:, :, row, column] = torch.einsum("bcij,ijco->bo", patch, weight[row, column]) + bias[row, column]
    return out


@pytest.mark.parametrize(("kernel_size", "padding"), [(3, 1), (5, 2), (3, 0), (1, 0)])
def test_local_layer_with_the_same_kernels_everywhere_is_a_convolution(kernel_size: int, padding: int) -> None:
    torch.manual_seed(0)
    local = LocallyConnected2d(4, 6, kernel_size, size=7, padding=padding).double()
    conv = nn.Conv2d(4, 6, kernel_size, padding=padding).double()
    with torch.no_grad():
        local.weight.copy_(conv.weight.permute(2, 3, 1, 0).expand_as(local.weight))
        local.bias.copy_(conv.bias.expand_as(local.bias))  # type: ignore[union-attr]
    images = torch.randn(3, 4, 7, 7, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.allclose(local(images.to(memory_format=layout)), conv(images), rtol=1e-10, atol=1e-12)
    assert local(images).shape == conv(images).shape


@pytest.mark.parametrize("shape", [(2, 4, 6, 7), (2, 4, 7, 8), (2, 4, 8, 8)])
def test_local_layer_refuses_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        LocallyConnected2d(4, 6, 3, size=7)(torch.zeros(shape))


def test_local_layers_gradients() -> None:
    local = LocallyConnected2d(2, 3, 3, size=4, padding=1).double()
    nn.init.normal_(local.weight)
    images = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def function(images: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return torch.func.functional_call(local, {"weight": weight, "bias": bias}, (images,))

    assert torch.autograd.gradcheck(function, (images, local.weight, local.bias))


LOCAL = {"conv1": 1e-4, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
INITW = {
    "19pct": {"conv1": 1e-4, "conv2": 0.01, "conv3": 0.01, "fc10": 0.01},
    "conv-local-13pct": LOCAL,
    "conv-local-11pct": LOCAL,
    "conv-local-11pct-first": LOCAL,
}


@pytest.mark.parametrize("layers", FILES)
def test_weights_begin_as_in_the_layer_files(layers: Layers) -> None:
    torch.manual_seed(0)
    net = CudaConvnet(layers)
    for name, std in INITW[layers].items():
        layer: Any = getattr(net, name)
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


WC = {  # of the weights; cuda-convnet does not decay biases
    "19pct": {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc10": 3.0},
    "conv-local-13pct": {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": 0.004},
    "conv-local-11pct": {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": 0.01},
    "conv-local-11pct-first": {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": 0.004},
}


@pytest.mark.parametrize("layers", FILES)
def test_rates_and_decays_are_the_layer_files(layers: Layers) -> None:
    """epsW 0.001 and epsB 0.002; wc as above."""
    model = AlexNetClassifier(network=layers, lr=0.001, weight_decay=0.004, schedule="constant")
    names = {parameter: name for name, parameter in model.net.named_parameters()}
    groups = model.configure_optimizers().param_groups
    found = {names[g["params"][0]]: (g["lr"], pytest.approx(g["weight_decay"])) for g in groups}
    weights = {f"{layer}.weight": (0.001, decay) for layer, decay in WC[layers].items()}
    assert found == weights | {f"{layer}.bias": (0.002, 0.0) for layer in WC[layers]}


@pytest.mark.parametrize("layers", ["conv-local-11pct", "conv-local-11pct-first"])
def test_normalization_can_be_left_out_and_nothing_else_changes(layers: Layers) -> None:
    with_lrn, without = (CudaConvnet(layers, lrn=lrn) for lrn in (True, False))
    assert [p.shape for p in with_lrn.parameters()] == [p.shape for p in without.parameters()]
    for parameter in without.parameters():
        nn.init.normal_(parameter, std=0.1)
    with_lrn.load_state_dict(without.state_dict())
    images = torch.randn(2, 3, 24, 24)
    assert not torch.allclose(with_lrn(images), without(images))
    if layers == "conv-local-11pct-first":  # then it is the network of 13 %
        published = CudaConvnet("conv-local-13pct")
        published.load_state_dict(without.state_dict())
        assert torch.equal(published(images), without(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "18pct"}, "network: '18pct', expected 19pct or conv-local-13pct or conv-local-11pct or "),
        ({"layers": "19pct", "lrn": True}, "lrn: True, expected false, for 19pct has none"),
        ({"layers": "19pct", "dropout": 0.5}, "dropout: 0.5, expected 0.0, which 19pct has"),
        ({"layers": "19pct", "image_size": 7}, "image_size: 7, expected 8 pixels or more"),
        ({"layers": "19pct", "num_classes": 0}, "num_classes: 0, expected 1 or more"),
        ({"layers": "19pct", "activation": "gelu"}, "activation: 'gelu', expected relu or tanh"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        CudaConvnet(**arguments)


def test_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"images: \(1, 3, 32, 32\), expected \(B, 3, 24, 24\)"):
        CudaConvnet("19pct")(torch.zeros(1, 3, 32, 32))
