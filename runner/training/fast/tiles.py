"""A 3x3 convolution on a CPU in fewer multiplications, tile by tile. A newcomer may skip this module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, add, nn, sub
from torch.nn import functional as F


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
    return cast("tuple[Tensor, ...]", images.split(max(1, _PIXELS // math.prod(images.shape[1:-1]))))


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
