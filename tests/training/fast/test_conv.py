"""Convolutions in less time, against torch's own in float64."""

import copy

import pytest
import torch
from torch import nn

from runner.files.sweep_file import Model
from runner.training.fast.choice import worth_tiling, worth_unfolding
from runner.training.fast.conv import LiveConv, ProductConv, compact
from runner.training.fast.tiles import TiledConv
from runner.training.model import build


def same_both_ways(conv: nn.Module, other: nn.Module, x: torch.Tensor, margin: float) -> torch.Tensor:
    """What ``other`` gives: outputs and input gradients as those of ``conv``; both keep their weights' gradients."""
    x, y = (x.detach().clone().requires_grad_() for _ in range(2))
    expected, got = conv(x), other(y)
    torch.testing.assert_close(got, expected, rtol=0, atol=margin)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    got.backward(gradient)
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=margin)
    return got


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "taps"),
    [
        pytest.param((1, 1), 3, 1, 1, 1, id="1x1: the centre alone"),
        pytest.param((2, 2), 3, 2, 1, 4, id="2x2 stride 2: four"),
        pytest.param((2, 2), 3, 1, 1, 9, id="2x2: all"),
        pytest.param((1, 2), 3, 1, 1, 3, id="1x2: a row"),
        pytest.param((2, 2), 1, 2, 0, 1, id="1x1 kernel, stride 2"),
        pytest.param((4, 3), 7, 2, 3, 48, id="a large kernel"),
    ],
)
def test_live_taps_convolve_as_torch_does_forwards_and_backwards(size, kernel, stride, padding, taps):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, kernel, stride, padding, bias=False).double()
    live = LiveConv(conv, size)
    assert live.weight.shape[0] == len(live.live) <= kernel * kernel
    if taps != 48:
        assert len(live.live) == taps
    same_both_ways(conv, live, torch.randn(3, 5, *size, dtype=torch.double), 1e-13)
    of_live = conv.weight.grad.flatten(2).permute(2, 1, 0)[live.live]
    torch.testing.assert_close(live.weight.grad, of_live, rtol=0, atol=1e-12)
    dead = [tap for tap in range(kernel * kernel) if tap not in live.live]
    assert not conv.weight.grad.flatten(2)[:, :, dead].any()


def test_at_8x8_the_last_stage_keeps_a_ninth_of_its_taps_and_at_64x64_nothing_changes():
    small = compact(build(Model(), 10, 0), 8, 8)
    assert sum(p.numel() for p in small.parameters()) < 0.4 * 11_173_962
    assert type(small.layer1[0].conv1) is nn.Conv2d
    assert small.layer4[1].conv1.weight.shape == (1, 512, 512)
    fewer = compact(build(Model(stem="imagenet"), 10, 0), 32, 32, few=1)  # what a GPU has
    assert {name for name, m in fewer.named_modules() if isinstance(m, LiveConv)} == {
        "layer4.0.conv1",
        "layer4.0.conv2",
        "layer4.0.downsample.0",
        "layer4.1.conv1",
        "layer4.1.conv2",
    }
    large = compact(build(Model(width=8), 10, 0), 64, 64)
    assert not any(isinstance(m, LiveConv) for m in large.modules())


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((4, 4), id="one tile"),
        pytest.param((8, 8), id="two by two"),
        pytest.param((12, 4), id="a column"),
        pytest.param((5, 7), id="tiles that reach beyond"),
        pytest.param((1, 9), id="a row of pixels"),
        pytest.param((40, 40), id="in several parts"),
    ],
)
def test_tiles_convolve_as_torch_does_forwards_and_backwards(size):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, 3, padding=1, bias=False).double()
    tiled = TiledConv(conv)
    x = torch.randn(7, 5, *size, dtype=torch.double).to(memory_format=torch.channels_last)
    got = same_both_ways(conv, tiled, x, 1e-12)
    assert got.is_contiguous(memory_format=torch.channels_last) or size[0] % 4 or size[1] % 4
    torch.testing.assert_close(tiled.weight.grad, conv.weight.grad.flatten(2).permute(2, 1, 0), rtol=0, atol=1e-11)


def test_tiles_have_the_gradients_that_finite_differences_have():
    tiled = TiledConv(nn.Conv2d(2, 3, 3, padding=1, bias=False).double())
    x = torch.randn(2, 2, 5, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: tiled(x), (x, tiled.weight))


def test_in_fp32_tiles_are_within_a_hundred_thousandth_of_float64():
    """Ten times what a plain sum loses, a hundredth of what bf16 does."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    x = torch.randn(4, 64, 16, 16)
    exact = conv.double()(x.double()).detach()
    error = (TiledConv(conv.float())(x).double() - exact).detach()
    assert error.square().mean().sqrt() / exact.square().mean().sqrt() < 1e-5


def test_only_3x3_convolutions_with_enough_channels_are_done_in_tiles():
    network = compact(build(Model(), 10, 0), 32, 32, tiled=128)
    tiled = [name for name, module in network.named_modules() if isinstance(module, TiledConv)]
    assert len(tiled) == 9
    assert all(name.startswith(("layer2", "layer3", "layer4")) for name in tiled)
    assert "layer2.0.conv1" not in tiled  # stride 2
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x), build(Model(), 10, 0).eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("passes", [(True, False, False), (False, True, False), (False, False, True), (True,) * 3])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        pytest.param((9, 8), 3, 1, 1, id="3x3"),
        pytest.param((40, 40), 3, 1, 1, id="more pixels than are done at a time"),
        pytest.param((20, 21), 3, 1, 1, id="two images at a time, then one"),
        pytest.param((40, 41), 3, 2, 1, id="two at a time, then one, stride 2"),
        pytest.param((8, 8), 3, 2, 1, id="3x3 stride 2"),
        pytest.param((9, 8), (7, 5), (2, 1), (3, 1), id="7x5, strides 2 and 1"),
        pytest.param((6, 6), 3, 1, 0, id="no padding"),
        pytest.param((6, 5), 3, 1, 3, id="more padding than the kernel meets"),
        pytest.param(
            (7, 8), (3, 2), (3, 2), (0, 1), id="pixels that meet no tap, and stride and padding of each side"
        ),
        pytest.param((9, 6), 1, 2, 0, id="1x1 stride 2"),
        pytest.param((1, 2), 3, 3, 1, id="a stride beyond the image"),
    ],
)
def test_products_convolve_as_torch_does_forwards_and_backwards(size, kernel, stride, padding, passes):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, kernel, stride, padding, bias=False).double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(conv)
    other.__class__, other.passes = ProductConv, passes
    x = torch.randn(5, 5, *size, dtype=torch.double).to(memory_format=torch.channels_last)
    got = same_both_ways(conv, other, x, 1e-13)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other.weight.grad, conv.weight.grad, rtol=0, atol=1e-11)


def test_what_a_product_gives_may_be_changed_in_place():
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    conv.__class__, conv.passes = ProductConv, (True,) * 3
    y = conv(torch.randn(2, 2, 4, 4))
    y += 1
    y.relu_().sum().backward()
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_of_no_images_a_product_gives_none(stride):
    conv = nn.Conv2d(2, 3, 3, stride, padding=1, bias=False)
    conv.__class__, conv.passes = ProductConv, (True,) * 3
    x = torch.randn(0, 2, 4, 4, requires_grad=True)
    y = conv(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 3, 4 // stride, 4 // stride), x.shape)
    assert not conv.weight.grad.any()


def test_in_bf16_the_weights_gradient_is_summed_in_fp32():
    """Parts of 4096 each: in bf16 nothing would be added to 256 of them."""
    conv = nn.Conv2d(1, 1, 1, bias=False).to(torch.bfloat16)
    conv.__class__, conv.passes = ProductConv, (True,) * 3
    conv(torch.ones(258, 1, 64, 64, dtype=torch.bfloat16)).sum().backward()
    assert conv.weight.grad.item() == 258 * 4096


def test_products_are_for_small_outputs_and_not_for_what_is_a_product():
    network = compact(build(Model(), 10, 0), 32, 32, unfolded=(0, 4, 8))
    passes = {name: m.passes for name, m in network.named_modules() if isinstance(m, ProductConv)}
    assert passes.pop("layer3.0.downsample.0") == (False, False, True)  # 1x1, every second pixel
    assert passes.pop("layer4.0.downsample.0") == (False, True, True)
    assert passes.pop("layer3.0.conv1") == (False, False, True)  # 16 pixels to 8
    assert {name: p for name, p in passes.items() if name.startswith("layer3")} == {
        f"layer3.{name}": (False, False, True) for name in ("0.conv2", "1.conv1", "1.conv2")
    }
    assert {name: p for name, p in passes.items() if not name.startswith("layer3")} == {
        f"layer4.{block}.{name}": (False, True, True) for block in (0, 1) for name in ("conv1", "conv2")
    }
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(x), build(Model(), 10, 0).eval()(x), rtol=1e-3, atol=1e-4)
    both = compact(build(Model(), 10, 0), 32, 32, tiled=256, unfolded=(0, 0, 8))
    assert isinstance(both.layer4[0].conv1, ProductConv)
    assert isinstance(both.layer4[0].conv2, TiledConv)  # which are fewer multiplications


def test_what_tiles_and_products_are_worth_is_measured_for_what_a_network_has():
    assert worth_tiling(build(Model(width=16), 10, 0), (16, 16), 8, rounds=1) in (0, 3, 16, 32, 64, 128)
    assert worth_tiling(nn.Sequential(nn.Conv2d(3, 8, 5, bias=False)), (16, 16), 8) == 0  # nothing to measure
    sides = worth_unfolding(build(Model(width=16), 10, 0), (16, 16), 8, torch.bfloat16, rounds=1)
    assert len(sides) == 3
    assert {*sides} <= {0, 2, 4, 8, 16}
    assert worth_unfolding(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False)), (16, 16), 8, torch.float32) == (0, 0, 0)
