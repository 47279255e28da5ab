"""The exported code in the libraries that people train with: the same learning rates as here."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runner.files.optimizers import OPTIMIZERS
from runner.files.sweep_file import Train
from runner.schedules import ScheduleError, load
from runner.schedules.codegen import LIBRARIES, code
from runner.schedules.zoo import TYPES

EPOCHS, UPDATES = 6, 5
SCHEDULES = [
    {"type": "cosine", "init_lr": 0.1, "warmup": {"epochs": 1}},
    {"type": "rex", "init_lr": 0.1, "warmup": 0.2},
    {"type": "wsd", "init_lr": 0.1, "cooldown": 0.4},
    {"type": "one_cycle", "init_lr": 0.1, "pct_start": 0.3},
    {"type": "step", "init_lr": 0.1, "step_size": {"epochs": 2}, "interval": "epoch"},
    {"type": "exponential", "init_lr": 0.1, "interval": "epoch", "warmup": {"epochs": 2}},
]


def network() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def rates(schedule) -> list[float]:
    return [schedule.lr(t, EPOCHS * UPDATES, epochs=EPOCHS) for t in range(EPOCHS * UPDATES)]


def made(schedule, library: str) -> dict:
    scope: dict = {}
    exec(code(schedule, EPOCHS * UPDATES, epochs=EPOCHS, library=library), scope)
    return scope


def sgd(model, schedule) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=schedule.init_lr)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("T", "epochs"), [(10, 3), (3, 10), (30, 6)])
def test_transformers_counts_epochs_as_training_here_does_when_they_do_not_divide_the_updates(T, epochs):
    schedule = load({"type": "step", "init_lr": 0.1, "step_size": 0.3, "gamma": 0.5, "interval": "epoch"})
    scope, optimizer, seen = {}, sgd(network(), schedule), []
    exec(code(schedule, T, epochs=epochs, library="transformers"), scope)
    scheduler = scope["make_scheduler"](optimizer)
    for _ in range(T):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert seen == pytest.approx(schedule.lrs(T, epochs=epochs))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({}, "SGD({}, lr=0.013, momentum=0.9, nesterov=True, weight_decay=0.0005)\n"),
        ({"optimizer": "adamw", "momentum": 0.0}, "AdamW({}, lr=0.013, weight_decay=0.0005)\n"),
        (None, "SGD({}, lr=0.013)  # or yours\n"),
    ],
    ids=["sgd", "adamw", "unknown"],
)
def test_the_code_names_the_optimizer_that_the_schedule_was_found_with_and_its_learning_rate(library, recipe, said):
    schedule = load({"type": "wsd", "init_lr": 0.013})
    given = None
    if recipe is not None:
        train = Train(epochs=6, weight_decay=5e-4, **recipe)
        found_with = OPTIMIZERS[train.optimizer]
        given = found_with.name, found_with.arguments(train.model_dump())
    source = code(schedule, 30, epochs=6, library=library, optimizer=given)
    whose = "self.parameters()" if library == "lightning" else "model.parameters()"
    assert f"optimizer = torch.optim.{said.format(whose)}" in source


@pytest.mark.parametrize(
    ("metric", "value", "sign"),
    [
        (("val/accuracy", "maximize"), "validation_accuracy", 1),
        (("val/loss", "minimize"), "-validation_loss", -1),
        (("off by\nmm", "minimize"), "-off_by_mm", -1),
    ],
)
def test_an_inlined_plateau_that_is_called_as_its_comment_says_gives_the_same_rates(metric, value, sign):
    schedule = load({"type": "plateau", "init_lr": 0.1, "patience": 0, "gamma": 0.5, "warmup": {"epochs": 1}})
    source = code(schedule, metric=metric)
    scope = {"optimizer": sgd(network(), schedule), "loader": range(3), "epochs": 6}
    use = f"# history.append({value})\n"
    assert f"scheduler.step() after every update; before the one that ends an epoch call\n{use}" in source
    exec(source, scope)
    accuracies, seen = [sign * n for n in (0.5, 0.6, 0.6, 0.6, 0.7, 0.7)], []
    for update in range(18):
        seen.append(scope["optimizer"].param_groups[0]["lr"])
        scope["optimizer"].step()
        if update % 3 == 2:
            scope["history"].append(sign * accuracies[update // 3])
        scope["scheduler"].step()
    assert seen == pytest.approx(schedule.lrs(18, epochs=6, history=[sign * a for a in accuracies]))


def test_plateaus_code_of_a_loss_waits_for_it_to_fall():
    schedule = load({"type": "plateau", "init_lr": 0.1, "patience": 0, "gamma": 0.5, "threshold": 0.05})
    sources = {
        library: code(schedule, library=library, metric=("val/loss", "minimize"))
        for library in LIBRARIES
        if library != "transformers"
    }
    assert "# call scheduler.step(validation_loss) after every epoch\n" in sources["torch"]
    assert '"monitor": "val_loss"' in sources["lightning"]
    assert "# its metric: the validation loss\n" in sources["timm"]
    losses = [0.9, 0.8, 0.78, 0.7, 0.9, 0.6]
    for source in sources.values():
        optimizer, seen = sgd(network(), schedule), []
        scope = {"optimizer": optimizer}
        exec(source, scope)
        scheduler = scope["make_scheduler"](optimizer)
        for loss in losses:
            seen.append(optimizer.param_groups[0]["lr"])
            scheduler.step(loss)
        assert seen == pytest.approx(schedule.lrs(6, history=[-loss for loss in losses]))
        assert seen == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025])
    with pytest.raises(ValueError, match="plateau needs the validation loss, for which transformers"):
        code(schedule, library="transformers", metric=("val/loss", "minimize"))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:The epoch parameter in")
@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: f"{s['type']}")
@pytest.mark.parametrize("library", [*LIBRARIES][1:])
def test_the_code_for_a_library_gives_the_same_rates_in_a_loop_that_calls_it_as_the_library_does(said, library):
    schedule, model, seen = load(said), network(), []
    scope = made(schedule, library)
    if library == "lightning":
        found = scope["configure_optimizers"](model)
        optimizer, scheduler, interval = (
            found["optimizer"],
            *(found["lr_scheduler"][k] for k in ("scheduler", "interval")),
        )
        ticks = scheduler.step
    else:
        optimizer = sgd(model, schedule)
        scheduler = scope["make_scheduler" if library == "transformers" else "Scheduler"](optimizer)
    for epoch in range(EPOCHS):
        for update in range(UPDATES):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if library == "transformers" or (library == "lightning" and interval == "step"):
                scheduler.step()
            elif library == "timm":
                scheduler.step_update(num_updates=epoch * UPDATES + update + 1, metric=0.5)
        if library == "timm":
            scheduler.step(epoch + 1, 0.5)
        elif library == "lightning" and interval == "epoch":
            ticks()
    assert seen == pytest.approx(rates(schedule), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: s["type"])
@pytest.mark.parametrize("by_updates", [True, False], ids=["step_update", "step"])
def test_a_training_that_timm_resumes_has_the_rates_of_one_that_was_not_interrupted(said, by_updates):
    """As in timm's train.py: the optimizer from the checkpoint, then a new scheduler that is told where it stands."""
    schedule, seen = load(said), []
    checkpoint = sgd(network(), schedule).state_dict()
    for start, end in ((0, 2), (2, EPOCHS)):
        optimizer = sgd(network(), schedule)
        optimizer.load_state_dict(checkpoint)
        scheduler = made(schedule, "timm")["Scheduler"](optimizer)
        if start and by_updates:
            scheduler.step_update(start * UPDATES)
        elif start:
            scheduler.step(start)
        for epoch in range(start, end):
            for update in range(UPDATES):
                seen.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step_update(num_updates=epoch * UPDATES + update + 1, metric=0.5)
            scheduler.step(epoch + 1, 0.5)
        checkpoint = optimizer.state_dict()
    assert seen == rates(schedule)


def test_an_epoch_of_timm_moves_nothing_where_nobody_said_how_many_updates_it_has():
    schedule = load({"type": "cosine", "init_lr": 0.1})
    optimizer, scope = sgd(network(), schedule), {}
    exec(code(schedule, 30, library="timm"), scope)
    scheduler = scope["Scheduler"](optimizer)
    scheduler.step_update(5)
    scheduler.step(1)
    assert optimizer.param_groups[0]["lr"] == schedule.lr(5, 30)


def test_plateau_goes_on_in_timm_with_the_state_that_it_kept():
    plateau, accuracies = load({"type": "plateau", "init_lr": 0.1, "patience": 1, "gamma": 0.5}), [0.5] * 6
    optimizer, seen = sgd(network(), plateau), []
    scheduler = made(plateau, "timm")["Scheduler"](optimizer)
    for epoch, accuracy in enumerate(accuracies):
        if epoch == 2:
            checkpoint = optimizer.state_dict(), scheduler.state_dict()
            optimizer = sgd(network(), plateau)
            optimizer.load_state_dict(checkpoint[0])
            scheduler = made(plateau, "timm")["Scheduler"](optimizer)
            scheduler.load_state_dict(checkpoint[1])
            scheduler.step(epoch)
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1, accuracy)
    assert seen == pytest.approx(plateau.lrs(6, history=accuracies))


def test_timms_scales_of_single_layers_are_kept():
    schedule, layers = load(SCHEDULES[0]), [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(2)]
    optimizer = torch.optim.SGD([layers[0], layers[1] | {"lr_scale": 0.5}], lr=schedule.init_lr)
    made(schedule, "timm")["Scheduler"](optimizer).step_update(9)
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert second == 0.5 * first == 0.5 * schedule.lr(9, EPOCHS * UPDATES, epochs=EPOCHS)


def test_plateau_watches_the_metric_where_a_library_has_one_and_is_refused_elsewhere():
    plateau = load({"type": "plateau", "init_lr": 0.1, "patience": 0, "gamma": 0.5})
    scope = made(plateau, "lightning")
    assert scope["configure_optimizers"](network())["lr_scheduler"]["monitor"] == "val_accuracy"
    optimizer = sgd(network(), plateau)
    scheduler = made(plateau, "timm")["Scheduler"](optimizer)
    for epoch, accuracy in enumerate([0.5, 0.5, 0.5]):
        scheduler.step(epoch + 1, accuracy)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)
    with pytest.raises(ValueError, match="transformers has no place"):
        code(plateau, 30, epochs=6, library="transformers")


LENGTHS = st.floats(0.01, 1) | st.builds(
    lambda unit, n: {unit: n}, st.sampled_from(["epochs", "updates"]), st.integers(1, 9)
)


def values(param):
    """What a parameter of the zoo may be."""
    if param.kind == "lengths":
        some = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(sorted)
    elif param.kind in ("choice", "flag"):
        some = st.sampled_from(param.choices or (True, False))
    elif param.kind == "length":
        some = LENGTHS
    elif param.integer:
        some = st.integers(max(1, int(param.low)), 5)
    else:
        some = st.floats(max(param.low, -5), min(param.high, 5))
    return some | st.none() if param.optional else some


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(sorted(set(TYPES) - {"plateau", "piecewise"})))
def test_the_code_of_any_schedule_gives_the_same_rates_in_any_library_and_stays_at_its_end(data, kind):
    free = {name: values(param) for name, param in TYPES[kind].params.items()}
    shared = {
        "interval": st.sampled_from(["update", "epoch"]), "clock": st.sampled_from(["prefix", "absolute"]),
        "floor": st.sampled_from([0.0, 0.2]), "warmup": LENGTHS | st.just(0.0),
    }  # fmt: skip
    try:
        schedule = load({"type": kind} | data.draw(st.fixed_dictionaries(shared, optional=free)))
    except ScheduleError:  # two parameters that exclude each other
        assume(False)
    batches, epochs = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    T, late = batches * epochs, 2 * batches
    expected = [schedule.lr(t, T, epochs=epochs) for t in range(T + late)]
    for library in ("torch", "transformers", "timm"):
        optimizer, source = torch.optim.SGD(network().parameters(), lr=17.0), code(schedule, library=library)
        scope, seen = {"optimizer": optimizer, "loader": range(batches), "epochs": epochs}, []
        exec(source, scope)
        asked = source.partition("def make_scheduler(")[2].partition(")")[0].split(", ")[1:]
        if library == "timm":
            move = scope["Scheduler"](optimizer, T=T, epochs=epochs).step_update
        elif library == "transformers":
            step = scope["make_scheduler"](
                optimizer, **{name: {"T": T, "epochs": epochs}[name] for name in asked}
            ).step
        else:
            step = scope["scheduler"].step
        for t in range(T + late):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if library == "timm":
                move(t + 1)
            elif library == "transformers" or schedule.interval == "update" or (t + 1) % batches == 0:
                step()
        assert seen == pytest.approx(expected, rel=1e-9, abs=1e-15), source


def test_the_json_of_the_best_loads_with_one_call(tmp_path):
    schedule = load(SCHEDULES[0])
    path: Path = tmp_path / "best_schedule.json"
    path.write_text(json.dumps(schedule.to_json()))
    assert load(path) == schedule


# --- the libraries themselves, where they are installed --------------------------------------------------------

BATCHES = 5
PER_UPDATE = [1, 2]  # of 5 batches, two to an update, the last makes one alone: all of these libraries do so


def pasted(schedule, library: str) -> dict:
    """The code that has its length from the training."""
    scope: dict = {}
    exec(code(schedule, library=library), scope)
    return scope


def as_planned(schedule, accumulated: int) -> list[float]:
    """The rates of every batch."""
    updates = -(-BATCHES // accumulated)
    rates = schedule.lrs(EPOCHS * updates, epochs=EPOCHS)
    return [rates[epoch * updates + batch // accumulated] for epoch in range(EPOCHS) for batch in range(BATCHES)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulated", PER_UPDATE)
@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: s["type"])
def test_in_lightning_itself(said, limit, accumulated, tmp_path):
    lightning = pytest.importorskip("lightning", reason="optional: pip install lightning")
    schedule, seen = load(said), []

    class Module(lightning.LightningModule):
        configure_optimizers = pasted(schedule, "lightning")["configure_optimizers"]

        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            seen.append(self.optimizers().param_groups[0]["lr"])
            return self.net(batch[0]).mean()

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(BATCHES, 1)), batch_size=1)
    steps = {"max_epochs": -1, "max_steps": EPOCHS * -(-BATCHES // accumulated)}
    lightning.Trainer(
        **(steps if limit == "steps" else {"max_epochs": EPOCHS}), accumulate_grad_batches=accumulated,
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(Module(), data)  # fmt: skip
    assert seen == pytest.approx(as_planned(schedule, accumulated), rel=1e-6, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulated", PER_UPDATE)
@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: s["type"])
def test_in_transformers_itself(said, limit, accumulated, tmp_path):
    transformers = pytest.importorskip("transformers", reason="optional: pip install transformers accelerate")
    pytest.importorskip("accelerate", reason="optional: pip install accelerate")
    schedule, seen = load(said), []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            seen.append(optimizer.param_groups[0]["lr"])
            return {"loss": self.net(x).mean()}

    class Trainer(transformers.Trainer):
        create_scheduler = pasted(schedule, "transformers")["create_scheduler"]

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=17.0)
    data = [{"x": torch.ones(1), "labels": torch.ones(1)} for _ in range(BATCHES)]
    steps = {"max_steps": EPOCHS * -(-BATCHES // accumulated)}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), **(steps if limit == "steps" else {"num_train_epochs": EPOCHS}),
        gradient_accumulation_steps=accumulated, per_device_train_batch_size=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    assert seen == pytest.approx(as_planned(schedule, accumulated), rel=1e-6, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: s["type"])
def test_in_an_accelerate_loop_that_follows_the_comment(said):
    accelerate = pytest.importorskip("accelerate", reason="optional: pip install accelerate")
    schedule, seen = load(said), []
    accelerator, model = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2), network()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(BATCHES, 1)), batch_size=1)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=17.0), data)
    scope = {"optimizer": optimizer, "loader": loader, "epochs": EPOCHS}
    exec(code(schedule).replace("accumulation = 1", "accumulation = 2"), scope)
    for _ in range(EPOCHS):
        for batch in loader:
            seen.append(optimizer.param_groups[0]["lr"])
            with accelerator.accumulate(model):
                accelerator.backward(model(batch[0]).mean())
                optimizer.step()
                if accelerator.sync_gradients and schedule.interval == "update":
                    scope["scheduler"].step()
        if schedule.interval == "epoch":
            scope["scheduler"].step()
    assert seen == pytest.approx(as_planned(schedule, 2), rel=1e-6, abs=1e-12)


def test_timms_own_schedulers_have_the_methods_that_ours_has():
    timm = pytest.importorskip("timm.scheduler", reason="optional: pip install timm")
    ours = pasted(load(SCHEDULES[0]), "timm")["Scheduler"]
    for method in ("step", "step_update", "state_dict", "load_state_dict"):
        assert callable(getattr(timm.CosineLRScheduler, method))
        assert callable(getattr(ours, method))


@pytest.mark.parametrize("said", SCHEDULES, ids=lambda s: s["type"])
def test_timm_gives_the_length_when_it_makes_the_scheduler(said):
    schedule, optimizer, seen = load(said), torch.optim.SGD(network().parameters(), lr=17.0), []
    scheduler = pasted(schedule, "timm")["Scheduler"](optimizer, T=EPOCHS * UPDATES, epochs=EPOCHS)
    for update in range(EPOCHS * UPDATES):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(num_updates=update + 1)
        if (update + 1) % UPDATES == 0:
            scheduler.step((update + 1) // UPDATES)
    assert seen == pytest.approx(rates(schedule), rel=1e-9)


def test_an_unknown_library_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="unknown library 'tim'; did you mean 'timm'"):
        code(load({"type": "cosine"}), 10, library="tim")
