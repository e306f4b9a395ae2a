"""The network held to the paper: parameter counts, the layer table of section 3.5, initialisation, and each switch."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune
from torchvision.models.feature_extraction import create_feature_extractor

from lightning_modules.alexnet import AlexNet, conv1_size, smallest_image_size

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


@pytest.mark.parametrize(
    ("groups", "num_classes", "count"),
    [(2, 1000, 60_965_224), (2, 10, 56_909_194), (1, 1000, 62_378_344), (1, 10, 58_322_314)],
)
def test_parameter_counts(groups: int, num_classes: int, count: int) -> None:
    with torch.device("meta"):
        net = AlexNet(num_classes=num_classes, groups=groups)
    assert sum(p.numel() for p in net.parameters()) == count


def test_half_the_kernels_of_section_3_2() -> None:
    """On one GPU, with conv5 and the fully connected layers whole, so that the two have about as many parameters."""
    with torch.device("meta"):
        net = AlexNet(groups=1, half_kernels=True)
    convolutions = ((48, 3 * 11**2), (128, 48 * 5**2), (192, 128 * 3**2), (192, 192 * 3**2), (256, 192 * 3**2))
    connected = ((4096, 256 * 6 * 6), (4096, 4096), (10, 4096))
    assert sum(p.numel() for p in net.parameters()) == sum(n * (fan_in + 1) for n, fan_in in convolutions + connected)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(56_909_194, rel=0.03)


def shapes(net: AlexNet, images: Tensor) -> dict[str, tuple[int, ...]]:
    seen: dict[str, tuple[int, ...]] = {}
    for name in LAYERS:
        net.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: seen.__setitem__(name, tuple(output.shape[1:]))
        )
    net(images)
    return seen


def test_layer_table_at_224() -> None:
    net = AlexNet().eval()
    with torch.no_grad():
        seen = shapes(net, torch.zeros(1, 3, 224, 224))
        assert net.features(torch.zeros(1, 3, 224, 224)).shape == (1, 256, 6, 6)
    assert seen == {
        "conv1": (96, 55, 55),
        "conv2": (256, 27, 27),
        "conv3": (384, 13, 13),
        "conv4": (384, 13, 13),
        "conv5": (256, 13, 13),
        "fc6": (4096,),
        "fc7": (4096,),
        "fc8": (10,),
    }
    kernels = {name: tuple(net.get_submodule(name).weight.shape) for name in LAYERS[:5]}
    assert kernels == {  # "256 kernels of size 5 x 5 x 48", and so on
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
    }


def test_neurons_add_up_to_the_papers() -> None:
    """Section 3.5: 253,440 - 186,624 - 64,896 - 64,896 - 43,264 - 4096 - 4096 - 1000.

    The first of these is known to be inconsistent with the paper's own figure and code: 55 x 55 x 96 are 290,400.
    """
    with torch.no_grad():
        seen = shapes(AlexNet(num_classes=1000).eval(), torch.zeros(1, 3, 224, 224))
    assert [math.prod(seen[name]) for name in LAYERS] == [
        290_400,
        186_624,
        64_896,
        64_896,
        43_264,
        4096,
        4096,
        1000,
    ]


def test_224_is_227_with_zeros_on_the_right_and_at_the_bottom() -> None:
    net = AlexNet().eval()
    images = torch.randn(1, 3, 224, 224)
    padded = torch.zeros(1, 3, 227, 227)
    padded[:, :, :224, :224] = images
    assert conv1_size(224, 4) == 55
    seen: list[Tensor] = []
    net.conv1.register_forward_hook(lambda _module, _args, output: seen.append(output.clone()))
    with torch.no_grad():
        net(images)
        expected = nn.functional.conv2d(padded, net.conv1.weight, net.conv1.bias, stride=4)
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("overlap_pooling", [True, False])
def test_smallest_image(stride: int, overlap_pooling: bool) -> None:
    smallest = smallest_image_size(stride)
    for image_size in (smallest, smallest + 1, 64):
        net = AlexNet(image_size=image_size, conv1_stride=stride, overlap_pooling=overlap_pooling).eval()
        assert net(torch.zeros(1, 3, image_size, image_size)).shape == (1, 10)
    with pytest.raises(
        ValueError, match=f"^image_size: {smallest - 1}, expected {smallest} pixels or more with conv1_stride {stride}"
    ):
        AlexNet(image_size=smallest - 1, conv1_stride=stride)


@pytest.mark.parametrize("image_size", [24, 31, 32, 48, 64, 65])
def test_both_poolings_give_equivalent_dimensions(image_size: int) -> None:
    overlapping, plain = (
        AlexNet(image_size=image_size, conv1_stride=2, overlap_pooling=flag) for flag in (True, False)
    )
    images = torch.zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        assert shapes(overlapping, images) == shapes(plain, images)


@pytest.mark.parametrize("init", ["paper", "code", "he", "he_tanh", "fast"])
def test_initialisation(init: str) -> None:
    """The gain of ReLU is the root of 2, that of tanh 5/3."""
    torch.manual_seed(0)
    name, _, tanh = init.partition("_")
    net = AlexNet(init=name, activation=tanh or "relu")
    for name in LAYERS:
        layer = net.get_submodule(name)
        fan_in = layer.weight[0].numel()
        expected = {
            "paper": 0.01,
            "code": 0.03 if name in ("conv3", "conv4", "conv5") else 0.01,
            "he": math.sqrt(2 / fan_in),
            "he_tanh": 5 / 3 / math.sqrt(fan_in),
            "fast": 0.01 if name == "conv1" else math.sqrt(2 / fan_in),
        }[init]
        bias = 1.0 if init in ("paper", "code") and name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0
        tolerance = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a standard deviation
        assert layer.weight.std().item() == pytest.approx(expected, rel=tolerance), name
        assert layer.bias.unique().tolist() == [bias], name


def test_initialisation_of_torch() -> None:
    """``torch`` leaves each layer as PyTorch makes it: uniform within 1 / sqrt(fan_in), spread 1 / sqrt(3 fan_in)."""
    torch.manual_seed(0)
    net = AlexNet(image_size=64, conv1_stride=2, init="torch")
    for name in LAYERS:
        layer = net.get_submodule(name)
        bound = layer.weight[0].numel() ** -0.5
        tolerance = 5 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=tolerance), name
        assert layer.weight.abs().max() <= bound, name
        assert 0 < layer.bias.abs().max() <= bound, name


def test_biases_of_the_paper_s_presets() -> None:
    """Caffe's 0.1 in place of section 5's 1; where section 5 has 0, nothing changes."""
    net = AlexNet(image_size=64, conv1_stride=2, init="paper", bias=0.1)
    biases = [net.get_submodule(name).bias.unique().tolist() for name in LAYERS]
    assert biases == [[0.0], [pytest.approx(0.1)], [0.0], *[[pytest.approx(0.1)]] * 4, [0.0]]
    with pytest.raises(ValueError, match="bias: nan"):
        AlexNet(bias=float("nan"))


def test_groups_do_not_see_each_other() -> None:
    """Section 3.2: with two groups, the second half of conv2's maps has no connection to the first half of conv1's."""
    for groups, independent in ((2, True), (1, False)):
        net = AlexNet(image_size=64, conv1_stride=2, groups=groups, lrn=False).eval()
        seen: list[Tensor] = []
        net.conv2.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output.clone()))
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            net(images)
            net.conv1.weight[:48] *= -1
            net(images)
        assert torch.equal(seen[0][:, 128:], seen[1][:, 128:]) is independent
        assert not torch.equal(seen[0][:, :128], seen[1][:, :128])


def test_lrn_sits_after_the_relu_of_conv1_and_conv2() -> None:
    net = AlexNet(image_size=64, conv1_stride=2)
    inputs: list[Tensor] = []
    for norm in (net.norm1, net.norm2):
        norm.register_forward_hook(lambda _module, args, _output: inputs.append(args[0].clone()))
    net(torch.randn(2, 3, 64, 64))
    assert [tuple(x.shape) for x in inputs] == [(2, 96, 28, 28), (2, 256, 14, 14)]
    assert all((x >= 0).all() for x in inputs)


def test_switches_change_the_network() -> None:
    common = {"image_size": 64, "conv1_stride": 2, "init": "he"}
    images = 50 * torch.randn(4, 3, 64, 64)
    outputs = []
    for switch in (
        {},
        {"lrn": False},
        {"lrn_constants": "code"},
        {"overlap_pooling": False},
        {"activation": "tanh"},
    ):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(AlexNet(**common, **switch).eval()(images))
    for i in range(len(outputs)):
        for j in range(i):
            assert not torch.allclose(outputs[i], outputs[j], rtol=1e-3), (i, j)


def test_embedding_is_fc7_after_its_relu_and_fc8_follows() -> None:
    net = AlexNet(image_size=64, conv1_stride=2, init="he").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        embedding = net.embed(images)
        torch.testing.assert_close(net.fc8(embedding), net(images))
    assert embedding.shape == (3, 4096)
    assert embedding.min() == 0


def test_dropout_is_on_fc6_and_fc7_in_training_only() -> None:
    net = AlexNet(image_size=64, conv1_stride=2, init="he", activation="tanh")  # tanh is never 0 by itself
    images = torch.randn(8, 3, 64, 64)
    zeros = (net.embed(images) == 0).float().mean().item()
    assert zeros == pytest.approx(0.5, abs=0.02)
    assert (net.eval().embed(images) != 0).all()
    assert (AlexNet(image_size=64, conv1_stride=2, activation="tanh", dropout=0).embed(images) != 0).all()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"image_size": 16}, "image_size: 16, expected 36 pixels or more"),
        ({"groups": 3}, "groups: 3, expected 1 or 2"),
        ({"half_kernels": True}, "half_kernels: True, expected false with groups 2"),
        ({"init": "xavier"}, "init: 'xavier', expected paper or"),
        ({"activation": "gelu"}, "activation: 'gelu', expected relu or tanh"),
        ({"dropout": 1.0}, "dropout: 1.0, expected a probability"),
        ({"lrn_constants": "torch"}, "lrn_constants: 'torch', expected text or code"),
        ({"num_classes": 0}, "num_classes: 0, expected 1 or more"),
        ({"conv1_stride": 0}, "conv1_stride: 0, expected 1 or more"),
    ],
)
def test_bad_arguments(argument: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}.*\. \S.*\.$"):
        AlexNet(**argument)


def test_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"^images: \(1, 3, 32, 32\), expected \(B, 3, 64, 64\)"):
        AlexNet(image_size=64, conv1_stride=2)(torch.zeros(1, 3, 32, 32))


# ---- plain PyTorch ---------------------------------------------------------------------------------------


@pytest.fixture
def net() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(image_size=24, conv1_stride=2, init="he").eval()


@pytest.fixture
def two() -> Tensor:
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_a_checkpoint_s_keys() -> None:
    with torch.device("meta"):
        net = AlexNet()
    assert list(net.state_dict()) == [f"{name}.{part}" for name in LAYERS for part in ("weight", "bias")]


def test_each_module_is_used_once_and_none_in_place(net: AlexNet, two: Tensor) -> None:
    """As DeepLift and other attributions ask."""
    called: list[str] = []
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(name: str, output: Tensor) -> None:
        called.append(name)
        kept.append((output, output.clone()))

    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _module, _args, output, name=name: keep(name, output))
    net(two)
    expected = "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
    assert called == (expected + "fc6 relu6 drop6 fc7 relu7 drop7 fc8").split()
    assert all(torch.equal(output, before) for output, before in kept)


def test_a_forward_hook_sees_conv1_before_the_relu(net: AlexNet, two: Tensor) -> None:
    seen: list[Tensor] = []
    net.conv1.register_forward_hook(lambda _module, _args, output: seen.append(output))
    net(two)
    assert (seen[0] < 0).any()


def test_a_full_backward_hook_on_conv5(net: AlexNet, two: Tensor) -> None:
    seen: list[Tensor] = []
    net.conv5.register_full_backward_hook(lambda _module, _grads_in, grads_out: seen.append(grads_out[0]))
    net(two).sum().backward()
    torch.testing.assert_close(seen[0].sum((0, 2, 3)), net.conv5.bias.grad)


def test_torch_fx_and_create_feature_extractor(net: AlexNet, two: Tensor) -> None:
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(two), net(two))
    with pytest.raises(ValueError, match=r"^images: \(1, 3, 32, 32\), expected \(B, 3, 24, 24\)"):
        traced(torch.zeros(1, 3, 32, 32))
    features = create_feature_extractor(net, ["relu5", "fc7"])(two)
    assert features["relu5"].shape == (2, 256, 2, 2)
    assert torch.equal(features["fc7"].relu(), net.embed(two))


@pytest.mark.filterwarnings("ignore")  # of every shape that is checked, and of being deprecated
def test_torch_jit_trace_is_saved_and_takes_other_batches(net: AlexNet, two: Tensor, tmp_path: Path) -> None:
    torch.jit.trace(net, two).save(str(tmp_path / "net.pt"))
    images = torch.randn(5, 3, 24, 24)
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.pt"))(images), net(images), rtol=1e-4, atol=1e-5)


def test_per_image_gradients_by_torch_func(net: AlexNet, two: Tensor) -> None:
    def logit(image: Tensor) -> Tensor:
        return net(image[None])[0, 3]

    got = torch.func.vmap(torch.func.grad(logit))(two)
    leaf = two.clone().requires_grad_()
    net(leaf)[:, 3].sum().backward()
    torch.testing.assert_close(got, leaf.grad, rtol=1e-4, atol=1e-5)


def test_export_and_compile(net: AlexNet, two: Tensor) -> None:
    compiled = torch.compile(net, backend="aot_eager")
    for other in (torch.export.export(net, (two,)).module(), compiled):
        torch.testing.assert_close(other(two), net(two), rtol=1e-4, atol=1e-5)


def test_weights_are_flattened_and_pruned(net: AlexNet) -> None:
    assert parameters_to_vector(net.parameters()).shape == (sum(p.numel() for p in net.parameters()),)
    pruned = copy.deepcopy(net)
    prune.global_unstructured([(pruned.conv2, "weight"), (pruned.fc6, "weight")], prune.L1Unstructured, amount=0.5)
    zeros = sum(int((layer.weight == 0).sum()) for layer in (pruned.conv2, pruned.fc6))
    assert zeros == (net.conv2.weight.numel() + net.fc6.weight.numel()) // 2
