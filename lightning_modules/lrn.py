"""Local response normalization (Krizhevsky et al. 2012, section 3.3), with its gradient written by hand.

``torch.nn.LocalResponseNorm`` pads the squares and calls ``avg_pool3d``; on a CPU it takes about half of AlexNet's
training step. Here the window sum is a few in-place adds of shifted slices, ``d**-0.75`` comes from ``rsqrt`` and
``sqrt``, and the batch is worked through in pieces small enough that every pass finds its data in the cache.

From top to bottom: the formula and its gradient in plain operations, the same two fast, the layer.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from lightning_modules.arguments import check, check_choice

# What each core has of a piece: with its two or three scratch buffers about what a core's own cache holds, and long
# enough that starting the operations costs little. On one core of an Intel Xeon (AMX) four times as much took 1.3 to
# 1.4 times as long; on two of an AMD EPYC, from 0.5 to 4 MB a core, the time changed by less than the noise.
PIECE_BYTES = 2**19


def window_sum(x: Tensor, before: int, after: int) -> Tensor:
    """Sum ``x`` over the channel window ``[i - before, i + after]``, cut off at the first and the last channel.

    Args:
        x: ``(B, C, ...)`` float.
        before: Channels of the window below ``i``, at least 0.
        after: Channels of the window above ``i``, at least 0.

    Returns:
        A new tensor like ``x``.
    """
    channels = x.shape[1]
    total = x.clone()
    for shift in range(1, min(max(before, after), channels - 1) + 1):
        low, high = slice(0, channels - shift), slice(shift, channels)
        if shift <= before:
            total[:, high] += x[:, low]
        if shift <= after:
            total[:, low] += x[:, high]
    return total


def lrn_formula(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """The formula of section 3.3 in differentiable operations: ``x / (k + alpha * window_sum(x**2))**beta``.

    What :class:`LocalResponseNorm` computes, written to be read. ``torch.compile`` is given this form for a GPU,
    because it fuses plain operations better than it could fuse the pieces below, and ``torch.export`` and
    ``torch.jit.trace``, which can save no other. Half-precision inputs are worked on in float32, whose squares don't
    overflow at 256.

    Args:
        x: ``(B, C, ...)`` float.
        size: Window length ``n`` in channels; an even window reaches one further down than up, as torch's does.
        alpha: Weight of the sum of squares. **Not** divided by ``size`` (torch, Caffe and cuda-convnet divide).
        beta: Exponent.
        k: Constant under the power, positive.

    Returns:
        A new tensor like ``x``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * _d(wide, size, alpha, k).pow(-beta)).to(x.dtype)


def lrn_gradient(x: Tensor, grad: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """What ``grad``, the gradient of :func:`lrn_formula`'s output, makes of ``x``'s, in differentiable operations.

    With ``d = k + alpha * window_sum(x**2)`` it is ::

        grad * d**-beta - 2 * alpha * beta * x * window_sum'(grad * x * d**(-beta - 1))

    ``window_sum'`` is the transposed window: channel ``i`` reaches the channels in whose window it lies.
    """
    wide, slope = (t.to(torch.promote_types(x.dtype, torch.float32)) for t in (x, grad))
    d = _d(wide, size, alpha, k)
    reached = window_sum(slope * wide * d.pow(-beta - 1), (size - 1) // 2, size // 2)
    return (slope * d.pow(-beta) - 2 * alpha * beta * wide * reached).to(x.dtype)


def _d(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    return k + alpha * window_sum(x * x, size // 2, (size - 1) // 2)


def _rows(x: Tensor) -> Tensor:
    """View a dense ``(B, C, ...)`` tensor as ``(outer, C, inner)`` without a copy, whichever way it lies in memory.

    NCHW becomes ``(B, C, H*W)``; channels_last becomes ``(B*H*W, C, 1)``.
    """
    if _layout(x) is torch.channels_last:
        return x.permute(0, 2, 3, 1).view(-1, x.shape[1], 1)
    return x.view(*x.shape[:2], -1) if x.numel() else x.view(0, x.shape[1], 1)


def _layout(x: Tensor) -> torch.memory_format:
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not x.is_contiguous() else torch.contiguous_format


def _pieces(x: Tensor) -> int:
    """Rows of ``_rows(x)`` to work on at a time. A GPU has no use for pieces: one kernel over everything is fastest."""
    if x.device.type != "cpu":
        return max(1, x.shape[0])
    return max(1, min(x.shape[0], torch.get_num_threads() * PIECE_BYTES // (4 * x.shape[1] * x.shape[2])))


def _slide(padded: Tensor, size: int, out: Tensor) -> None:
    """Window sums along the channels: ``out[:, i] = padded[:, i] + ... + padded[:, i + size - 1]``, by in-place adds.

    Both are contiguous, ``(outer, C + size - 1, inner)``. The buffer is summed as one long row, which keeps every pass
    contiguous in either memory layout; the sums that run from one row into the next fall on the last ``size - 1``
    channels of ``out``, which nobody reads.
    """
    inner = padded.shape[2]
    length = padded.numel() - (size - 1) * inner
    source, target = padded.view(-1), out.view(-1)[:length]
    if size == 1:
        target.copy_(source)
        return
    torch.add(source[:length], source[inner : inner + length], out=target)
    for shift in range(2, size):
        target += source[shift * inner : shift * inner + length]


def _packed(buffer: Tensor, like: Tensor) -> Tensor:
    """The start of ``buffer`` in ``like``'s shape. With channels_last's gaps ``sqrt`` took twice as long (AMD EPYC)."""
    return buffer.view(-1)[: like.numel()].view(like.shape)


def _power(root: Tensor, beta: float, out: Tensor) -> Tensor:
    """``d**-beta`` from ``root = d**-0.5``; the paper's 0.75 by a square root, several times faster than ``pow``."""
    if beta == 0.75:
        return torch.sqrt(root, out=out).mul_(root)
    return torch.pow(root, 2 * beta, out=out)


class _ImageByImage(torch.autograd.Function):
    """Of tensors ``(B, C, ...)`` and constants, to a tuple of such tensors: ``vmap`` only makes the batch larger."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def merged(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            return (arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)).flatten(0, 1)

        outs = cls.apply(*map(merged, args, in_dims))
        return tuple(o.unflatten(0, (info.batch_size, len(o) // info.batch_size)) for o in outs), (0,) * len(outs)


class _LRN(_ImageByImage):
    """:func:`lrn_formula`, a piece of the batch at a time; and ``root = d**-0.5``, which the gradient needs."""

    @staticmethod
    def forward(x: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=_layout(x))
        before, channels = size // 2, x.shape[1]
        out, work = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
        root = torch.empty_like(x, dtype=work)
        x_rows, out_rows, root_rows = _rows(x), _rows(out), _rows(root)
        piece = _pieces(x_rows)
        # Each term of the window, the padding too, carries its share of k: the window's sum is then d itself.
        share = torch.tensor(k / size, dtype=work, device=x.device)
        padded = share.repeat(piece, channels + size - 1, x_rows.shape[2])
        sums = torch.empty_like(padded)
        for i in range(0, x_rows.shape[0], piece):
            xs, rs = x_rows[i : i + piece].to(work), root_rows[i : i + piece]
            terms, sums_ = padded[: len(xs)], sums[: len(xs)]
            torch.addcmul(share, xs, xs, value=alpha, out=terms[:, before : before + channels])
            _slide(terms, size, out=sums_)
            torch.rsqrt(sums_[:, :channels], out=rs)
            power = _power(rs, beta, out=_packed(sums, xs))
            if out.dtype == work:
                torch.mul(power, xs, out=out_rows[i : i + piece])
            else:
                out_rows[i : i + piece] = power.mul_(xs)
        return out, root

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.constants = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros for the root
        ctx.save_for_backward(x, output[1])
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        x, root = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate the gradient
            return lrn_gradient(x, grad, *ctx.constants), None, None, None, None
        return *_LRNGradient.apply(x, grad, root, *ctx.constants), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        (x,), (size, alpha, beta, k) = ctx.saved_tensors, ctx.constants
        wide, slope = (t.to(torch.promote_types(x.dtype, torch.float32)) for t in (x, tangent))
        d, reached = _d(wide, size, alpha, k), window_sum(wide * slope, size // 2, (size - 1) // 2)
        return (slope * d.pow(-beta) - 2 * alpha * beta * wide * d.pow(-beta - 1) * reached).to(x.dtype), None


class _LRNGradient(_ImageByImage):
    """:func:`lrn_gradient`, a piece of the batch at a time."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, root: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor]:
        x, grad, root = (t.contiguous(memory_format=_layout(x)) for t in (x, grad, root))
        after, channels = (size - 1) // 2, x.shape[1]
        dx = torch.empty_like(x)
        x_rows, grad_rows, root_rows, dx_rows = _rows(x), _rows(grad), _rows(root), _rows(dx)
        piece = _pieces(x_rows)
        padded = torch.zeros(piece, channels + size - 1, x_rows.shape[2], dtype=root.dtype, device=x.device)
        sums, direct = torch.empty_like(padded), padded.new_empty(piece, channels, x_rows.shape[2])
        for i in range(0, x_rows.shape[0], piece):
            xs, rs = x_rows[i : i + piece].to(root.dtype), root_rows[i : i + piece]
            terms, sums_ = padded[: len(xs)], sums[: len(xs)]
            first = _power(rs, beta, out=direct[: len(xs)]).mul_(grad_rows[i : i + piece])
            term = torch.mul(first, xs, out=_packed(sums, xs)).mul_(rs)
            torch.mul(term, rs, out=terms[:, after : after + channels])  # grad * x * d**(-beta - 1)
            _slide(terms, size, out=sums_)
            if dx.dtype == root.dtype:
                torch.addcmul(first, xs, sums_[:, :channels], value=-2 * alpha * beta, out=dx_rows[i : i + piece])
            else:
                dx_rows[i : i + piece] = first.addcmul_(xs, sums_[:, :channels], value=-2 * alpha * beta)
        return (dx,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        """Nothing to keep: where this is differentiated, :func:`lrn_gradient` is called in its place."""


@torch.fx.wrap  # one operation of a traced network
def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Normalise each activation by its neighbours' in the channel direction.

    ``b[i] = a[i] / (k + alpha * sum(a[j]**2))**beta``, the sum over the ``size`` channels ``j`` around ``i``, fewer at
    the edges. Differentiable as often as you like, with ``torch.func`` too. Half-precision inputs are worked on in
    float32.

    Args:
        x: ``(B, C, ...)`` float, in any memory layout; ``B`` may be 0 and ``C`` may be below ``size``.
        size: Window length in channels, at least 1. An even window reaches one further down than up, as torch's.
        alpha: Weight of the sum of squares, **not** divided by ``size``: equals torch's ``alpha / size``.
        beta: Exponent.
        k: Constant, above 0.

    Returns:
        A new tensor of ``x``'s shape, dtype and memory layout.

    Raises:
        ValueError: If ``x`` has no channels, ``size`` is below 1 or ``k`` is not positive.

    Source:
        Krizhevsky et al. 2012, section 3.3.
    """
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"x: {tuple(x.shape)}, expected (B, C, ...) with a channel. Give the normalization one.")
    check(size >= 1, "size", size, "1 channel or more", "Choose one, such as 5")
    check(k > 0, "k", k, "a number above 0", "Choose one, such as 2")
    for_gpu = torch.compiler.is_compiling() and not x.is_cpu
    if for_gpu or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return lrn_formula(x, size, alpha, beta, k)
    return _in_pieces(x, size, alpha, beta, k)


@torch.compiler.disable  # what it makes of the formula's gradient takes a CPU eight steps' time
def _in_pieces(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    out: Tensor = _LRN.apply(x, size, alpha, beta, k)[0]
    return out


class LocalResponseNorm(nn.Module):
    """:func:`local_response_norm` as a layer; no parameters.

    The text of section 3.3 has ``alpha = 1e-4`` in front of the sum. cuda-convnet, the code that ran the experiments,
    divides it by the window's length, as Caffe and torch do. Both by name:

    ========  ====================  =======================================
    name      ``alpha`` of the sum  torch's ``LocalResponseNorm(5, alpha)``
    ========  ====================  =======================================
    ``text``  1e-4                  5e-4
    ``code``  1e-4 / 5 = 2e-5       1e-4
    ========  ====================  =======================================

    Args:
        size: Window length in channels.
        alpha: Weight of the sum of squares, not divided by ``size``.
        beta: Exponent.
        k: Constant.

    Source:
        Krizhevsky et al. 2012, section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75.
    """

    CONVENTIONS: ClassVar[dict[str, float]] = {"text": 1e-4, "code": 1e-4 / 5}

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    @classmethod
    def of(cls, convention: str) -> LocalResponseNorm:
        """The paper's layer with ``alpha`` by the ``text`` or by the ``code``."""
        check_choice("lrn_constants", convention, tuple(cls.CONVENTIONS))
        return cls(alpha=cls.CONVENTIONS[convention])

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha:g}, beta={self.beta}, k={self.k}"
