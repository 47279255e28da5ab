"""Networks: published sizes, torchvision's own weights for the same seed, and errors that help."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision.models import ResNet, resnet18

from runner.files.document import SpecError
from runner.files.sweep_file import Model
from runner.training.model import build, check


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def expected_size(width: int, classes: int) -> int:
    """The parameters of a ResNet-18 with the small stem, layer by layer."""

    def conv_and_norm(into: int, out: int, kernel: int) -> int:
        return into * out * kernel**2 + 2 * out

    total = conv_and_norm(3, width, 3)
    for stage in range(4):
        into, out = width * 2 ** max(stage - 1, 0), width * 2**stage
        total += conv_and_norm(into, out, 3) + 3 * conv_and_norm(out, out, 3)
        total += conv_and_norm(into, out, 1) if stage else 0
    return total + 8 * width * classes + classes


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("stem", "published"), [pytest.param("imagenet", 11_181_642), pytest.param("small", 11_173_962)]
)
def test_resnet18_has_the_published_number_of_parameters(stem, published):
    assert size(build(Model(stem=stem), 10, 0)) == published


@pytest.mark.parametrize(("width", "classes"), [(8, 2), (12, 10), (16, 100), (96, 10)])
def test_every_width_has_the_size_of_a_resnet18_counted_by_hand(width, classes):
    assert expected_size(64, 10) == 11_173_962
    assert size(build(Model(width=width), classes, 0)) == expected_size(width, classes)


def test_the_unmodified_network_has_the_weights_that_torchvision_gives_for_its_seed():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = resnet18(weights=None, num_classes=10)
    assert same(build(Model(stem="imagenet"), 10, 3), theirs)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    model = Model(width=8)
    assert same(build(model, 10, 1), build(model, 10, 1))
    one, other = build(model, 10, 1), build(model, 10, 2)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        drawn = a.ndim > 1 or name == "fc.bias"  # batch norms start at 1 and 0
        assert torch.equal(a, b) != drawn, name


def test_building_does_not_disturb_the_random_numbers_of_torch():
    before = torch.get_rng_state()
    build(Model(width=8), 10, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_weights_do_not_depend_on_what_was_drawn_before():
    first = build(Model(width=8), 10, 1)
    with torch.random.fork_rng():
        torch.manual_seed(77)
        assert same(build(Model(width=8), 10, 1), first)


def test_threads_that_build_at_once_get_the_weights_of_their_seeds():
    seeds = [0, 1, 2, 3] * 3
    with ThreadPoolExecutor(4) as pool:
        networks = list(pool.map(lambda seed: build(Model(width=8), 10, seed), seeds))
    alone = [build(Model(width=8), 10, seed) for seed in range(4)]
    assert all(same(network, alone[seed]) for network, seed in zip(networks, seeds, strict=True))


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_narrow_resnet_is_torchvisions_with_fewer_channels(stem):
    network = build(Model(width=8, stem=stem), 10, 0)
    assert isinstance(network, ResNet)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [stage[-1].conv2.out_channels for stage in stages] == [8, 16, 32, 64]
    assert (network.fc.in_features, network.fc.out_features) == (64, 10)
    theirs = resnet18(weights=None, num_classes=10)
    assert list(network.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("pixels", [8, 32])
def test_a_narrow_resnet_computes_and_learns_on_small_images(pixels):
    network = build(Model(width=8), 10, 0)
    logits = network(torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("stem", "pixels"), [("small", 32), ("imagenet", 8)])
def test_the_small_stem_keeps_the_resolution_and_the_published_one_quarters_it(stem, pixels):
    network = build(Model(width=8, stem=stem), 10, 0).eval()
    images = torch.zeros(1, 3, 32, 32)
    kept = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    assert kept.shape == (1, 8, pixels, pixels)


def test_deeper_resnets_can_be_narrow_too():
    network = build(Model(name="resnet50", width=8), 10, 0)
    assert network.fc.in_features == 8 * 8 * 4
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("model", [Model(), Model(width=32), Model(width=32, stem="imagenet")])
def test_convolutions_start_as_he_et_al_say_and_batch_norms_at_one(model):
    for name, module in build(model, 10, 0).named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.12), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name


def test_models_that_are_no_resnets_come_as_they_are():
    network = build(Model(name="mobilenet_v3_small", stem="imagenet"), 10, 0).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("settings", [{"stem": "small"}, {"stem": "imagenet", "width": 32}])
def test_a_stem_or_a_width_for_a_model_that_is_no_resnet_is_refused(settings):
    with pytest.raises(SpecError, match="mobilenet_v3_small has the stem and the width it comes with"):
        build(Model(name="mobilenet_v3_small", **settings), 10, 0)


def test_a_misspelt_model_is_answered_with_the_nearest_name():
    with pytest.raises(
        SpecError, match=r"^model.name: torchvision has no model 'resnet_18'; did you mean 'resnet18'\?$"
    ):
        build(Model(name="resnet_18"), 10, 0)


def test_models_for_other_tasks_are_no_models_here():
    with pytest.raises(SpecError, match="no model 'fasterrcnn_resnet50_fpn'"):
        build(Model(name="fasterrcnn_resnet50_fpn"), 10, 0)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("googlenet", {"stem": "imagenet"}, "auxiliary outputs"),
        ("resnext50_32x4d", {"width": 8}, "without channels"),
    ],
)
def test_a_network_that_this_loop_cannot_train_is_refused(name, settings, words):
    with pytest.raises(SpecError, match=words):
        build(Model(name=name, **settings), 10, 0)


def test_a_network_that_cannot_take_such_small_images_is_refused():
    with pytest.raises(
        SpecError, match=r"^model\.name: squeezenet1_0 takes no images of 8x8 pixels \(.*\); a ResNet .* does$"
    ):
        check(Model(name="squeezenet1_0", stem="imagenet"), 10, 8, 8)
    check(Model(name="squeezenet1_0", stem="imagenet"), 10, 32, 32)


OWN = """
import torch


class Few(torch.nn.Flatten):
    def __init__(self, classes):
        super().__init__()


class Lost(Few):
    def forward(self, x):
        return None


class Wrong(Few):
    def forward(self, x):
        return x @ x
"""


def test_a_network_of_ones_own_must_give_a_number_for_each_class(tmp_path, monkeypatch):
    (tmp_path / "own_outputs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {name: Model(name="custom", function=f"own_outputs.{name}") for name in ("Few", "Lost")}
    own["Wrong"] = Model(name="custom", function="own_outputs:Wrong")  # as an entry point is written
    with pytest.raises(SpecError, match=r"own_outputs\.Few gives \(2, 192\) for two images, not \(2, 10\): a"):
        check(own["Few"], 10, 8, 8)
    with pytest.raises(SpecError, match=r"own_outputs\.Lost gives NoneType for two images"):
        check(own["Lost"], 10, 8, 8)
    with pytest.raises(RuntimeError):  # where it went wrong is for its author to see
        check(own["Wrong"], 10, 8, 4)
