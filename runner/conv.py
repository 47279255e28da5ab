"""Convolutions in less time: the same function, by exact algebra and in another order.

A newcomer may skip this module. On a handful of pixels most taps of a kernel only multiply padding: ``LiveConv``
leaves those out. On larger images, on a CPU, ``TiledConv`` does a 3x3 convolution tile by tile with fewer products.
On a GPU ``UnfoldedConv`` is a convolution of few channels, the first one, and ``ForkedConv`` any other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, add, nn, sub
from torch.nn import functional as F

Size = tuple[int, int]


class LiveConv(nn.Module):
    """A convolution on so few pixels that one matrix product does it, with only the taps that ever meet a pixel.

    Its ``weight`` is ``[live taps, C_in, C_out]``. On a 1x1 image a 3x3 kernel has one live tap of nine, on 2x2 with
    stride 2 four; the dead ones never touch the output, and weight decay alone moves them (see ``Slot.state_dict``).
    """

    def __init__(self, conv: nn.Conv2d, size: Size) -> None:
        super().__init__()
        self.pairs, self.out = _pairs(conv, size)
        self.used = sorted({pixel for pixel, _ in self.pairs})
        self.live = sorted(set(self.pairs.values()))
        self.weight = nn.Parameter(conv.weight.detach().flatten(2).permute(2, 1, 0)[self.live].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        taps = dict(zip(self.live, self.weight.unbind(0), strict=True))
        none, outputs = torch.zeros_like(self.weight[0]), range(self.out[0] * self.out[1])
        rows = [torch.cat([taps.get(self.pairs.get((p, o), -1), none) for o in outputs], dim=1) for p in self.used]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        if len(self.used) < pixels.shape[1]:
            pixels = torch.stack([pixels[:, p] for p in self.used], dim=1)  # a list as an index would wait for a GPU
        y = pixels.flatten(1) @ torch.cat(rows)
        return cast("Tensor", y.unflatten(1, (*self.out, -1)).permute(0, 3, 1, 2))


def _pairs(conv: nn.Conv2d, size: Size) -> tuple[dict[tuple[int, int], int], Size]:
    """Which tap (row by row) joins which (input pixel, output pixel), and the size of the output."""
    kernel, stride, padding, out = conv.kernel_size, conv.stride, cast("Size", conv.padding), _output(conv, size)
    found = {}
    for y, x, i, j in product(range(size[0]), range(size[1]), range(out[0]), range(out[1])):
        ky, kx = y + padding[0] - i * stride[0], x + padding[1] - j * stride[1]
        if 0 <= ky < kernel[0] and 0 <= kx < kernel[1]:
            found[y * size[1] + x, i * out[1] + j] = ky * kernel[1] + kx
    return found, out


def _output(conv: nn.Conv2d, size: Sequence[int]) -> Size:
    """The size of what a convolution makes of images of this size."""
    kernel, stride, padding = conv.kernel_size, conv.stride, cast("Size", conv.padding)
    height, width = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    return height, width


# --------------------------------------------------------------------------------------
# In tiles.


class TiledConv(nn.Module):
    """A 3x3 convolution with padding 1 and stride 1, in tiles of 4x4 pixels; its ``weight`` is ``[9, C_in, C_out]``.

    Winograd's minimal filtering F(4x4, 3x3), with 36 products of channels for a tile in place of 144 (Lavin and Gray,
    "Fast Algorithms for Convolutional Neural Networks", 2015, section 4). Exact but for rounding, in fp32 about ten
    times that of a plain sum.
    """

    live = range(9)

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(2).permute(2, 1, 0).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        margin = (0, 0, 0, -width % 4, 0, -height % 4)
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, margin) if any(margin) else x.contiguous()
        kernels = _KERNELS.to(x) @ self.weight.flatten(1)
        tiles = x.unflatten(2, (-1, 4)).unflatten(1, (-1, 4))
        y = cast("Tensor", _Tiles.apply(tiles, kernels.unflatten(1, self.weight.shape[1:])))
        return y.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)


_TAPS = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
_TAPS += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 4]]
_KERNELS = torch.kron(*[torch.tensor(_TAPS, dtype=torch.float64)] * 2)
"""From the 9 taps of a kernel to its values, scaled, at 6x6 points: 0, 1, -1, 2, -2 and infinity."""
_PIXELS = 4096
"""So many at a time, or one image: enough for the products to be large, and few for a core's cache."""


class _Tiles(torch.autograd.Function):
    """Images ``[n, h, 4, w, 4, C_in]`` of h x w tiles and kernels ``[36, C_in, C_out]`` to images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernels)
        y = x.new_empty(*x.shape[:-1], kernels.shape[2])
        for part, done in zip(_parts(x), _parts(y), strict=True):
            points = expanded(part)
            products = torch.bmm(points.view(36, -1, points.shape[-1]), kernels)
            contracted(products.view(*points.shape[:-1], -1), done)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        dx, dkernels, beta = torch.empty_like(x), torch.empty_like(kernels), 0
        for part, dpart, done in zip(_parts(x), _parts(dx), _parts(dy.contiguous()), strict=True):
            points, products = expanded(part), contracted_back(done).view(36, -1, kernels.shape[2])
            across = points.view(36, -1, points.shape[-1]).transpose(1, 2)
            torch.baddbmm(dkernels, across, products, beta=beta, out=dkernels)
            expanded_back(torch.bmm(products, kernels.transpose(1, 2)).view(points.shape), dpart)
            beta = 1  # the first part has forgotten what was in the memory
        return dx, dkernels


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    tiles = images.shape[1] * images.shape[3]
    return cast("tuple[Tensor, ...]", images.split(max(1, _PIXELS // (16 * tiles))))


# Every step has its transpose beside it, and is done along a row of pixels, then along a column. Points are
# ``[6, 6, n, h, w, C]``.

Pieces = Sequence[Tensor]
"""The pixels of a side of a tile, or its points: what one of them is in all tiles, and a view to write to."""


def expanded(x: Tensor) -> Tensor:
    """An image's tiles, with the pixels around them, at the points."""
    n, h, _, w, _, c = x.shape
    side, points = x.new_empty(6, n, h, 4, w, c), x.new_empty(6, 6, n, h, w, c)
    _expand(x.unbind(4), side.unbind(), 3)
    _expand(side.unbind(3), points.unbind(), 2)
    return points


def expanded_back(points: Tensor, x: Tensor) -> None:
    n, h, _, w, _, c = x.shape
    side = x.new_empty(6, n, h, 4, w, c)
    _expand_back(points.unbind(), side.unbind(3), 2)
    _expand_back(side.unbind(), x.unbind(4), 3)


def contracted(products: Tensor, y: Tensor) -> None:
    """The products at the points into the tiles of an image."""
    n, h, _, w, _, c = y.shape
    side = y.new_empty(6, n, h, 4, w, c)
    _contract(products.unbind(), side.unbind(3))
    _contract(side.unbind(), y.unbind(4))


def contracted_back(y: Tensor) -> Tensor:
    n, h, _, w, _, c = y.shape
    side, products = y.new_empty(6, n, h, 4, w, c), y.new_empty(6, 6, n, h, w, c)
    _contract_back(y.unbind(4), side.unbind())
    _contract_back(side.unbind(3), products.unbind())
    return products


def _expand(x: Pieces, p: Pieces, dim: int) -> None:
    """Four pixels of a tile to six points; tiles follow one another along ``dim``.

    Three taps on four pixels reach six: the last one of the tile before (l), the four, the first one of the next (n).

        4 l     - 5 x1      + x3             the point 0
          - 4 x0 - 4 x1 + x2 + x3            1
            4 x0 - 4 x1 - x2 + x3           -1
          - 2 x0 - x1 + 2 x2 + x3            2
            2 x0 - x1 - 2 x2 + x3           -2
              x0    - 5/4 x2     + n / 4     infinity
    """
    a, b = sub(x[3], x[1], alpha=4), sub(x[2], x[0], alpha=4)
    add(a, b, out=p[1])
    sub(a, b, out=p[2])
    sub(x[3], x[1], out=a)
    sub(x[2], x[0], out=b)
    add(a, b, alpha=2, out=p[3])
    sub(a, b, alpha=2, out=p[4])
    sub(x[3], x[1], alpha=5, out=p[0])
    sub(x[0], x[2], alpha=1.25, out=p[5])
    _later(p[0], dim).add_(_earlier(x[3], dim), alpha=4)  # beyond the first and the last tile is padding
    _earlier(p[5], dim).add_(_later(x[0], dim), alpha=0.25)


def _expand_back(p: Pieces, x: Pieces, dim: int) -> None:
    a, b, c, d = p[1] + p[2], p[1] - p[2], p[3] + p[4], p[3] - p[4]
    add(a, c, out=x[3]).add_(p[0])
    torch.neg(a.mul_(4).add_(c).add_(p[0], alpha=5), out=x[1])
    add(b, d, alpha=2, out=x[2]).sub_(p[5], alpha=1.25)
    sub(p[5], b, alpha=4, out=x[0]).sub_(d, alpha=2)
    _earlier(x[3], dim).add_(_later(p[0], dim), alpha=4)
    _later(x[0], dim).add_(_earlier(p[5], dim), alpha=0.25)


def _contract(p: Pieces, y: Pieces) -> None:
    """Six points to four pixels: y_i is the sum of point^i p, and infinity adds to the last one."""
    a, b, c, d = p[1] + p[2], p[1] - p[2], p[3] + p[4], p[3] - p[4]
    add(a, c, out=y[0]).add_(p[0])
    add(b, d, alpha=2, out=y[1])
    add(a, c, alpha=4, out=y[2])
    add(b, d, alpha=8, out=y[3]).add_(p[5])


def _contract_back(y: Pieces, p: Pieces) -> None:
    p[0].copy_(y[0])
    p[5].copy_(y[3])
    a, b = y[0] + y[2], y[1] + y[3]
    add(a, b, out=p[1])
    sub(a, b, out=p[2])
    add(y[0], y[2], alpha=4, out=a)
    add(y[1], y[3], alpha=4, out=b)
    add(a, b, alpha=2, out=p[3])
    sub(a, b, alpha=2, out=p[4])


def _earlier(pieces: Tensor, dim: int) -> Tensor:
    """Of all tiles but the last."""
    return pieces.narrow(dim, 0, pieces.shape[dim] - 1)


def _later(pieces: Tensor, dim: int) -> Tensor:
    """Of all tiles but the first."""
    return pieces.narrow(dim, 1, pieces.shape[dim] - 1)


# --------------------------------------------------------------------------------------
# On a GPU. Both are a ``Conv2d`` in all but how they compute.


class UnfoldedConv(nn.Conv2d):
    """A convolution of few channels: the taps of an output pixel side by side, and one matrix product.

    cuDNN fills three channels up to eight and takes several times as long. (Chellapilla, Puri and Simard, "High
    Performance Convolutional Neural Networks for Document Processing", 2006.)
    """

    def forward(self, x: Tensor) -> Tensor:
        (n, c, *size), (height, width), (down, right) = x.shape, self.kernel_size, cast("Size", self.padding)
        # zeros until a row of taps is whole pieces of 16 bytes, which are copied at once
        channels = 1 << (c - 1).bit_length()
        across = width + -width % max(1, 8 // channels)
        x = x.to(self.weight.dtype).permute(0, 2, 3, 1)
        x = F.pad(x, (0, channels - c, right, right + across - width, down, down)).contiguous()
        kernels = F.pad(self.weight.permute(0, 2, 3, 1), (0, channels - c, 0, across - width)).flatten(1)
        image, row, pixel, _ = x.stride()
        # a view of what lies in memory: the compiler would make every tap from the picture anew
        steps = (image, row * self.stride[0], pixel * self.stride[1], row, 1)
        taps = x.as_strided((n, *_output(self, size), height, across * channels), steps).flatten(3)
        return F.linear(taps, kernels).permute(0, 3, 1, 2)


class ForkedConv(nn.Conv2d):
    """A convolution whose weights' gradient is computed beside what follows it in the backward pass.

    A small kernel leaves room on a GPU, and nothing but the optimizer waits for that gradient: ``forked`` ends after
    it. That holds where a weight has one use and a convolution's output goes into a normalisation, not into a sum, as
    in torchvision's networks. A strided 1x1 kernel is given the pixels that it meets, and no others.
    """

    def forward(self, x: Tensor) -> Tensor:
        (down, right), stride = self.stride, self.stride
        if self.kernel_size == (1, 1) and self.padding == (0, 0) and stride != (1, 1):
            x, stride = x[:, :, ::down, ::right].contiguous(memory_format=torch.channels_last), (1, 1)
        return cast("Tensor", _Forked.apply(x.to(self.weight.dtype), self.weight, stride, self.padding))


class _Forked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        wanted = ctx.needs_input_grad[0]
        dx, dweight = both_gradients(dy, *ctx.saved_tensors, *ctx.geometry, wanted)
        return dx if wanted else None, dweight, None, None


# One operation, which torch's compiler leaves as it is: the weight's gradient is under way before the other begins.
@torch.library.custom_op("runner::both_gradients", mutates_args=())
def both_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], wanted: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of a convolution's input, where it is ``wanted``, and of its weight.

    On a GPU the weight's is computed on the stream beside the current one.
    """
    if x.is_cuda:
        main = torch.cuda.current_stream(x.device)
        side = beside(x.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            dweight = gradient(1, dy, x, weight, stride, padding)
        for tensor, user in ((dy, side), (x, side), (dweight, main)):
            tensor.record_stream(user)  # nobody takes the memory before it is read
    else:
        dweight = gradient(1, dy, x, weight, stride, padding)
    if not wanted:
        return x.new_empty(0), dweight
    return gradient(0, dy, x, weight, stride, padding).contiguous(memory_format=torch.channels_last), dweight


@both_gradients.register_fake
def _(
    _dy: Tensor, x: Tensor, weight: Tensor, _stride: Sequence[int], _padding: Sequence[int], wanted: bool
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.channels_last) if wanted else x.new_empty(0)
    return dx, torch.empty_like(weight)


def gradient(of: int, dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """One of a convolution's gradients: 0 of its input, 1 of its weight."""
    wanted, one, none = (of == 0, of == 1, False), (1, 1), (0, 0)
    found = torch.ops.aten.convolution_backward(dy, x, weight, None, stride, padding, one, False, none, 1, wanted)
    return cast("Tensor", found[of])


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Have what is computed beside the current stream begin after what is there, and end before what comes next."""
    if device.type != "cuda":
        yield
        return
    main, side = torch.cuda.current_stream(device), beside(device)
    side.wait_stream(main)
    try:
        yield
    finally:  # after an error too: a capture must not end before it
        main.wait_stream(side)


@cache
def beside(device: torch.device) -> torch.cuda.Stream:
    """One for all slots: only the slot that is being captured uses it; a graph has branches of its own."""
    return torch.cuda.Stream(device)


# --------------------------------------------------------------------------------------
# Which of them where.


UNFOLDED = 64 * 64
"""Pixels of an image up to which taps are unfolded: they take several times its memory."""


def compact(
    network: nn.Module, height: int, width: int, tiled: int = 0, few: float = 4, fork: bool = False
) -> nn.Module:
    """Replace the convolutions that take less time so; the same function.

    Args:
        network: is changed in place, and left in its mode of evaluation.
        height: of the images in pixels; so is ``width``.
        tiled: the number of channels, in and out, from which 3x3 convolutions are done in tiles; 0 for none.
        few: the largest side, in pixels, of an output that one matrix product gives; on a GPU it pays for 1 alone.
        fork: have what is for a GPU alone.
    """
    for name, (conv, size) in _convolutions(network, height, width).items():
        if max(size) <= 4:
            live = LiveConv(conv, size)
            less = len(live.used) < math.prod(conv.kernel_size) or live.out == (1, 1)
            if less and max(live.out) <= few:
                network.set_submodule(name, live)  # less work than every tap at every output pixel
                continue
        if fork:
            unfold = conv.in_channels < 8 and math.prod(size) <= UNFOLDED
            conv.__class__ = UnfoldedConv if unfold else ForkedConv
        elif _can_be_tiled(conv) and 0 < tiled <= _channels(conv):
            network.set_submodule(name, TiledConv(conv))
    return network


def worth_tiling(
    network: nn.Module, height: int, width: int, batch_size: int, rounds: int = 3, margin: float = 1.1
) -> int:
    """The number of channels from which tiles take a thread less time, by ``margin`` at least; 0 for none.

    Measured on this machine, for the 3x3 convolutions that ``compact`` leaves in ``network`` (and it is changed).
    """
    compact(network, height, width)
    convs = [(c, size) for c, size in _convolutions(network, height, width).values() if _can_be_tiled(c)]
    alike = Counter((conv.in_channels, conv.out_channels, *size) for conv, size in convs)
    saved = dict.fromkeys((_channels(conv) for conv, _ in convs), 0.0)
    for (c_in, c_out, *size), times in alike.items():
        conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        x = torch.randn(batch_size, c_in, *size).to(memory_format=torch.channels_last)
        plain, tiles = (_seconds(module, x, rounds) for module in (conv, TiledConv(conv)))
        saved[_channels(conv)] += times * (plain / margin - tiles)
    total = {fewest: sum(s for channels, s in saved.items() if channels >= fewest) for fewest in saved}
    best = max(total, key=total.__getitem__, default=0)
    return best if best and total[best] > 0 else 0


def _seconds(module: nn.Module, x: Tensor, rounds: int) -> float:
    """Of a thread, forward and backward; the median after one round to get warm."""
    x, seen = x.requires_grad_(), []
    dy = torch.randn_like(module(x))
    for _ in range(rounds + 1):
        start = time.thread_time()
        module(x).backward(dy)
        seen.append(time.thread_time() - start)
    return statistics.median(seen[1:])


def _convolutions(network: nn.Module, height: int, width: int) -> dict[str, tuple[nn.Conv2d, Size]]:
    """The plain ones of a network by name, and the size of what goes into them."""
    sizes: dict[str, Size] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes[name] = (inputs[0].shape[2], inputs[0].shape[3])

        return hook

    convs = {name: m for name, m in network.named_modules() if type(m) is nn.Conv2d and _is_plain(m)}
    hooks = [m.register_forward_pre_hook(note(name)) for name, m in convs.items()]
    with torch.no_grad():
        network.eval()(next(network.parameters()).new_zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return {name: (convs[name], size) for name, size in sizes.items()}


def _is_plain(conv: nn.Conv2d) -> bool:
    padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return padded and conv.groups == 1 and conv.dilation == (1, 1) and conv.bias is None


def _can_be_tiled(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))


def _channels(conv: nn.Conv2d) -> int:
    return min(conv.in_channels, conv.out_channels)
