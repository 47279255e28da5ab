"""The zoo against torch's own classes, the tutorial's formulas, and closed forms written down again here."""

import json
import math
import pickle
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as L

from runner.files.space import OWN_WARMUP
from runner.schedules import Length, Schedule, ScheduleError, code, lambda_lr, load, set_lr
from runner.schedules.zoo import TYPES

BUDGETS = [1, 2, 3, 4, 5, 7, 10, 30, 98, 490]


def optimizer(lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def native(build, T: int, lr: float = 0.1) -> list[float]:
    """The learning rates that a torch scheduler gives T updates."""
    opt = optimizer(lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = build(opt)
        return follow(opt, scheduler, T)


def follow(opt, scheduler, T: int) -> list[float]:
    rates = []
    for t in range(T):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if t < T - 1:
            scheduler.step()
    return rates


def ours(T: int, **mapping) -> list[float]:
    return load({"init_lr": 0.1} | mapping).lrs(T)


def close(a: list[float], b: list[float], tolerance: float = 1e-12) -> None:
    assert len(a) == len(b)
    for t, (x, y) in enumerate(zip(a, b, strict=True)):
        assert math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance * 0.1), (t, x, y)


# --- the tutorial's five ways ----------------------------------------------------------------------------------


STEP30 = {"type": "step", "step_size": {"epochs": 30}, "gamma": 0.1}


def test_way_1_a_function_that_assigns_the_step_decay_is_bit_equal():
    rates = []
    opt = optimizer()
    for epoch in range(100):
        for group in opt.param_groups:
            group["lr"] = 0.1 * 0.1 ** (epoch // 30)
        rates.append(opt.param_groups[0]["lr"])
    assert ours(100, **STEP30) == rates


def test_way_2_step_lr_is_the_same_curve():
    close(ours(100, **STEP30), native(lambda o: L.StepLR(o, step_size=30, gamma=0.1), 100))


def test_way_3_warmup_then_step_on_the_absolute_clock_is_bit_equal():
    def assigned(epoch: int) -> float:
        return 0.1 * ((epoch + 1) / 5) if epoch < 5 else 0.1 * 0.1 ** (epoch // 30)

    rates = ours(100, **STEP30, warmup={"epochs": 5}, clock="absolute")
    assert rates == [assigned(epoch) for epoch in range(100)]


def test_way_4_the_same_as_a_lambda_lr_multiplier():
    def multiplier(epoch: int) -> float:
        return (epoch + 1) / 5 if epoch < 5 else 0.1 ** (epoch // 30)

    schedule = load({**STEP30, "warmup": {"epochs": 5}, "clock": "absolute"})
    expected = native(lambda o: L.LambdaLR(o, multiplier), 100)
    assert ours(100, **schedule.to_json()) == expected
    opt = optimizer()
    assert follow(opt, lambda_lr(opt, schedule, 100), 100) == expected


def test_way_5_warmup_and_cosine_over_what_is_left():
    def tutorial(epoch: int, total: int = 100, warm: int = 5) -> float:
        if epoch < warm:
            return 0.1 * (epoch + 1) / warm
        return 0.1 * 0.5 * (1.0 + math.cos(math.pi * (epoch - warm) / (total - warm)))

    rates = ours(100, type="cosine", warmup={"epochs": 5})
    assert max(abs(a - tutorial(e)) for e, a in enumerate(rates)) <= 1e-15


# --- torch's own classes, where they are right -----------------------------------------------------------------


@pytest.mark.parametrize("T", BUDGETS)
@pytest.mark.parametrize(
    ("mapping", "build"),
    [
        pytest.param({"type": "constant"}, lambda o, T: L.ConstantLR(o, 1.0, 1), id="constant"),
        pytest.param(
            {"type": "step", "step_size": {"updates": 3}, "gamma": 0.5}, lambda o, T: L.StepLR(o, 3, 0.5), id="step"
        ),
        pytest.param(
            {"type": "multistep", "milestones": {"epochs": [3, 6, 6]}, "gamma": 0.3},
            lambda o, T: L.MultiStepLR(o, [3, 6, 6], 0.3),
            id="multistep",
        ),
        pytest.param({"type": "exponential", "gamma": 0.9}, lambda o, T: L.ExponentialLR(o, 0.9), id="exponential"),
        pytest.param(
            {"type": "exponential", "final": 0.02},
            lambda o, T: L.ExponentialLR(o, 0.02 ** (1 / T)),
            id="exponential-final",
        ),
        pytest.param({"type": "polynomial", "power": 0.9}, lambda o, T: L.PolynomialLR(o, T, 0.9), id="polynomial"),
        pytest.param({"type": "linear", "floor": 0.03}, lambda o, T: L.LinearLR(o, 1.0, 0.03, T), id="linear"),
        pytest.param(
            {"type": "cosine", "floor": 0.05}, lambda o, T: L.CosineAnnealingLR(o, T, 0.05 * 0.1), id="cosine"
        ),
        pytest.param(
            {"type": "cosine_restarts", "t_0": {"updates": 4}, "t_mult": 2, "floor": 0.01},
            lambda o, T: L.CosineAnnealingWarmRestarts(o, 4, 2, 0.001),
            id="cosine-restarts",
        ),
        pytest.param(
            {"type": "cosine_restarts", "t_0": {"updates": 3}},
            lambda o, T: L.CosineAnnealingWarmRestarts(o, 3),
            id="cosine-restarts-equal",
        ),
        pytest.param(
            {"type": "linear", "warmup": {"updates": 4, "start": 0.25}, "floor": 1.0},
            lambda o, T: L.LinearLR(o, 0.25, 1.0, 4),
            id="warmup-from-a-factor",
        ),
        pytest.param(
            {"type": "constant", "warmup": {"updates": 4, "form": "constant", "start": 0.3}},
            lambda o, T: L.ConstantLR(o, 0.3, 4),
            id="warmup-constant",
        ),
    ],
)
def test_agrees_with_torch(mapping, build, T):
    if mapping["type"] == "linear" and "warmup" in mapping and T <= 4:
        pytest.skip("torch ramps to the end of its own four updates, a shorter training has a shorter warmup")
    if mapping["type"] == "constant" and "warmup" in mapping and T <= 4:
        pytest.skip("as above")
    close(ours(T, **mapping), native(lambda o: build(o, T), T))


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("T", [7, 10, 30, 98, 490])
def test_one_cycle_agrees_with_torch_where_torch_has_room_to_rise(T, three_phase, anneal):
    def build(o):
        return L.OneCycleLR(
            o, 0.1, T, pct_start=0.3, anneal_strategy=anneal, three_phase=three_phase, cycle_momentum=False
        )

    close(ours(T, type="one_cycle", anneal=anneal, three_phase=three_phase), native(build, T))


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("T", [12, 48, 480])
def test_cyclic_agrees_with_torch(T, mode):
    def build(o):
        return L.CyclicLR(o, 0.002, 0.1, T // 12, T // 4, mode, gamma=0.99, cycle_momentum=False)

    schedule = {"type": "cyclic", "mode": mode, "cycles": 3, "up": 0.25, "gamma": 0.99, "floor": 0.02}
    close(ours(T, **schedule), native(build, T))


@pytest.mark.parametrize("T", [10, 98])
def test_warmup_and_cosine_agree_with_torchs_own_composition(T):
    def build(o):
        pieces = [L.LinearLR(o, 1 / 5, 1.0, 4), L.CosineAnnealingLR(o, T - 5)]
        return L.SequentialLR(o, pieces, [5])

    close(ours(T, type="cosine", warmup={"updates": 5}), native(build, T))


def test_plateau_agrees_with_torch_on_a_bumpy_metric():
    metric = [0.1, 0.3, 0.3, 0.3, 0.3, 0.35, math.nan, 0.2, 0.2, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.5]
    for patience, cooldown in [(0, 0), (1, 0), (2, 0), (2, 1), (1, 3)]:
        opt = optimizer()
        scheduler = L.ReduceLROnPlateau(opt, "max", 0.5, patience, 0.01, "abs", cooldown, min_lr=0.1 * 0.05, eps=0.0)
        mapping = {"type": "plateau", "gamma": 0.5, "patience": patience, "threshold": 0.01, "cooldown": cooldown}
        schedule = load({**mapping, "floor": 0.05})
        for epoch, value in enumerate(metric):
            expected = opt.param_groups[0]["lr"]
            assert math.isclose(schedule.lr(epoch, len(metric), history=metric[:epoch]), expected, rel_tol=1e-12)
            scheduler.step(value)


def test_plateau_looks_at_no_epoch_that_is_still_to_come():
    schedule = load({"type": "plateau", "patience": 0})
    history = [0.5, 0.4, 0.3]
    assert schedule.factor(1, 10, history=history) == schedule.factor(1, 10, history=history[:1]) == 1.0
    assert schedule.factor(5, 50, epochs=10, history=[0.5]) == 1.0


# --- closed forms, written down once more ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "form"),
    [
        pytest.param({"type": "rex"}, lambda z: (1 - z) / (0.5 + 0.5 * (1 - z)), id="rex"),
        pytest.param({"type": "rex", "beta": 0.9}, lambda z: (1 - z) / (1 - 0.9 * z), id="rex-beta"),
        pytest.param({"type": "sine"}, lambda z: math.sin(math.pi / 2 * (1 - z)), id="quarter-sine"),
        pytest.param(
            {"type": "sine", "mode": "cycle", "cycles": 2},
            lambda z: 0.5 * (1 + math.sin(4 * math.pi * z - math.pi / 2)),
            id="sine-cycles",
        ),
        pytest.param({"type": "inverse_time", "rate": 4}, lambda z: 1 / (1 + 4 * z), id="inverse-time"),
        pytest.param({"type": "tanh"}, lambda z: 0.5 * (1 - math.tanh(-7 * (1 - z) + 3 * z)), id="tanh"),
        pytest.param({"type": "knee"}, lambda z: min(1, 2 * (1 - z)), id="knee"),
        pytest.param({"type": "wsd", "cooldown": 0.4}, lambda z: min(1, (1 - z) / 0.4), id="wsd-linear"),
        pytest.param(
            {"type": "wsd", "cooldown": 0.4, "shape": "1-sqrt"},
            lambda z: 1 - math.sqrt(max(0, (z - 0.6) / 0.4)),
            id="wsd-1-sqrt",
        ),
        pytest.param(
            {"type": "wsd", "cooldown": 0.4, "shape": "1-square"},
            lambda z: 1 - max(0, (z - 0.6) / 0.4) ** 2,
            id="wsd-1-square",
        ),
        pytest.param(
            {"type": "wsd", "cooldown": 0.4, "shape": "cosine"},
            lambda z: 0.5 * (1 + math.cos(math.pi * max(0, (z - 0.6) / 0.4))),
            id="wsd-cosine",
        ),
        pytest.param(
            {"type": "wsd", "cooldown": 0.4, "shape": "exponential", "rho": 0.02},
            lambda z: (0.02 ** max(0, (z - 0.6) / 0.4) - 0.02) / 0.98,
            id="wsd-exponential",
        ),
        pytest.param(
            {"type": "triangular", "peak": 0.25, "start": 0.2, "end": 0.07},
            lambda z: 0.2 + 0.8 * z / 0.25 if z < 0.25 else 1 - 0.93 * (z - 0.25) / 0.75,
            id="triangular",
        ),
        pytest.param(
            {"type": "piecewise", "at": [0, 5 / 24, 1], "factors": [0, 1, 0]},
            lambda z: z * 24 / 5 if z < 5 / 24 else (1 - z) * 24 / 19,
            id="piecewise-cifar10-fast",
        ),
        pytest.param(
            {"type": "piecewise", "at": [0, 0.3, 0.6], "factors": [1, 0.1, 0.01], "interpolation": "step"},
            lambda z: 1 if z < 0.3 - 1e-12 else 0.1 if z < 0.6 - 1e-12 else 0.01,
            id="piecewise-step",
        ),
    ],
)
def test_closed_form(mapping, form):
    for T in (1, 5, 10, 24, 98):
        close(load(mapping | {"init_lr": 1.0}).lrs(T), [form(t / T) for t in range(T)])


def test_inverse_sqrt_is_transformers_with_its_warmup_as_the_timescale():
    w, T = 10, 100
    ramp = [(t + 1) / w for t in range(w)]
    decay = [1 / math.sqrt((t + 0) / w) for t in range(w, T)]  # shift = timescale - w = 0
    close(load({"type": "inverse_sqrt", "warmup": {"updates": w}, "init_lr": 1.0}).lrs(T), ramp + decay)


def test_cosine_restarts_fill_the_budget_and_decay_their_peaks():
    schedule = load({"type": "cosine_restarts", "cycles": 3, "t_mult": 2, "peak_decay": 0.5, "init_lr": 1.0})
    rates = schedule.lrs(70)  # cycles of 10, 20, 40
    assert [rates[0], rates[10], rates[30]] == [1.0, 0.5, 0.25]
    assert rates[9] < 0.03
    assert rates[69] < 0.001
    assert schedule.factor(70, 70) == 0.0


# --- warmup, clock, interval, floor ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, [0.25, 0.5, 0.75, 1.0]),
        ({"start": 0.2}, [0.2, 0.4, 0.6, 0.8]),
        ({"start": 0.0}, [0.0, 0.25, 0.5, 0.75]),
        ({"form": "constant", "start": 0.3}, [0.3] * 4),
        ({"form": "exponential", "start": 0.0001}, [1e-4, 1e-3, 1e-2, 1e-1]),
        ({"form": "cosine", "start": 0.0}, [0.0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2]),
    ],
)
def test_warmup_forms(form, expected):
    close(load({"type": "constant", "init_lr": 1.0, "warmup": {"updates": 4, **form}}).lrs(8)[:4], expected)


def test_a_warmup_length_is_rounded_half_up():
    assert [load({"type": "cosine", "warmup": 0.05}).moment(0, T).w for T in (10, 30, 50)] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["multistep", "piecewise", "wsd", "step", "cosine"])
def test_a_warmup_that_takes_all_of_training_rises_to_where_the_decay_begins_and_stays_there(kind):
    schedule = load({"type": kind, "init_lr": 1.0, "warmup": 1.0})
    begins = load({"type": kind, "init_lr": 1.0}).lr(0, 100)
    assert [schedule.lr(t, 4) for t in range(7)] == [begins * f for f in (0.25, 0.5, 0.75, 1, 1, 1, 1)]


def test_the_prefix_clock_starts_after_the_warmup_and_the_absolute_one_at_zero():
    common = {**STEP30, "warmup": {"epochs": 5}, "init_lr": 1.0}
    for clock, expected in (("prefix", [34, 64, 94]), ("absolute", [29, 59, 89])):
        rates = load({**common, "clock": clock}).lrs(100)
        assert [t for t in range(99) if rates[t + 1] < rates[t]] == expected


def test_interval_epoch_is_the_classic_staircase():
    rates = load({"type": "cosine", "interval": "epoch", "warmup": {"epochs": 2}}).lrs(60, epochs=6)
    by_epoch = load({"type": "cosine", "warmup": {"epochs": 2}}).lrs(6)
    assert rates == [by_epoch[t // 10] for t in range(60)]


def test_lengths_in_epochs_and_updates_agree():
    for unit, n in (("epochs", 3), ("updates", 30), ("fraction", 0.3)):
        schedule = load({"type": "cosine", "warmup": {unit: n}})
        assert schedule.lrs(100, epochs=10) == load({"type": "cosine", "warmup": 0.3}).lrs(100)


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_floor_is_a_ratio_of_init_lr_that_nothing_goes_below(kind):
    for T in (1, 5, 50):
        assert min(load({"type": kind, "floor": 0.2}).factor(t, T) for t in range(T + 3)) >= 0.2 - 1e-15


def test_every_param_group_keeps_its_own_base():
    opt = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)], lr=0.1)
    for factor in (0.5, 0.25):
        set_lr(opt, factor)
        assert [g["lr"] for g in opt.param_groups] == [factor * 1.0, factor * 0.01]
    opt = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)], lr=0.1)
    scheduler = lambda_lr(opt, load({"type": "cosine"}), 2)
    opt.step()
    scheduler.step()
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.005]


# --- corners ---------------------------------------------------------------------------------------------------


CORNERS = [
    *({"type": kind} for kind in sorted(TYPES)),
    {"type": "cosine_restarts", "cycles": 3, "t_mult": 3, "peak_decay": 0.5},
    {"type": "cyclic", "mode": "triangular2", "cycles": 3},
    {"type": "cyclic", "mode": "exp_range", "cycles": 2.5},
    {"type": "one_cycle", "three_phase": True, "anneal": "linear"},
    {"type": "one_cycle", "pct_start": 0.0},
    {"type": "one_cycle", "pct_start": 1.0},
    {"type": "sine", "mode": "cycle"},
    {"type": "triangular", "peak": 1.0},
    {"type": "triangular", "peak": 0.0},
    {"type": "wsd", "cooldown": 0.0},
    {"type": "wsd", "cooldown": 1.0, "shape": "1-sqrt"},
    {"type": "knee", "explore": 1.0},
    {"type": "step", "step_size": {"updates": 1e-6}},
    {"type": "exponential", "gamma": 0.9},
    {"type": "cosine_restarts", "cycles": 100, "t_mult": 10},
    {"type": "cosine_restarts", "t_0": {"updates": 1e-6}, "t_mult": 1.0001},
]


@pytest.mark.parametrize("mapping", CORNERS, ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("clock", ["prefix", "absolute"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0, {"epochs": 1}, {"updates": 10_000}])
def test_every_corner_gives_a_finite_factor_from_one_update_upward(mapping, clock, warmup):
    schedule = load({**mapping, "clock": clock, "warmup": warmup})
    for T in BUDGETS[:-1]:
        for epochs in {1, T}:
            for t in range(T + 2):
                factor = schedule.factor(t, T, epochs=epochs)
                assert 0.0 <= factor <= 1.0 + 1e-12, (t, T, epochs, factor)


@pytest.mark.parametrize(("pct", "T"), [(0.1, 10), (0.2, 5), (0.05, 20), (0.5, 2), (1.0, 10), (0.3, 3), (0.3, 1)])
def test_one_cycle_works_where_torch_divides_by_zero_or_forgets_to_rise(pct, T):
    rates = load({"type": "one_cycle", "pct_start": pct, "init_lr": 1.0}).lrs(T)
    assert max(rates) == 1.0


def test_bad_times_are_refused():
    for t, T, epochs in [(-1, 5, 5), (0, 0, 1), (0, 5, 0)]:
        with pytest.raises(ValueError, match="must be"):
            load({"type": "cosine"}).factor(t, T, epochs=epochs)


@pytest.mark.parametrize(
    ("mapping", "T", "words"),
    [
        (STEP30, 30, "never decays"),
        ({"type": "wsd", "cooldown": 0.2, "interval": "epoch"}, 5, "never decays"),
        ({"type": "cosine", "warmup": 1.0}, 10, "never leaves its warmup"),
        ({"type": "linear", "interval": "epoch"}, 5, "is cut off at 20%"),
        ({"type": "one_cycle", "pct_start": 0.1}, 10, "no room to rise"),
        ({"type": "triangular", "peak": 0.5}, 3, "never reaches init_lr"),
        ({"type": "one_cycle", "warmup": 0.1}, 100, "warms up only to 4%"),
        ({"type": "plateau", "patience": 9}, 10, "no time to drop"),
        (
            {"type": "cosine", "warmup": 0.07, "interval": "epoch"},
            5,
            "never warms up: its warmup is 0.35 of one epoch",
        ),
        ({"type": "constant", "warmup": {"updates": 0.4}}, 100, "never warms up"),
        ({"type": "plateau", "warmup": 0.004}, 100, "never warms up: its warmup is 0.4 of one update"),
        ({"type": "step", "step_size": 0.001}, 100, "next to no step_size: it is 0.1 of one update"),
        ({"type": "wsd", "cooldown": 0.005}, 100, "next to no cooldown: it is 0.5 of one update"),
        ({"type": "knee", "explore": {"updates": 0.1}}, 100, "next to no explore"),
        ({"type": "multistep", "milestones": [0.001, 0.5]}, 100, "next to no milestones"),
        ({"type": "triangular", "peak": 0.005}, 100, "no room to rise"),
    ],
)
def test_a_schedule_that_cannot_do_what_it_says_is_named(mapping, T, words):
    assert any(words in problem for problem in load(mapping).problems(T))


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_nothing_is_wrong_with_the_defaults_over_a_few_hundred_updates(kind):
    assert load({"type": kind, "warmup": 0.0 if kind in OWN_WARMUP else 0.1}).problems(490, epochs=10) == []


# --- data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", CORNERS, ids=lambda m: "-".join(map(str, m.values())))
def test_a_schedule_survives_json_and_pickle(mapping):
    mapping = {**mapping, "init_lr": 0.3, "warmup": {"epochs": 2, "form": "cosine"}, "floor": 0.01}
    schedule = load(mapping)
    back = load(json.loads(json.dumps(schedule.to_json())))
    assert back == schedule
    assert hash(back) == hash(schedule)
    assert back.lrs(30) == schedule.lrs(30)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_a_custom_schedule_does_not_change_with_the_mapping_it_was_loaded_from(own_package):
    params = {"teeth": [1]}
    schedule = load({"type": "custom", "function": "own_lrs.sawtooth", "params": params}, allow=["own_lrs."])
    params["teeth"].append(2)
    assert schedule.to_json()["params"] == {"teeth": [1]}


def test_a_schedule_cannot_be_changed():
    schedule = load({"type": "step"})
    with pytest.raises(AttributeError):
        schedule.init_lr = 1.0
    with pytest.raises(TypeError, match="cannot change"):
        schedule.params["gamma"] = 1.0


def test_defaults_are_written_out():
    assert load({"type": "step"}).to_json() == {
        "type": "step",
        "init_lr": 0.1,
        "warmup": {"fraction": 0.0, "form": "linear", "start": None},
        "clock": "prefix",
        "interval": "update",
        "floor": 0.0,
        "step_size": 1 / 3,
        "gamma": 0.1,
    }


@pytest.mark.parametrize(
    ("mapping", "key", "words"),
    [
        ({}, ("type",), "needs a type"),
        ({"type": "cosin"}, ("type",), "did you mean 'cosine'?"),
        ({"type": "step", "gama": 0.1}, ("gama",), "did you mean 'gamma'?"),
        ({"type": "step", "gamma": 2}, ("gamma",), "between"),
        ({"type": "step", "gamma": "0.1"}, ("gamma",), "must be a number"),
        ({"type": "step", "gamma": True}, ("gamma",), "must be a number"),
        ({"type": "step", "gamma": math.nan}, ("gamma",), "must be a number"),
        ({"type": "step", "step_size": 30}, ("step_size",), "between 0 and 1"),
        ({"type": "step", "step_size": {"days": 30}}, ("step_size",), "{epochs: N}"),
        ({"type": "cosine", "init_lr": 0}, ("init_lr",), "between"),
        ({"type": "cosine", "clock": "wall"}, ("clock",), "unknown value"),
        ({"type": "cosine", "warmup": {"epochs": 1, "from": 0.1}}, ("warmup", "from"), "did you mean"),
        ({"type": "cosine", "warmup": {"form": "linear"}}, ("warmup",), "exactly one length"),
        ({"type": "multistep", "milestones": [0.5, 2]}, ("milestones", 1), "between"),
        ({"type": "multistep", "milestones": []}, ("milestones",), "list of numbers"),
        ({"type": "multistep", "milestones": {"epochs": [{"updates": 3}]}}, ("milestones", 0), "must be a number"),
        ({"type": "piecewise", "at": [0, 1], "factors": [1]}, ("factors",), "one factor for each point"),
        ({"type": "piecewise", "at": [1, 0], "factors": [1, 0]}, ("at",), "in order"),
        ({"type": "exponential", "gamma": 0.9, "final": 0.1}, ("gamma",), "give one"),
        ({"type": ["cosine"]}, ("type",), "unknown type"),
        ({"type": "cosine", "init_lr": 10**400}, ("init_lr",), "must be a number"),
        ({"type": "multistep", "milestones": [{"epochs": 3}, 0.5]}, ("milestones",), "one unit, as in {epochs: "),
        ({"type": "cosine", "warmup": {"fraction": {"epochs": 2}}}, ("warmup",), "must be a number"),
        ({"type": "custom"}, ("function",), "entry point"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(mapping, key, words):
    with pytest.raises(ScheduleError) as caught:
        load(mapping)
    assert caught.value.key == key
    assert words in caught.value.message


# --- a user's own function -------------------------------------------------------------------------------------


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_lrs.py").write_text(
        "import os\nfrom os import getcwd\n\n\n"
        "def sawtooth(t, T, *, teeth):\n    return 1 - (t * teeth / T) % 1\n\n\n"
        "class Line:\n    def __call__(self, t, T):\n        return 1 - t / T\n\n\n"
        "line, nameless = Line(), lambda t, T: 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_package")
def test_an_own_function_is_a_schedule_when_its_package_is_allowed():
    mapping = {"type": "custom", "function": "own_lrs.sawtooth", "params": {"teeth": 2}}
    schedule = load(mapping, allow=["own_lrs."])
    assert [schedule.factor(t, 4) for t in range(4)] == [1.0, 0.5, 1.0, 0.5]
    assert load(schedule.to_json(), allow=["own_lrs."]) == schedule
    assert pickle.loads(pickle.dumps(schedule)).lrs(8) == schedule.lrs(8)
    scope = {"optimizer": (opt := optimizer(7.0))}
    exec(code(schedule, 8), scope)
    assert follow(opt, scope["scheduler"], 8) == schedule.lrs(8)


@pytest.mark.usefixtures("own_package")
def test_an_object_that_can_be_called_is_a_schedule_and_its_code_names_it():
    schedule = load({"type": "custom", "function": "own_lrs.line"}, allow=["own_lrs."])
    scope = {"optimizer": (opt := optimizer(7.0))}
    exec(code(schedule, 8), scope)
    assert follow(opt, scope["scheduler"], 8) == schedule.lrs(8)


@pytest.mark.usefixtures("own_package")
def test_a_function_that_no_worker_process_can_be_sent_is_refused():
    with pytest.raises(ScheduleError, match="write it with def at the top of its module"):
        load({"type": "custom", "function": "own_lrs.nameless"}, allow=["own_lrs."])


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("allow", [[], ["own."], ["own_lrs_too."], [""], ["."]])
def test_an_own_function_is_never_named_by_the_file_alone(allow):
    with pytest.raises(ScheduleError, match="entry point"):
        load({"type": "custom", "function": "own_lrs.sawtooth", "params": {"teeth": 2}}, allow=allow)


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("name", ["own_lrs.getcwd", "own_lrs.os.getcwd", "own_lrs.missing", "own_lrs.os"])
def test_an_allowed_package_lends_only_its_own_functions(name):
    with pytest.raises(ScheduleError):
        load({"type": "custom", "function": name}, allow=["own_lrs."])


def test_an_installed_entry_point_is_a_schedule(tmp_path, monkeypatch, own_package):
    info = tmp_path / "own_lrs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-lrs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[runner.schedules]\nsawtooth = own_lrs:sawtooth\n")
    schedule = load({"type": "custom", "function": "sawtooth", "params": {"teeth": 1}})
    assert schedule.factor(1, 4) == 0.75


# --- code export -----------------------------------------------------------------------------------------------


EXPORTED = [
    *CORNERS,
    {"type": "cosine", "floor": 0.05},
    {"type": "linear", "floor": 0.05},
    {"type": "exponential", "gamma": 0.9},
    {"type": "rex", "floor": 0.1},
    {"type": "step", "step_size": {"updates": 2}, "clock": "absolute"},
    {"type": "multistep", "milestones": [0.6, 0.8], "clock": "absolute"},
    {"type": "multistep", "milestones": [0.6, 0.8], "floor": 0.05},
    {"type": "cosine_restarts", "t_0": {"updates": 3}, "t_mult": 2},
    {"type": "cyclic", "floor": 0.1, "cycles": 2},
    {"type": "cyclic", "floor": 0.0, "cycles": 2},
    {"type": "wsd", "cooldown": {"updates": 4}},
    {"type": "plateau", "patience": 0, "clock": "absolute"},
    {"type": "plateau", "gamma": 1.0},
]
WARM = [0.0, {"updates": 1}, 0.2, {"updates": 3, "start": 0.1}, {"fraction": 0.2, "form": "constant"}]
WARM += [{"fraction": 0.2, "form": "exponential"}, {"fraction": 0.2, "form": "cosine"}, 1.0]


LATE = 5
"""Updates more than were planned: a partial last batch, an epoch more."""


def run_code(source: str, schedule: Schedule, steps: int, history: list[float] = (), **yours) -> list[float]:
    """What the emitted code does, pasted into a plain script whose optimizer has another learning rate."""
    opt = optimizer(17.0)
    scope: dict = {"optimizer": opt} | yours
    exec(source, scope)
    scheduler, rates = scope["scheduler"], []
    for t in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if isinstance(scheduler, L.ReduceLROnPlateau):
            scheduler.step(history[t])
        else:
            scope.get("history", []).append(history[t] if t < len(history) else 0.0)
            scheduler.step()
    return rates


@pytest.mark.parametrize("mapping", EXPORTED, ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("warmup", WARM, ids=str)
def test_exported_code_gives_the_same_learning_rates_and_stays_at_its_end(mapping, warmup):
    schedule = load({**mapping, "warmup": warmup, "init_lr": 0.3})
    late = 0 if schedule.type == "plateau" else LATE  # which goes on with whatever the metric does
    for T in (1, 5, 10, 30, 98):
        history = [0.5 - 0.3 * math.cos(t) for t in range(T)]
        expected = [schedule.lr(t, T, history=history) for t in range(T + late)]
        close(run_code(code(schedule, T), schedule, T + late, history), expected)
        if T in (1, 5, 30):
            yours = {"loader": [None], "epochs": T}
            close(run_code(code(schedule), schedule, T + late, history, **yours), expected)


@pytest.mark.parametrize("mapping", EXPORTED, ids=lambda m: "-".join(map(str, m.values())))
@pytest.mark.parametrize("interval", ["update", "epoch"])
@pytest.mark.parametrize("warmup", [0.0, {"epochs": 2}, {"updates": 7}], ids=str)
def test_exported_code_has_the_length_of_the_training_that_it_is_pasted_into(mapping, interval, warmup):
    schedule = load({**mapping, "warmup": warmup, "interval": interval, "init_lr": 0.3})
    source, accumulated = code(schedule), "accumulation = 4"
    for batches, epochs in ((1, 1), (5, 3), (7, 10)):
        T = math.ceil(batches / 4) * epochs
        steps = epochs if interval == "epoch" or schedule.type == "plateau" else T
        expected = [schedule.lr(t * T // steps, T, epochs=epochs, history=[0.0] * epochs) for t in range(steps)]
        pasted = source.replace("accumulation = 1", accumulated)
        if schedule.type != "plateau":
            close(run_code(pasted, schedule, steps, loader=[None] * batches, epochs=epochs), expected)


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_exported_code_sets_the_learning_rate_of_every_param_group_and_keeps_their_ratios(kind):
    schedule, one = load({"type": kind, "init_lr": 0.3, "floor": 0.1}), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.02, 0.2, 0.0)]
    opt = torch.optim.SGD([*groups, {"params": [one]}], lr=0.1)
    L.LinearLR(opt, 0.01)  # an earlier scheduler, which has left its base and a rate of its own
    scope = {"optimizer": opt, "loader": range(4), "epochs": 5}
    exec(code(schedule), scope)
    rates = [group["lr"] for group in opt.param_groups]
    assert rates == pytest.approx([schedule.lr(0, 20, epochs=5) * ratio for ratio in (0.1, 1.0, 0.0, 0.5)])


def test_exported_code_sets_a_learning_rate_that_was_zero_and_one_that_is_a_tensor():
    schedule = load({"type": "cosine", "init_lr": 0.3})
    assert run_code(code(schedule, 4), schedule, 4) == schedule.lrs(4)
    for lr in (0.0, torch.tensor(0.5)):
        opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        exec(code(schedule, 4), {"optimizer": opt})
        assert float(opt.param_groups[0]["lr"]) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("mapping", "there", "gone"),
    [
        ({"type": "wsd"}, "return 1 - u", ["sqrt", "cos", "rho", "if shape"]),
        ({"type": "wsd", "shape": "1-sqrt"}, "return 1 - math.sqrt(u)", ["return 1 - u\n", "cos"]),
        ({"type": "sine"}, "math.sin(", ["cos", "cycles"]),
        ({"type": "exponential"}, "math.pow(0.01, t / T)", ["gamma", "epochs)", "None"]),
        ({"type": "cyclic"}, "return ramp\n", ["0.5 ** cycle", "pow"]),
        ({"type": "one_cycle"}, "math.cos", ["insert", "if False", "anneal =", " else "]),
        ({"type": "one_cycle", "three_phase": True, "anneal": "linear"}, "if top > 0:", ["cos"]),
        ({"type": "cosine_restarts"}, "length = T / 2\n", ["while", "t_0 is", "share"]),
        ({"type": "inverse_sqrt"}, "s = T / 10\n", ["timescale =", " or "]),
        ({"type": "triangular", "peak": 1.0}, "return 1.0", ["end ="]),
        ({"type": "cosine"}, "return 0.5 * (1 + math.cos(math.pi * t / T))", ["w = ", "if t < w", "D = ", "max("]),
    ],
)
def test_exported_code_has_no_branch_that_is_not_used(mapping, there, gone):
    body = code(load(mapping)).partition("def make_scheduler")[2].partition("bases =")[0]
    assert there in body
    assert [word for word in gone if word in body] == []


def test_a_staircase_is_exported_per_epoch():
    source = code(load({"type": "cosine", "interval": "epoch"}))
    assert "make_scheduler(optimizer, epochs=epochs)" in source
    assert "after every epoch" in source


def test_plateau_is_torchs_own_class():
    assert "return ReduceLROnPlateau(" in code(load({"type": "plateau"}))


def test_a_length_knows_its_json():
    assert [Length(0.5).to_json(), Length(3, "epochs").to_json()] == [0.5, {"epochs": 3}]
