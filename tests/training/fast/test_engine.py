"""The fast engine against torch's own layers and optimizers in float64, and against the reference loop."""

import copy
import gc
import json
import math
import shutil
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from runner.files.sweep_file import Augment, Data, Model, Objective, Train
from runner.files.trial import DivergedError, Engine, TrialConfig
from runner.lanes import open as lanes
from runner.lanes import worker
from runner.lanes.lane import Lanes
from runner.lanes.stop import Stop
from runner.schedules import schedule as schedules
from runner.training import loop as train
from runner.training.checkpoint import Checkpoints
from runner.training.data import batches, normalised
from runner.training.device import resident
from runner.training.fast import choice, conv, engine
from runner.training.fast.choice import choose
from runner.training.fast.conv import ProductConv
from runner.training.fast.engine import Slot
from runner.training.fast.tiles import TiledConv
from runner.training.model import build

CPU = torch.device("cpu")
COSINE = schedules.load({"type": "cosine", "init_lr": 0.05, "warmup": 0.2})


def trial(schedule=COSINE, model=None, data=None, **recipe) -> TrialConfig:
    """160 digits for training, 40 for validation, a narrow ResNet-18."""
    data = {"limit": 200, "val": 0.2, "augment": Augment(pad=1, flip=True)} | (data or {})
    recipe = {"epochs": 5, "batch_size": 40, "precision": "fp32", "weight_decay": 5e-2} | recipe
    return TrialConfig(
        Data(source="digits", **data), model or Model(width=8), Train(**recipe), schedule, engine=Engine("fast")
    )


def lrs_of(config: TrialConfig, slot: Slot, number: int) -> list[float]:
    total = slot.updates * config.train.epochs
    return [config.schedule.lr(number * slot.updates + i, total) for i in range(slot.updates)]


def plainly(config: TrialConfig, device=CPU) -> tuple[list[float], nn.Module]:
    """Train in float64 with torch's own convolutions and optimizer: the loss of every epoch, and the network."""
    recipe, data = config.train, resident(config, device)
    network = build(config.model, data.classes, recipe.seed).double().to(device)
    kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.AdamW
    extra = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} if recipe.optimizer == "sgd" else {}
    optimizer = kind(network.parameters(), lr=0.1, weight_decay=recipe.weight_decay, **extra)
    updates, losses = len(data.train) // recipe.batch_size, []
    for number in range(recipe.epochs):
        batch, total = batches(data.train, config.data.augment, recipe.seed, number, recipe.batch_size), 0.0
        for i in range(updates):
            images, labels = batch(i)
            optimizer.param_groups[0]["lr"] = config.schedule.lr(number * updates + i, updates * recipe.epochs)
            loss = F.cross_entropy(network(normalised(images, data.mean.double(), data.std.double())), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / updates)
    return losses, network


# --- the same training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param({}, id="sgd, nesterov"),
        pytest.param({"nesterov": False}, id="sgd, momentum"),
        pytest.param({"nesterov": False, "momentum": 0.0}, id="sgd"),
        pytest.param({"optimizer": "adamw"}, id="adamw"),
    ],
)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({}, id="plain"),
        pytest.param({"tiled": 8}, id="tiles"),
        pytest.param({"unfolded": (8, 4, 8)}, id="products"),
        pytest.param({"compiled": True}, id="as compiled"),
    ],
)
def test_twenty_updates_equal_torchs_own_optimizer_to_1e_12_in_float64(recipe, kind, monkeypatch):
    monkeypatch.setattr(engine, "_compiled", engine._compiled.__wrapped__)  # which keeps what it made
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # what is compiled, as it stands
    config = replace(trial(**recipe), engine=Engine("fast", **kind))
    if "optimizer" in recipe:  # AdamW's rates are smaller: at SGD's every rounding grows to something
        config = replace(config, schedule=schedules.load({"type": "cosine", "init_lr": 1e-3, "warmup": 0.2}))
    slot = Slot(config, CPU, torch.float64)
    kinds = {(type(module), getattr(module, "kernel_size", None)) for module in slot.network.modules()}
    assert ((TiledConv, None) in kinds, (ProductConv, (3, 3)) in kinds) == ("tiled" in kind, "unfolded" in kind)
    slot.reset(0)
    assert slot.updates * config.train.epochs == 20
    losses = [slot.epoch(number, lrs_of(config, slot, number))[0] for number in range(5)]
    expected, network = plainly(config)
    assert losses == pytest.approx(expected, rel=0, abs=1e-12)
    assert len(slot.state()["optimizer"]) == (recipe.get("momentum") != 0.0)  # without momentum nothing to remember
    state = slot.state_dict()
    margin = 1e-11 if "optimizer" in recipe else 1e-12  # it divides gradients by their size, next to nothing too
    for name, tensor in network.state_dict().items():  # dead taps, running statistics and counters too
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=margin, msg=name)


@pytest.mark.parametrize("tiled", [0, 8], ids=["plain", "tiles"])
def test_the_exported_weights_load_into_torchvisions_own_network_and_give_the_same_outputs(tiled):
    config = replace(trial(model=Model(width=8), precision="fp32"), engine=Engine("fast", tiled=tiled))
    slot = Slot(config, CPU, torch.float64)
    slot.reset(0)
    for number in range(2):
        slot.epoch(number, lrs_of(config, slot, number))
    own = build(config.model, 10, seed=9).double().eval()
    own.load_state_dict(slot.state_dict())
    images = normalised(slot.dataset.val.images, slot.dataset.mean, slot.dataset.std)
    with torch.inference_mode():
        torch.testing.assert_close(own(images), slot.network.eval()(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("precision", "tiled", "side"), [("fp32", 0, 0), ("fp32", 8, 0), ("bf16", 0, 0), ("bf16", 0, 8)]
)
def test_the_first_epoch_is_the_references_but_for_rounding(precision, tiled, side):
    config = trial(precision=precision, epochs=1, weight_decay=5e-4)
    config = replace(config, engine=Engine("fast", tiled=tiled, unfolded=(side,) * 3))
    fast, slow = next(engine.train(config, CPU)), next(train.train(config, CPU))
    assert fast.lrs == slow.lrs
    training, validation = (0.03, 0.05) if precision == "bf16" else (1e-4, 5e-3) if tiled else (1e-5, 1e-4)
    assert fast.train_loss == pytest.approx(slow.train_loss, rel=training)
    assert fast.val_loss == pytest.approx(slow.val_loss, rel=validation)


def test_a_warm_slot_gives_what_a_fresh_one_gives_bit_by_bit():
    config, other = trial(epochs=2), trial(schedules.load({"type": "constant", "init_lr": 0.2}), epochs=2, seed=7)
    first = timeless(engine.train(config, CPU))
    assert timeless(engine.train(other, CPU)) != first
    assert timeless(engine.train(config, CPU)) == first
    engine.drop_slot()
    assert timeless(engine.train(config, CPU)) == first


def timeless(epochs) -> list:
    return [replace(epoch, seconds=0.0) for epoch in epochs]


@pytest.mark.parametrize(("metric", "sign"), [("val/accuracy", 1), ("val/loss", -1)])
def test_plateau_sees_the_metric_of_the_slot(metric, sign):
    schedule = schedules.load({"type": "plateau", "init_lr": 0.1, "gamma": 0.5, "patience": 0, "threshold": 0.25})
    epochs = list(engine.train(replace(trial(schedule), objective=Objective(metric=metric)), CPU))
    seen = [sign * e.metrics()[metric] for e in epochs]
    assert [e.lr for e in epochs] == [schedule.lr(4 * n, 20, epochs=5, history=seen[:n]) for n in range(5)]
    assert epochs[-1].lr < 0.1


def test_a_diverging_trial_says_so_and_the_slot_is_fit_for_the_next():
    wild = trial(schedules.load({"type": "constant", "init_lr": 100.0}), weight_decay=10.0)
    with pytest.raises(DivergedError) as caught:
        list(engine.train(wild, CPU))
    assert math.isnan(caught.value.epoch.val_accuracy)
    epochs = list(engine.train(trial(epochs=1), CPU))
    assert math.isfinite(epochs[0].val_loss)


def test_two_learning_rates_give_two_results_and_a_rate_of_zero_changes_nothing():
    config = trial(epochs=1)
    slot = Slot(config, CPU)
    weights = []
    for lr in (0.0, 0.01, 0.02):
        slot.reset(0)
        slot.epoch(0, [lr] * slot.updates)
        weights.append(slot.weights.detach().clone())
    slot.reset(0)
    assert torch.equal(weights[0], slot.weights)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_state_of_a_device_that_has_other_products_is_no_use_and_the_trial_begins_again():
    expected = timeless(engine.train(trial(epochs=2), CPU))
    state = copy.deepcopy(next(engine.train(trial(epochs=2), CPU)).state())
    assert timeless(engine.train(trial(epochs=2), CPU, state)) == expected
    with as_on_a_gpu():
        other = copy.deepcopy(next(engine.train(trial(epochs=2), CPU)).state())
    assert other["weights"].shape == state["weights"].shape  # the same number of weights, in another order
    assert timeless(engine.train(trial(epochs=2), CPU, other)) == expected


@contextmanager
def as_on_a_gpu():
    """Have the convolutions of a GPU on a CPU."""

    def forget_slots() -> None:
        engine.drop_slot()
        engine._initial.cache_clear()

    real = engine.compact
    forget_slots()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "compact", lambda *args, **_: real(*args, few=1))
        yield
    forget_slots()


def test_a_trial_that_another_one_pushed_out_of_its_slot_is_told():
    first = engine.train(trial(), CPU)
    next(first)
    next(engine.train(trial(), CPU))
    with pytest.raises(RuntimeError, match="another trial has begun"):
        next(first)


def test_slots_in_threads_do_not_disturb_one_another():
    config = trial(epochs=3)
    alone, seen = timeless(engine.train(config, CPU)), {}

    def work(name: int) -> None:
        seen[name] = timeless(engine.train(config, CPU))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [seen[i] for i in range(4)] == [alone] * 4


def apart(config: TrialConfig, device: torch.device) -> dict[str, float]:
    """How far the parameters' gradients in a first update are from the reference's, as shares of their norms."""
    state = next(train.train(config, device)).state()
    names = [name for name, _ in build(config.model, 10, 0).named_parameters()]
    slow = {names[i]: values["momentum_buffer"] for i, values in state["optimizer"]["state"].items()}
    slot = engine.slot_of(config, device)
    next(engine.train(config, device))
    (own,) = (values["momentum_buffer"] for values in slot.optimizer.state.values())
    views = zip(slot.names, slot._views(own), strict=True)
    both = {name: (g, slow[name]) for name, g in views if g.shape == slow[name].shape}
    assert len(both) > 40  # not those that are products of the live taps
    return {name: float((fast - other).norm() / other.norm()) for name, (fast, other) in both.items()}


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_what_a_gpu_convolves_with_gives_the_references_gradients(stem):
    config = one_update(stem)
    with as_on_a_gpu():
        assert max(apart(config, CPU).values()) < 1e-4
        kinds = {type(module) for module in engine.slot_of(config, CPU).network.modules()}
    assert conv.LiveConv in kinds


def compiles(test):
    """Of a test in which torch compiles for a CPU."""
    needs = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile writes C++, which g++ compiles")
    own_warnings = pytest.mark.filterwarnings("default")
    return pytest.mark.slow(needs(own_warnings(test)))


@compiles
def test_what_was_compiled_for_one_slot_serves_all_of_them_and_gives_the_same_numbers(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = trial(model=Model(name="custom", function="own_networks.Plain"), epochs=2)
    compiled, seen = replace(config, engine=Engine("fast", "fp32", compiled=True)), {}
    expected = list(engine.train(config, CPU))
    counters["stats"].clear()

    def work(name: int) -> None:
        seen[name] = [epoch for _ in range(2) for epoch in engine.train(compiled, CPU)]

    assert choice.compile_error(compiled, CPU) == ""  # as a sweep asks before it has threads
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters["stats"]["unique_graphs"] == graphs  # on a CPU several: images are moved one by one
    for epochs in seen.values():
        for epoch, plain in zip(epochs, expected * 2, strict=True):
            assert epoch.train_loss == pytest.approx(plain.train_loss, rel=1e-4)
            assert epoch.val_loss == pytest.approx(plain.val_loss, rel=1e-4)
    assert len(seen) == 3


@compiles
def test_what_a_gpu_convolves_with_is_compiled_without_a_change_of_its_gradients():
    config = replace(one_update("imagenet"), engine=Engine("fast", "fp32", compiled=True))
    with as_on_a_gpu():
        assert max(apart(config, CPU).values()) < 1e-4


@compiles
@pytest.mark.parametrize(("name", "wrong"), [("Plain", ""), ("Mistaken", "Error: ")])
def test_whether_the_compiler_takes_a_network_is_tried(name, wrong, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = trial(model=Model(name="custom", function=f"own_networks.{name}"))
    next(engine.train(config, CPU))
    config = replace(config, engine=Engine("fast", "fp32", compiled=True))
    said = choice.compile_error(config, CPU)
    assert (said == "") == (wrong == "")
    assert wrong in said


# --- which engine ----------------------------------------------------------------------------------------------


def test_the_engine_is_the_fast_one_where_it_can_be_and_the_reference_where_it_is_asked_for():
    assert choose(trial(), CPU, 10) == Engine("fast", "fp32")
    assert choose(trial(precision="bf16"), CPU, 10) == Engine("fast", "bf16")
    assert choose(trial(), torch.device("cpu:0"), 10) == Engine("fast", "fp32")  # data there say "cpu"
    assert choose(trial(), CPU, 10, "reference") == Engine("reference", "fp32")
    dropout = trial(model=Model(name="mobilenet_v3_small", stem="imagenet"))
    assert str(choose(dropout, CPU, 10)) == "reference, fp32 (the network has random layers)"
    assert str(choose(dropout, CPU, 10, "reference")) == "reference, fp32"


OWN = """
import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(512, classes)
        self.change()

    def change(self):
        pass

    def forward(self, x):
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).flatten(1))


@torch.library.custom_op("own_networks::copied", mutates_args=())
def copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@copied.register_fake
def _(x):
    return torch.empty_like(x, memory_format=torch.channels_last)  # what the compiler is told is wrong


class Mistaken(Plain):
    def forward(self, x):
        return super().forward(copied(x))
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_of_ones_own_is_left_to_the_plain_loop(precision, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = trial(model=Model(name="custom", function="own_networks.Plain"), precision=precision)
    assert str(choose(config, CPU, 10)) == f"reference, {precision} (the network is your own)"


@pytest.mark.parametrize(("pays", "chosen"), [(64, 64), (0, 3), (10**9, 0)])
def test_tiles_are_done_from_the_channels_from_which_they_pay(pays, chosen, monkeypatch):
    """A convolution takes a second, its tiles half of that or twice as much."""

    def seconds(ways, rounds):
        (plain, x, _), (tiles, _, _) = (way.args for way in ways)
        assert (type(plain), type(tiles)) == (nn.Conv2d, TiledConv)
        return [1.0, 0.5 if x.shape[1] >= pays else 2.0]

    monkeypatch.setattr(choice, "_seconds", seconds)
    assert choice.worth_tiling(build(Model(width=32), 10, 0), (16, 16), 8) == chosen


def test_in_bf16_on_a_cpu_a_relu_leaves_what_it_is_given():
    def in_place(precision):
        slot = Slot(replace(trial(precision=precision), engine=Engine("fast", precision)), CPU)
        return {module.inplace for module in slot.network.modules() if isinstance(module, nn.ReLU)}

    assert (in_place("bf16"), in_place("fp32")) == ({False}, {True})


@pytest.mark.parametrize(("pays", "chosen"), [(4, 4), (16, 16), (1, 0)])
def test_products_are_done_up_to_the_side_up_to_which_they_pay_and_pass_by_pass(pays, chosen, monkeypatch):
    """Every pass takes a second; as a product the weight's gradient takes half of that, or twice as much."""

    def seconds(ways, rounds):
        plain, product = ways
        assert (plain.keywords, product.keywords) == ({"unfold": False}, {"unfold": True})
        of_weight, dy = product.func is conv.weight_gradient, product.args[0]
        return [1.0, 0.5 if of_weight and dy.shape[3] <= pays else 2.0]

    monkeypatch.setattr(choice, "_seconds", seconds)
    for dtype in (torch.float32, torch.bfloat16):
        assert choice.worth_unfolding(build(Model(width=32), 10, 0), (16, 16), 8, dtype) == (0, 0, chosen)


def test_products_are_for_every_pass_that_gains(monkeypatch):
    monkeypatch.setattr(choice, "_seconds", lambda ways, rounds: [1.0, 0.5])
    network = build(Model(width=32), 10, 0)
    assert choice.worth_unfolding(network, (16, 16), 8, torch.bfloat16) == (16, 16, 16)


def test_tiles_and_products_are_measured_for_large_updates_alone_and_said():
    wide = {"model": Model(width=32), "data": {"limit": 400}, "batch_size": 256}
    found = choose(trial(**wide), CPU, 10)
    assert (found.name, found.precision) == ("fast", "fp32")
    assert found.tiled in (0, 3, 32, 64, 128)
    assert found.unfolded == (0, 0, 0)
    rough = choose(trial(**wide, precision="bf16"), CPU, 10)
    assert rough == Engine("fast", "bf16", unfolded=rough.unfolded if choice.has_bf16() else (0, 0, 0))
    assert choose(trial(**wide), CPU, 10, "reference") == Engine("reference", "fp32")
    assert choose(trial(), CPU, 10) == Engine("fast", "fp32")
    assert str(Engine("fast", "fp32", tiled=64)) == "fast, fp32, tiles from 64 channels"
    assert str(Engine("fast", "bf16", unfolded=(4, 0, 16))) == "fast, bf16, products up to 4/0/16 pixels"


def test_an_engine_is_the_same_after_a_study_has_kept_it():
    engine = Engine("fast", "bf16", unfolded=(4, 0, 16))
    assert Engine(**json.loads(json.dumps(asdict(engine)))) == engine


def test_bf16_is_chosen_only_where_the_machine_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose(trial(precision="auto"), CPU, 10) == Engine("fast", "fp32")


@pytest.mark.parametrize(
    ("rates", "most", "kept", "tried"),
    [
        pytest.param({1: 100, 2: 160, 3: 163, 4: 163}, 4, 2, 4, id="no more are wanted"),
        pytest.param({1: 100, 2: 160, 3: 163, 4: 163, 6: 164}, 12, 2, 6, id="three steps more bring nothing"),
        pytest.param({1: 100, 2: 160, 3: 163, 4: 163, 6: 200, 8: 201, 12: 202}, 12, 6, 12, id="the third does"),
    ],
)
def test_the_number_of_slots_is_the_fewest_within_three_percent_of_the_best_rate(
    rates, most, kept, tried, monkeypatch
):
    seen = []

    def rate(config, device, seconds):
        time.sleep(0.05)  # until all have begun
        return rates[len(seen)] / len(seen)

    def warm(config, device):
        seen.append(device)
        return 89_000_000

    monkeypatch.setattr(engine, "warm", warm)
    monkeypatch.setattr(engine, "rate", rate)
    slots, size = lanes.busy_slots(trial(), "cpu", most)
    assert (len(slots), size) == (kept, 89_000_000)
    assert len(seen) == tried


def opened_lanes(wanted: str, most: int, config: TrialConfig | None = None) -> Lanes:
    """The lanes of a GPU, of a sweep that nobody stops and that keeps nothing."""
    checkpoints = Checkpoints(Path("nowhere"), math.inf, pytest.fail)
    return lanes.open_lanes(wanted, "cuda", most, config=config, stop=Stop(), checkpoints=checkpoints)


def test_running_out_of_memory_while_slots_are_counted_makes_their_number_smaller(monkeypatch):
    real, seen = engine.warm, []

    def warm(config, device):
        seen.append(device)
        if len(seen) > 2:
            raise torch.OutOfMemoryError("98 GiB")
        return real(config, device)

    monkeypatch.setattr(engine, "warm", warm)
    slots, size = lanes.busy_slots(trial(), "cpu", 12, seconds=0.05)
    assert len(slots) in (1, 2)
    assert size == Slot(trial(), CPU).bytes
    monkeypatch.setattr(engine, "warm", lambda *_: warm(*_) and warm(*_))  # not even one
    assert lanes.busy_slots(trial(), "cpu", 12, seconds=0.05)[0] == []
    monkeypatch.setattr(lanes, "_gpus", lambda: ["cpu"])  # the lanes of a GPU, on a CPU
    with opened_lanes("auto", 12, trial()) as opened:
        assert len(opened.all) == 1


@pytest.mark.parametrize("fitted", [0, 2])
def test_whatever_a_librarys_word_for_it_is_no_more_slots_are_made_than_fit(fitted, monkeypatch):
    """A first slot that cannot be made is no matter of how many there are."""
    real, seen = engine.warm, []

    def warm(config, device):
        seen.append(device)
        if len(seen) > fitted:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return real(config, device)

    monkeypatch.setattr(engine, "warm", warm)
    if fitted:
        assert len(lanes.busy_slots(trial(), "cpu", 12, seconds=0.05)[0]) in (1, 2)
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            lanes.busy_slots(trial(), "cpu", 12, seconds=0.05)


@pytest.fixture
def made(monkeypatch):
    """The lanes of a GPU are had on a CPU: weak references to the slots that are made."""
    seen = []

    class Seen(Slot):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(engine, "Slot", Seen)
    monkeypatch.setattr(lanes, "_gpus", lambda: ["cpu"])
    return seen


def test_a_lane_without_memory_lets_go_of_what_it_had_and_is_given_up_where_there_are_others(made, monkeypatch):
    def epoch(self, number, lrs):
        raise torch.OutOfMemoryError("98 GiB")

    monkeypatch.setattr(Slot, "epoch", epoch)
    with opened_lanes("2", 8) as opened:
        first, second = opened.all
        for lane in (first, second, second):
            error = lane.executor.submit(worker.begin, trial(), lane.device).exception()
            opened.replace_worker(lane, error)
            gc.collect()
            assert made.pop()() is None, "though its error is still there"
            assert opened.all == [second]


def test_the_slot_that_is_compiled_is_there_until_its_update_has_ended(monkeypatch):
    seen = []

    class Watched:
        def __init__(self, *_):
            there = weakref.ref(self)
            self._update = lambda: seen.append(there() is not None)  # on a GPU a graph, which does not keep its slot
            monkeypatch.setattr(gc, "collect", lambda: seen.append(there() is not None))

    monkeypatch.setattr(choice, "Slot", Watched)
    assert choice.compile_error(trial(), CPU) == ""
    assert seen == [True, False]


def test_lanes_take_the_slots_that_were_counted_and_let_go_of_the_others(made, monkeypatch):
    monkeypatch.setattr(engine, "rate", lambda *_: 100.0 / len(made))  # one is enough
    config = trial(epochs=1)
    with opened_lanes("auto", 2, config) as opened:
        assert [slot() is not None for slot in made] == [True, False]
        lane = opened.all[0]
        lane.executor.submit(worker.begin, config, lane.device).result()
    assert (len(opened.all), len(made)) == (1, 2)


def test_a_slot_that_nobody_has_any_more_is_gone_without_the_garbage_collector():
    engine.drop_slot()
    gc.collect()
    gc.disable()
    try:
        slot = Slot(trial(), CPU)
        slot._update = slot._evaluate = None  # on a GPU these are its graphs
        gone = weakref.ref(slot)
        del slot
        assert gone() is None
    finally:
        gc.enable()


def test_lanes_train_with_the_engine_of_the_config():
    fast = trial(epochs=1)
    slow = replace(fast, engine=Engine())
    seen = {}
    for name, config in (("fast", fast), ("slow", slow)):
        engine.drop_slot()
        seen[name] = worker.begin(config, "cpu")
        assert bool(engine._local.__dict__) == (name == "fast")
    assert seen["fast"].train_loss == pytest.approx(seen["slow"].train_loss, rel=1e-5)


# --- on a GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def exact():
    """Convolutions whose sums have one order, in whole fp32."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_has_the_fast_engine_with_and_without_its_number(name):
    assert choose(trial(), torch.device(name), 10).name == "fast"


def one_update(stem: str, **recipe) -> TrialConfig:
    """Of all 160 images: after four updates, rounding alone has moved the loss by a thousandth."""
    constant = schedules.load({"type": "constant", "init_lr": 0.05})
    return trial(constant, epochs=1, batch_size=160, model=Model(width=16, stem=stem), **recipe)


@pytest.mark.cuda
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_a_graphs_first_update_is_the_references(stem, exact):
    device, config = torch.device("cuda"), one_update(stem)
    fast, slow = next(engine.train(config, device)), next(train.train(config, device))
    assert fast.train_loss == pytest.approx(slow.train_loss, rel=1e-5)
    assert fast.val_loss == pytest.approx(slow.val_loss, rel=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.filterwarnings("default")  # torch's compiler has warnings of its own
def test_a_compiled_graphs_first_update_is_the_references_in_bf16(stem):
    device, config = torch.device("cuda"), one_update(stem, precision="bf16")
    slow = next(train.train(config, device))
    fast = next(engine.train(replace(config, engine=Engine("fast", "bf16", compiled=True)), device))
    assert fast.train_loss == pytest.approx(slow.train_loss, rel=5e-3)
    assert fast.val_loss == pytest.approx(slow.val_loss, rel=3e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("default"))])
def test_a_gpus_gradients_are_the_references(stem, compiled, exact):
    config = one_update(stem)
    assert (
        max(apart(replace(config, engine=replace(config.engine, compiled=compiled)), torch.device("cuda")).values())
        < 1e-3
    )


@pytest.mark.cuda
def test_two_tables_of_learning_rates_give_different_weights_in_one_graph():
    slot = Slot(trial(epochs=1), torch.device("cuda"))
    weights = []
    for lr in (0.0, 0.01, 0.02):
        slot.reset(0)
        slot.epoch(0, [lr] * slot.updates)
        weights.append(slot.weights.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.cuda
@pytest.mark.parametrize("stopped", [False, True], ids=["all to the end", "one stopped"])
def test_one_slot_and_four_give_the_same_metrics_per_trial(stopped, exact):
    device = torch.device("cuda")
    rates = (0.01, 0.02, 0.05, 0.1)
    configs = [trial(schedules.load({"type": "cosine", "init_lr": r}), model=Model(width=16)) for r in rates]
    alone, beside = [timeless(engine.train(c, device)) for c in configs], {}

    def work(i: int) -> None:
        epochs = engine.train(configs[i], device)
        beside[i] = timeless([next(epochs)] if stopped and i == 3 else epochs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(beside) == [0, 1, 2, 3]
    for i, epochs in beside.items():
        assert epochs == alone[i][: len(epochs)]


@pytest.mark.cuda
def test_no_two_slots_have_the_same_stream_though_torch_gives_out_32_in_turns():
    device = torch.device("cuda", torch.cuda.current_device())
    gc.collect()  # the other tests' slots
    slots = []
    with pytest.raises(RuntimeError, match="at most 32"):
        slots.extend(iter(lambda: Slot(trial(epochs=1), device), None))
    assert slots
    assert len({stream.cuda_stream for stream in (s.stream for s in slots)}) == len(slots)
    slots.clear()
    gc.collect()
    assert Slot(trial(epochs=1), device)


@pytest.mark.cuda
def test_a_sweep_on_a_gpu_ends_with_0_when_python_has_put_its_things_away(project):
    """By itself, not as the command ends."""
    script = "from runner import sweep; raise SystemExit(sweep.main(['sweeps/tiny.yaml', '--device', 'cuda']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
def test_a_warm_slot_begins_a_trial_within_milliseconds():
    slot = Slot(trial(model=Model()), torch.device("cuda"))
    seconds = []
    for _ in range(6):  # one to draw the initial weights; the machine may be busy with something else meanwhile
        torch.cuda.synchronize()
        start = time.perf_counter()
        slot.reset(0)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    assert min(seconds[1:]) < 0.005
