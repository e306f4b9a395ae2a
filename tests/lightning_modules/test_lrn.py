"""LRN against the formula as the paper writes it (loops, float64), torch's own layer, and finite differences."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

from lightning_modules.lrn import LocalResponseNorm, _pieces, local_response_norm

TEXT = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
STRONG = {"size": 5, "alpha": 0.3, "beta": 0.75, "k": 2.0}  # an alpha at which the normalization shows


def written_formula(a: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Section 3.3, one channel at a time: the sum runs from max(0, i - n/2) to min(N - 1, i + n/2)."""
    b = torch.empty_like(a, dtype=torch.float64)
    channels = a.shape[1]
    for i in range(channels):
        low, high = max(0, i - size // 2), min(channels - 1, i + (size - 1) // 2)
        total = sum(a[:, j].double() ** 2 for j in range(low, high + 1))
        b[:, i] = a[:, i].double() / (k + alpha * total) ** beta
    return b


def images(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 0.6])
def test_is_the_written_formula(size: int, beta: float) -> None:
    x = images(3, 11, 5, 4)
    got = local_response_norm(x, size, 0.3, beta, 2.0)
    torch.testing.assert_close(got, written_formula(x, size, 0.3, beta, 2.0), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_fewer_channels_than_the_window(channels: int) -> None:
    x = images(2, channels, 3, 3)
    torch.testing.assert_close(local_response_norm(x, **STRONG), written_formula(x, **STRONG), rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_torch(size: int, memory_format: torch.memory_format) -> None:
    x = images(9, 20, 13, 13, scale=3).contiguous(memory_format=memory_format)
    grad = images(9, 20, 13, 13)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = local_response_norm(ours, size, 0.3, 0.75, 2.0)
    out.backward(grad)
    reference = nn.LocalResponseNorm(size, alpha=0.3 * size, beta=0.75, k=2.0)(theirs)
    reference.backward(grad)
    torch.testing.assert_close(out, reference, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-14)
    assert out.is_contiguous(memory_format=memory_format)


def test_the_conventions_are_a_factor_of_five_in_torchs_alpha() -> None:
    x = images(2, 96, 5, 5, scale=100)
    for name, alpha in {"text": 5e-4, "code": 1e-4}.items():
        torch.testing.assert_close(LocalResponseNorm.of(name)(x), nn.LocalResponseNorm(5, alpha, 0.75, 2.0)(x))
    with pytest.raises(ValueError, match="lrn_constants: 'caffe'"):
        LocalResponseNorm.of("caffe")


@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_gradcheck_once_and_twice(size: int, beta: float) -> None:
    x = images(2, 6, 2, 2).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return local_response_norm(x, size, 0.3, beta, 2.0)

    assert gradcheck(function, (x,))
    assert gradgradcheck(function, (x,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradgradcheck_where_memory_has_gaps(memory_format: torch.memory_format) -> None:
    x = images(2, 3, 4, 2).contiguous(memory_format=memory_format)[:, :, ::2].requires_grad_()
    assert gradgradcheck(lambda x: local_response_norm(2 * x, **STRONG), (x,))
    assert gradgradcheck(lambda x: local_response_norm(x.transpose(2, 3), **STRONG), (x,))


def test_pieces_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = images(7, 12, 6, 6), images(7, 12, 6, 6, scale=2)
    results = []
    monkeypatch.setattr("lightning_modules.lrn.PIECE_BYTES", 4 * 12 * 36)  # an image a core
    for cores in (1, 3, 8):  # pieces of 1, 3 (the last one short) and all 7 images
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert _pieces(x.flatten(2)) == min(cores, 7)
        leaf = x.clone().requires_grad_()
        out = local_response_norm(leaf, **STRONG)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_empty_batch_and_odd_layouts() -> None:
    empty = torch.zeros(0, 8, 3, 3, requires_grad=True)
    out = local_response_norm(empty, **TEXT)
    out.sum().backward()
    assert out.shape == empty.shape == empty.grad.shape
    x = images(4, 6, 8, 8)[:, :, ::2, 1:7].transpose(2, 3)  # not dense
    torch.testing.assert_close(local_response_norm(x, **STRONG), written_formula(x, **STRONG), rtol=1e-14, atol=0)
    flat = images(4, 10)
    torch.testing.assert_close(local_response_norm(flat, **STRONG), written_formula(flat, **STRONG), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = images(2, 12, 4, 4, scale=20).to(dtype)
    leaf = x.clone().requires_grad_()
    out = local_response_norm(leaf, **STRONG)
    out.sum().backward()
    assert out.dtype == leaf.grad.dtype == dtype
    torch.testing.assert_close(out.double(), written_formula(x, **STRONG), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_under_autocast() -> None:
    conv, x = nn.Conv2d(3, 8, 3), images(2, 3, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = LocalResponseNorm()(conv(x))
    out.float().square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.isfinite().all()


def test_under_compile() -> None:
    x = images(2, 12, 4, 4, dtype=torch.float32)
    compiled = torch.compile(LocalResponseNorm(alpha=0.3), backend="aot_eager")
    eager, traced = x.clone().requires_grad_(), x.clone().requires_grad_()
    LocalResponseNorm(alpha=0.3)(eager).square().sum().backward()
    compiled(traced).square().sum().backward()
    torch.testing.assert_close(eager.grad, traced.grad)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    x = images(3, 12, 5, 5).cuda().requires_grad_()
    out = local_response_norm(x, **STRONG)
    torch.testing.assert_close(out.cpu(), written_formula(x.detach().cpu(), **STRONG), rtol=1e-13, atol=1e-14)
    assert gradcheck(lambda x: local_response_norm(x, **STRONG), (x,))


@pytest.mark.parametrize(
    ("shape", "change"), [((2, 0, 3), {}), ((4,), {}), ((2, 3), {"size": 0}), ((2, 3), {"k": 0.0})]
)
def test_refuses_what_it_cannot_normalise(shape: tuple[int, ...], change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="^(x|size|k): .*, expected"):
        local_response_norm(torch.zeros(shape), **{**TEXT, **change})


def total(x: Tensor) -> Tensor:
    return local_response_norm(x, **STRONG).square().sum()


def written_total(x: Tensor) -> Tensor:
    return nn.LocalResponseNorm(5, alpha=0.3 * 5, beta=0.75, k=2.0)(x).square().sum()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torch_func_differentiates_image_by_image(memory_format: torch.memory_format) -> None:
    x = images(4, 7, 3, 2).contiguous(memory_format=memory_format)
    each = vmap(lambda image: total(image[None]))(x)
    torch.testing.assert_close(each, torch.stack([written_total(image[None]) for image in x]))
    for ours, theirs in ((grad(total), grad(written_total)), (jacrev(grad(total)), jacrev(grad(written_total)))):
        torch.testing.assert_close(ours(x), theirs(x))
        per_image = vmap(lambda image, ours=ours: ours(image[None]), in_dims=1, out_dims=1)(x.transpose(0, 1))
        torch.testing.assert_close(per_image[:, 2], ours(x[2:3]))


def test_torch_func_in_forward_mode_and_without_grad_mode() -> None:
    x, tangent = images(2, 7, 3, 2), images(2, 7, 3, 2, scale=3)
    got, expected = jvp(total, (x,), (tangent,)), jvp(written_total, (x,), (tangent,))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(hessian(total)(x), hessian(written_total)(x))
    function = nn.LocalResponseNorm(5, alpha=0.3 * 5, beta=0.75, k=2.0)
    with torch.no_grad():
        torch.testing.assert_close(jacrev(lambda x: local_response_norm(x, **STRONG))(x), jacrev(function)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_differentiated_twice_and_traced_is_computed_in_float32(dtype: torch.dtype) -> None:
    """In float16 300 has no square."""
    x = torch.full((2, 5, 2, 2), 300.0).to(dtype)
    expected = written_formula(x, **TEXT)
    traced = torch.jit.trace(LocalResponseNorm(), (x,))
    rtol = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(traced(x).double(), expected, rtol=rtol, atol=0)
    leaf = x.clone().requires_grad_()
    (twice,) = torch.autograd.grad(local_response_norm(leaf, **TEXT).sum(), leaf, create_graph=True)
    (once,) = torch.autograd.grad(local_response_norm(leaf, **TEXT).sum(), leaf)
    assert once.isfinite().all()
    torch.testing.assert_close(twice, once)
    _, tangent = jvp(lambda x: local_response_norm(x, **TEXT), (x,), (torch.ones_like(x),))
    _, expected = jvp(lambda x: written_formula(x, **TEXT), (x.double(),), (torch.ones_like(x).double(),))
    torch.testing.assert_close(tangent.double(), expected, rtol=rtol, atol=0)
