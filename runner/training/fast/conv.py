"""Convolutions in less time: the same function, by exact algebra and in another order.

A newcomer may skip this module. On a few pixels ``LiveConv`` leaves out the taps that only multiply padding; on
larger images, on a CPU, ``choice`` measures where ``TiledConv`` and ``ProductConv`` are faster.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tiles import TiledConv

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
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
        if len(self.used) < pixels.shape[1]:
            pixels = torch.stack([pixels[:, p] for p in self.used], dim=1)  # a list as an index would wait for a GPU
        y = pixels.flatten(1) @ self._matrix()
        return cast("Tensor", y.unflatten(1, (*self.out, -1)).permute(0, 3, 1, 2))

    def _matrix(self) -> Tensor:
        """From the channels of the pixels that are used to those of the output's."""
        outputs = range(self.out[0] * self.out[1])
        if len(outputs) == 1:  # every pixel has a tap of its own, and they are in order
            return self.weight.flatten(0, 1)
        taps, none = dict(zip(self.live, self.weight.unbind(0), strict=True)), torch.zeros_like(self.weight[0])
        rows = [torch.cat([taps.get(self.pairs.get((p, o), -1), none) for o in outputs], dim=1) for p in self.used]
        return torch.cat(rows)


def _pairs(conv: nn.Conv2d, size: Size) -> tuple[dict[tuple[int, int], int], Size]:
    """Which tap (row by row) joins which (input pixel, output pixel), and the size of the output."""
    kernel, stride, padding = conv.kernel_size, conv.stride, cast("Size", conv.padding)
    found, out = {}, _sides(size, kernel, stride, padding)
    for y, x, i, j in product(range(size[0]), range(size[1]), range(out[0]), range(out[1])):
        ky, kx = y + padding[0] - i * stride[0], x + padding[1] - j * stride[1]
        if 0 <= ky < kernel[0] and 0 <= kx < kernel[1]:
            found[y * size[1] + x, i * out[1] + j] = ky * kernel[1] + kx
    return found, out


def _sides(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[Any]) -> Size:
    """The size of what a convolution makes of images of this size."""
    height, width = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    return height, width


Geometry = tuple[Size, Size]
"""Stride and padding."""
_ROWS = 1024
"""Output pixels at a time, or one image's: rows enough for a product, and not all taps in memory at once."""


class ProductConv(nn.Conv2d):
    """A ``Conv2d`` of which ``passes`` are matrix products with the taps of every output pixel side by side.

    What torch convolves with works along a row of one image, which is short where images are small: a matrix unit's
    16 rows are hardly filled. A product's rows are the pixels of many images.
    """

    passes: tuple[bool, ...]

    def forward(self, x: Tensor) -> Tensor:
        geometry = cast("Geometry", (self.stride, self.padding))
        return cast("Tensor", _Products.apply(x.to(self.weight.dtype), self.weight, geometry, self.passes))


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, passes: Sequence[bool]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.passes = geometry, passes
        return output(x, weight, geometry, passes[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (x, weight), (_, of_input, of_weight) = ctx.saved_tensors, ctx.passes
        dx = input_gradient(dy, x, weight, ctx.geometry, of_input) if ctx.needs_input_grad[0] else None
        return dx, weight_gradient(dy, x, weight, ctx.geometry, of_weight), None, None


def output(x: Tensor, weight: Tensor, geometry: Geometry, unfold: bool) -> Tensor:
    """A convolution, by torch or as a product."""
    if not unfold:
        return torch.conv2d(x, weight, None, *geometry)
    size, (stride, padding) = weight.shape[2:], geometry
    # no view of something else, which nobody might change in place
    shape = len(x), len(weight), *_sides(x.shape[2:], size, stride, padding)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    columns = weight.permute(0, 2, 3, 1).flatten(1).t()
    _convolved(x, columns, size, stride, padding * 2, y.permute(0, 2, 3, 1))
    return y


def input_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, unfold: bool) -> Tensor:
    """The gradient of a convolution's input: the output's, convolved with the kernel turned round; with a stride so
    for every stride-th pixel, and each of such sets meets taps of its own, or none."""
    if not unfold:
        return gradient(0, dy, x, weight, *geometry)
    dx = torch.zeros_like(x, memory_format=torch.channels_last)
    axes = zip(x.shape[2:], dy.shape[2:], weight.shape[2:], *geometry, strict=True)
    for (down, ys, above, below), (across, xs, left, right) in product(*(_sets(*axis) for axis in axes)):
        taps = [weight[:, :, i, j] for i in ys for j in xs]
        if taps:
            margins, some = (above, left, below, right), dx.permute(0, 2, 3, 1)[:, down, across]
            _convolved(dy, torch.cat(taps), (len(ys), len(xs)), (1, 1), margins, some)
    return dx


def _sets(size: int, out: int, kernel: int, stride: int, padding: int) -> Iterator[tuple[slice, range, int, int]]:
    """Along one axis, which pixels of the input meet which taps, from the last to the first, and by how much the
    output is widened before and after it (less than nothing is cut off)."""
    for first in range(min(stride, size)):
        ahead, least = divmod(first + padding, stride)
        taps, pixels = range(least, kernel, stride)[::-1], range(first, size, stride)
        yield slice(first, None, stride), taps, len(taps) - 1 - ahead, len(pixels) + ahead - out


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, unfold: bool) -> Tensor:
    """The gradient of a convolution's weight; the products of all parts are summed in fp32 at least."""
    if not unfold:
        return gradient(1, dy, x, weight, *geometry)
    size, (stride, padding) = weight.shape[2:], geometry
    total: Tensor | None = None
    rows = _ROWS if x.element_size() > 2 else 4 * _ROWS  # what is bf16 is converted to be added: larger parts, fewer
    for part, taps in _unfolded(dy.permute(0, 2, 3, 1).contiguous(), x, size, stride, padding * 2, rows):
        found = part.flatten(0, 2).t().contiguous() @ taps  # with AMX up to a third faster than as it lies
        total = found if total is None else total.to(torch.promote_types(total.dtype, torch.float32)).add_(found)
    assert total is not None  # without images there is one part, of none
    return cast("Tensor", total.to(x.dtype).unflatten(1, (*size, -1)).permute(0, 3, 1, 2))


def _convolved(
    x: Tensor, columns: Tensor, kernel: Sequence[int], stride: Size, margins: Sequence[int], y: Tensor
) -> None:
    """Images with kernels ``[taps * C_in, C_out]`` into images ``[n, height, width, C_out]``."""
    for part, taps in _unfolded(y, x, kernel, stride, margins):
        if part.is_contiguous():
            torch.mm(taps, columns, out=part.view(-1, columns.shape[1]))
        else:
            part.copy_((taps @ columns).view_as(part))


def _unfolded(
    y: Tensor, x: Tensor, kernel: Sequence[int], stride: Size, margins: Sequence[int], rows: int = _ROWS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some images of an output ``[n, height, width, C]`` after others, and what goes into them,
    ``[pixels, taps * C_in]``; ``margins`` are above, to the left, below and to the right."""
    several, (above, left, below, right) = max(1, rows // math.prod(y.shape[1:3])), margins
    for part, images in zip(y.split(several), x.permute(0, 2, 3, 1).split(several), strict=True):
        if any(margins):
            images = F.pad(images, (0, 0, left, right, above, below))
        images = images.contiguous()
        image, row, pixel, _ = images.stride()
        # a view of what lies in memory: the compiler would make every tap from the picture anew
        shape = len(images), *y.shape[1:3], kernel[0], kernel[1] * images.shape[3]
        taps = images.as_strided(shape, (image, row * stride[0], pixel * stride[1], row, 1))
        yield part, taps.flatten(3).flatten(0, 2)


def gradient(of: int, dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """One of a convolution's gradients: 0 of its input, 1 of its weight."""
    wanted, one, none = (of == 0, of == 1, False), (1, 1), (0, 0)
    found = torch.ops.aten.convolution_backward(dy, x, weight, None, stride, padding, one, False, none, 1, wanted)
    return cast("Tensor", found[of])


def compact(
    network: nn.Module, height: int, width: int, tiled: int = 0, unfolded: Sequence[int] = (0, 0, 0), few: float = 4
) -> nn.Module:
    """Replace, in place, the convolutions that take less time so; the same function, left in its mode of evaluation.

    Args:
        network: for images of ``height`` and ``width`` pixels.
        tiled: the number of channels, in and out, from which 3x3 convolutions are done in tiles; 0 for none.
        unfolded: the largest side, in pixels, of an output up to which it is a product, the input's gradient is one,
            and the weight's gradient; 0 for none.
        few: the largest side, in pixels, of an output that one matrix product gives; on a GPU it pays for 1 alone.
    """
    for name, (conv, size) in convolutions(network, height, width).items():
        if max(size) <= 4:
            live = LiveConv(conv, size)
            less = len(live.used) < math.prod(conv.kernel_size) or live.out == (1, 1)
            if live.used and less and max(live.out) <= few:
                network.set_submodule(name, live)  # less work than every tap at every output pixel
                continue
        if can_be_tiled(conv) and 0 < tiled <= channels(conv):
            network.set_submodule(name, TiledConv(conv))
        elif can_be_unfolded(conv):
            longest = max(_sides(size, conv.kernel_size, conv.stride, conv.padding))
            if longest <= max(unfolded):
                conv.__class__ = ProductConv
                cast("ProductConv", conv).passes = tuple(longest <= most for most in unfolded)
    return network


def convolutions(network: nn.Module, height: int, width: int) -> dict[str, tuple[nn.Conv2d, Size]]:
    """The plain ones of a network by name, and the size of what goes into them."""
    sizes: dict[nn.Module, Size] = {}

    def note(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[conv] = (inputs[0].shape[2], inputs[0].shape[3])

    def is_plain(conv: nn.Conv2d) -> bool:
        padded = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return padded and conv.groups == 1 and conv.dilation == (1, 1) and conv.bias is None

    convs = {name: m for name, m in network.named_modules() if type(m) is nn.Conv2d and is_plain(m)}
    hooks = [m.register_forward_pre_hook(note) for m in convs.values()]
    with torch.no_grad():
        network.eval()(next(network.parameters()).new_zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return {name: (conv, sizes[conv]) for name, conv in convs.items() if conv in sizes}


def alike(
    network: nn.Module, size: Size, images: int, dtype: torch.dtype, wanted: Callable[[nn.Conv2d], bool]
) -> Iterator[tuple[tuple[nn.Conv2d, Tensor, Tensor], int]]:
    """One convolution of each kind that ``compact`` leaves in a network, something that goes into it and a gradient
    of what comes out; and how many there are."""
    compact(network, *size)
    kinds: dict[tuple[object, ...], list[tuple[nn.Conv2d, Size]]] = defaultdict(list)
    for conv, where in convolutions(network, *size).values():
        if wanted(conv):
            kinds[conv.weight.shape, conv.stride, conv.padding, where].append((conv, where))
    for kind in kinds.values():
        conv, where = kind[0]
        conv = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
        x = torch.randn(images, conv.in_channels, *where, dtype=dtype).to(memory_format=torch.channels_last)
        yield (conv, x, torch.randn_like(conv(x).detach())), len(kind)


def can_be_tiled(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))


def can_be_unfolded(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride) != ((1, 1), (1, 1))  # which are products as they are


def channels(conv: nn.Conv2d) -> int:
    return min(conv.in_channels, conv.out_channels)
