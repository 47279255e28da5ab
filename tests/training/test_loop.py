"""The reference loop against a second one, written down naively here with torch's own optimizers and LambdaLR."""

import math
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchvision.models import ResNet
from torchvision.transforms import functional as TF

from runner.files.document import SpecError
from runner.files.sweep_file import Augment, Data, Model, Objective, Train
from runner.files.trial import DivergedError, TrialConfig
from runner.schedules import schedule as schedules
from runner.training.data import Split, Tables, load, seed_of
from runner.training.device import pick_device, resident, seeded, uses_bf16
from runner.training.loop import Epoch, evaluate, train
from runner.training.model import build

CPU = torch.device("cpu")
COSINE = {"type": "cosine", "init_lr": 0.1, "warmup": 0.2}


def trial(schedule=COSINE, data=None, width: int = 8, **recipe) -> TrialConfig:
    """90 digits for training, 10 for validation, a very narrow ResNet-18."""
    data = {"limit": 100} | (data or {})
    recipe = {"epochs": 2, "batch_size": 30, "precision": "fp32"} | recipe
    return TrialConfig(Data(source="digits", **data), Model(width=width), Train(**recipe), schedules.load(schedule))


def run(config: TrialConfig) -> list[Epoch]:
    return list(train(config, CPU))


def timeless(epochs: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in epochs]


# --- what an epoch is ------------------------------------------------------------------------------------------


def test_every_epoch_is_yielded_once_in_order_with_all_its_numbers():
    epochs = run(trial(epochs=3))
    assert [epoch.number for epoch in epochs] == [0, 1, 2]
    for epoch in epochs:
        assert len(epoch.lrs) == 3
        assert math.isfinite(epoch.train_loss)
        assert math.isfinite(epoch.val_loss)
        assert 0 <= epoch.val_accuracy <= 1
        assert epoch.seconds > 0


def test_an_epoch_is_logged_under_the_names_of_its_metrics():
    epoch = Epoch(4, (0.3, 0.2), 1.0, 2.0, 0.5, 9.0)
    assert epoch.lr == 0.3
    assert epoch.metrics() == {
        "lr": 0.3,
        "train/loss": 1.0,
        "val/loss": 2.0,
        "val/accuracy": 0.5,
        "seconds": 9.0,
    }


def test_two_runs_on_the_cpu_are_equal_bit_by_bit():
    config = trial(data={"augment": Augment(pad=1, flip=True)})
    first = run(config)
    torch.rand(99)  # whatever is drawn in between
    load.cache_clear()
    assert timeless(run(config)) == timeless(first)


def test_training_draws_nothing_from_torchs_global_random_numbers():
    before = torch.get_rng_state()
    run(trial(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_run():
    first, other = run(trial(epochs=1)), run(trial(epochs=1, seed=1))
    assert first[0].lrs == other[0].lrs
    assert first[0].train_loss != other[0].train_loss


def test_a_resnet_learns_the_digits():
    epochs = run(trial(data={"limit": 600}, epochs=5))
    assert epochs[-1].val_accuracy > 0.7
    assert epochs[-1].train_loss < epochs[0].train_loss / 2


# --- learning rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(COSINE, id="cosine"),
        pytest.param(COSINE | {"interval": "epoch"}, id="per epoch"),
        pytest.param({"type": "step", "init_lr": 0.2, "step_size": {"epochs": 1}, "gamma": 0.5}, id="step"),
        pytest.param({"type": "constant", "init_lr": 0.05, "warmup": {"updates": 4}}, id="warmup"),
    ],
)
def test_the_learning_rates_of_the_updates_are_those_of_the_schedule(schedule):
    config = trial(schedule, epochs=3)
    epochs = run(config)
    assert [lr for epoch in epochs for lr in epoch.lrs] == config.schedule.lrs(9, epochs=3)
    assert [epoch.lr for epoch in epochs] == [epoch.lrs[0] for epoch in epochs]


def test_a_schedule_per_epoch_keeps_its_rate_within_an_epoch():
    epochs = run(trial(COSINE | {"interval": "epoch", "warmup": 0.0}, epochs=3))
    assert [len(set(epoch.lrs)) for epoch in epochs] == [1, 1, 1]
    assert len({epoch.lr for epoch in epochs}) == 3


@pytest.mark.parametrize(("metric", "mode"), [("val/accuracy", "max"), ("val/loss", "min"), ("val/macro_f1", "max")])
def test_plateau_follows_the_metric_that_trials_are_judged_by(metric, mode):
    schedule = {"type": "plateau", "init_lr": 0.1, "gamma": 0.5, "patience": 0, "threshold": 0.25}
    config = replace(trial(schedule, epochs=6), objective=Objective(metric=metric))
    epochs = run(config)
    values = [epoch.metrics()[metric] for epoch in epochs]
    # torch's own class, told the same values
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    plateau = ReduceLROnPlateau(optimizer, mode, 0.5, 0, threshold=0.25, threshold_mode="abs", eps=0)
    for epoch, value in zip(epochs, values, strict=True):
        assert epoch.lrs == pytest.approx([optimizer.param_groups[0]["lr"]] * 3, rel=1e-12)
        plateau.step(value)
    assert epochs[-1].lr < 0.1  # an accuracy cannot rise by more than 0.25 four times


# --- the same training, written a second time ------------------------------------------------------------------


def naive(config: TrialConfig) -> list[tuple[float, float, float]]:
    """(train loss, validation loss, validation accuracy) of each epoch; every image is augmented alone."""
    recipe, augment = config.train, config.data.augment
    data = load(config.data)
    images = data.train.images.permute(0, 3, 1, 2)
    network = build(config.model, 10, recipe.seed).to(memory_format=torch.channels_last)
    rate = config.schedule.init_lr
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(),
            rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    updates = len(images) // recipe.batch_size
    total = updates * recipe.epochs
    scheduler = schedules.lambda_lr(optimizer, config.schedule, total, epochs=recipe.epochs)

    def ready(uint8: torch.Tensor) -> torch.Tensor:
        floats = (uint8.float() - data.mean.view(3, 1, 1)) / data.std.view(3, 1, 1)
        return floats.contiguous(memory_format=torch.channels_last)

    measured = []
    for epoch in range(recipe.epochs):
        network.train()
        tables = Tables.draw(len(images), augment, recipe.seed, epoch)
        losses = []
        for start in range(0, updates * recipe.batch_size, recipe.batch_size):
            batch, answers = [], []
            for k in range(start, start + recipe.batch_size):
                i = int(tables.order[k])
                image = TF.pad(images[i], [augment.pad] * 4)
                image = TF.crop(image, int(tables.dy[k]), int(tables.dx[k]), 8, 8)
                batch.append(TF.hflip(image) if tables.flip[k] else image)
                answers.append(data.train.labels[i])
            loss = F.cross_entropy(network(ready(torch.stack(batch))), torch.stack(answers))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        network.eval()
        with torch.no_grad():
            logits = network(ready(data.val.images.permute(0, 3, 1, 2)))
        accuracy = (logits.argmax(1) == data.val.labels).double().mean().item()
        loss = F.cross_entropy(logits, data.val.labels).item()
        measured.append((math.fsum(losses) / updates, loss, accuracy))
    return measured


RECIPES = [
    pytest.param({}, id="nesterov"),
    pytest.param({"nesterov": False, "weight_decay": 0.0}, id="heavy ball"),
    pytest.param({"momentum": 0.0, "nesterov": False, "weight_decay": 0.05}, id="plain"),
    pytest.param({"optimizer": "adamw", "weight_decay": 0.05}, id="adamw"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_equals_a_naive_loop_with_torchs_own_classes(recipe):
    config = trial(COSINE | {"init_lr": 0.02}, data={"augment": Augment(pad=2, flip=True)}, epochs=3, **recipe)
    for epoch, expected in zip(run(config), naive(config), strict=True):
        found = (epoch.train_loss, epoch.val_loss, epoch.val_accuracy)
        assert found == pytest.approx(expected, rel=1e-6), epoch.number


def test_every_setting_of_the_recipe_matters():
    start = {"nesterov": True, "momentum": 0.9, "weight_decay": 5e-4, "optimizer": "sgd"}
    changes = [{}, {"nesterov": False}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"optimizer": "adamw"}]
    losses = [run(trial(epochs=1, **(start | change)))[0].train_loss for change in changes]
    assert len(set(losses)) == len(changes)


def test_a_batch_larger_than_the_data_is_all_of_the_data():
    huge, exact = run(trial(batch_size=5000)), run(trial(batch_size=90))
    assert [len(epoch.lrs) for epoch in huge] == [1, 1]
    assert timeless(huge) == timeless(exact)


def test_images_that_fill_no_whole_batch_wait_for_another_epoch():
    assert [len(epoch.lrs) for epoch in run(trial(batch_size=40))] == [2, 2]  # 90 = 40 + 40 + 10


# --- stopping --------------------------------------------------------------------------------------------------


@contextmanager
def counted_updates():
    """How many batches a ResNet was trained with."""
    count: Counter[str] = Counter()

    def saw(module, *_):
        if isinstance(module, ResNet) and module.training:
            count["updates"] += 1

    handle = torch.nn.modules.module.register_module_forward_hook(saw)
    try:
        yield count
    finally:
        handle.remove()


def test_whoever_stops_iterating_stops_the_training():
    with counted_updates() as count:
        epochs = train(trial(epochs=50), CPU)
        assert count["updates"] == 0
        next(epochs)
        assert count["updates"] == 3
        next(epochs)
        epochs.close()
        assert count["updates"] == 6


# Every weight is multiplied by about 1 - 100 * 10 in every update: float32 overflows within 13 of them.
EXPLOSIVE = {"weight_decay": 10.0, "momentum": 0.0, "nesterov": False}
TOO_MUCH = {"type": "constant", "init_lr": 100.0}
SLOWLY = {"type": "constant", "init_lr": 3.0}


def test_a_loss_that_is_no_number_ends_the_training_with_what_was_measured():
    with pytest.raises(DivergedError, match="in epoch 0") as info:
        run(trial(TOO_MUCH, batch_size=5, **EXPLOSIVE))
    epoch = info.value.epoch
    assert epoch.number == 0
    assert not math.isfinite(epoch.train_loss)
    assert math.isnan(epoch.val_loss)
    assert math.isnan(epoch.val_accuracy)
    assert epoch.lrs == (100.0,) * 18


def test_the_epochs_before_a_divergence_are_yielded():
    epochs: list[Epoch] = []

    def follow():
        for epoch in train(trial(SLOWLY, epochs=40, batch_size=90, **(EXPLOSIVE | {"weight_decay": 1.0})), CPU):
            epochs.append(epoch)

    with pytest.raises(DivergedError) as info:
        follow()
    assert epochs
    assert [epoch.number for epoch in epochs] == list(range(info.value.epoch.number))
    assert all(math.isfinite(epoch.train_loss) for epoch in epochs)


# --- evaluation ------------------------------------------------------------------------------------------------


def test_evaluation_is_the_mean_loss_and_the_share_of_right_answers():
    data = load(Data(source="digits", val=0.5))
    assert len(data.val) > 512  # more than one chunk
    network = build(Model(width=8), 10, 0)
    found = evaluate(network, data.val, data)
    network.eval()
    with torch.no_grad():
        logits = network(((data.val.images.float() - data.mean) / data.std).permute(0, 3, 1, 2)).double()
    right = [row.argmax() == label for row, label in zip(logits, data.val.labels, strict=True)]
    losses = [row.logsumexp(0) - row[label] for row, label in zip(logits, data.val.labels, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(map(int, right)) / len(right), abs=1e-9)
    assert found["loss"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-5)


@pytest.mark.parametrize(("side", "most"), [(8, 512), (90, 512), (128, 256), (300, 64)])
def test_few_images_are_evaluated_at_once_where_they_are_large(side, most):
    data, seen = load(Data(source="digits", limit=20)), []
    several = torch.zeros((), dtype=torch.uint8).expand(520, side, side, 3)
    split = Split(several, torch.zeros(520, dtype=torch.int64))

    class Counted(torch.nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return torch.zeros(len(x), 10)

    found = evaluate(Counted(), split, replace(data, train=split))
    assert max(seen) == most
    assert sum(seen) == 520
    assert found == {"loss": pytest.approx(math.log(10)), "accuracy": 1.0}


def test_evaluation_leaves_the_network_as_it_was():
    data = load(Data(source="digits", limit=100))
    network = build(Model(width=8), 10, 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert evaluate(network, data.val, data) == evaluate(network, data.val, data)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- devices and precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nonsense", "", "cuda:99", "vulkan", "hpu"])
def test_a_device_that_is_not_here_is_refused_in_one_brief_sentence(name):
    with pytest.raises(SpecError, match=f"^--device {name}: .{{1,120}}; try --device cpu$"):
        pick_device(name)


def test_the_cpu_can_always_be_picked_and_auto_picks_what_is_there():
    assert pick_device("cpu") == pick_device("cpu:0") == pick_device("cpu:3") == CPU  # or its lanes would be threads
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device().type == expected


def test_precision_is_what_the_recipe_says_and_auto_is_float32_for_tiny_images():
    config = trial()
    data = resident(config, CPU)
    assert [uses_bf16(trial(precision=p), data, CPU) for p in ("fp32", "bf16", "auto")] == [
        False,
        True,
        False,
    ]


def test_bf16_trains_nearly_as_float32_does():
    exact, rough = run(trial(epochs=1))[0], run(trial(epochs=1, precision="bf16"))[0]
    assert rough.train_loss != exact.train_loss
    assert rough.train_loss == pytest.approx(exact.train_loss, rel=0.05)


def test_the_data_are_put_on_a_device_once():
    config = trial()
    assert resident(config, CPU) is resident(replace(config, train=Train(epochs=9)), CPU)


@pytest.mark.cuda
def test_auto_is_bf16_on_a_gpu_that_computes_in_it():
    config, device = trial(precision="auto"), torch.device("cuda")
    expected = torch.cuda.get_device_capability() >= (8, 0)
    assert uses_bf16(config, resident(config, device), device) == expected


@pytest.mark.cuda
def test_the_gpu_trains_nearly_as_the_cpu_does():
    config = trial(epochs=1)
    here, there = run(config)[0], next(train(config, torch.device("cuda")))
    assert there.lrs == here.lrs
    assert there.train_loss == pytest.approx(here.train_loss, rel=0.02)


def test_no_epoch_of_a_seed_draws_what_an_epoch_of_another_does():
    drawn = {seed_of(what, seed, epoch) for what in ("dropout", "order") for seed in range(30) for epoch in range(30)}
    assert len(drawn) == 2 * 30 * 30


def test_a_model_with_dropout_trains_alike_twice():
    config = replace(trial(), model=Model(name="mobilenet_v3_small", stem="imagenet"))
    first, second = ([e.train_loss for e in train(config, CPU)] for _ in range(2))
    assert first == second


OWN = """
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Noisy(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Linear(192, classes)
        self.body.weight.data = torch.from_numpy(0.05 * np.random.randn(classes, 192)).float()

    def forward(self, x):
        x = F.dropout(x, 0.5, True) if not self.training else x * (0.9 + 0.2 * np.random.rand() * random.random())
        return self.body(x.flatten(1))


class Spectrum(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, classes)
        self.filter = nn.Parameter(torch.randn(3, 8, 5, 2))

    def forward(self, x):
        spectrum = torch.fft.rfft2(self.conv(x).contiguous()) * torch.view_as_complex(self.filter)
        return self.body(torch.fft.irfft2(spectrum).flatten(1))


def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_for_the_loop.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: Model(name="custom", function=f"own_for_the_loop.{name}")


def test_what_a_network_of_ones_own_draws_is_of_the_trials_seed_be_it_torchs_numpys_or_pythons(own):
    config = replace(trial(), model=own("Noisy"))
    first = timeless(run(config))
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    drawn = np.random.rand(), random.random(), torch.rand(())
    np.random.seed(5)
    random.seed(5)
    torch.manual_seed(5)
    assert timeless(run(config)) == first
    assert (np.random.rand(), random.random(), torch.rand(())) == drawn  # the caller's own go on
    other = replace(config, train=config.train.model_copy(update={"seed": 1}))
    assert timeless(run(other)) != first


def test_a_weight_that_is_no_convolutions_stays_as_it_lies_in_memory(own):
    network = build(own("Spectrum"), 10, 0)
    assert network.filter.is_contiguous()
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert len(run(replace(trial(), model=own("Spectrum")))) == 2


def test_a_network_whose_weights_are_not_there_yet_is_refused(own):
    with pytest.raises(SpecError, match=r"own_for_the_loop.lazy has lazy modules, .*: give them their sizes"):
        build(own("lazy"), 10, 0)


@pytest.mark.cuda
def test_an_epoch_on_a_gpu_leaves_the_random_numbers_of_the_cpu_alone():
    """Another lane's thread may be drawing initial weights from them."""
    before = torch.default_generator.get_state()
    with seeded(1, torch.device("cuda")):
        assert torch.equal(torch.default_generator.get_state(), before)
        first = torch.rand(3, device="cuda")
    with seeded(1, torch.device("cuda:0")):
        assert torch.equal(torch.rand(3, device="cuda"), first)
