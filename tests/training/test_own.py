"""A training of one's own: the learning rates that it really used, and going on from its state."""

import importlib
import math
import random
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from runner import sweep
from runner.files.sweep_file import Objective, OwnTraining
from runner.files.trial import OwnConfig, Record
from runner.lanes import worker
from runner.schedules import load
from runner.schedules.schedule import lambda_lr
from runner.study.study import load_study
from runner.tracking.tracker import Tracker
from runner.training.checkpoint import pack, unpack
from runner.training.job import Report
from runner.training.own import train
from runner.training.own_state import plain, restored
from runner.training.plan import OwnEpoch, Plan

from ..conftest import HERE, children, client
from ..readme import ROOT

COSINE = {"type": "cosine", "init_lr": 0.1, "warmup": 0.2}
PLATEAU = {"type": "plateau", "init_lr": 0.1, "patience": 0, "gamma": 0.5}
EPOCHS, UPDATES = 4, 5


def body(job):
    """What a sweep is told to call."""
    return training(job)


def training(job):
    """What a test has put in its place."""
    raise AssertionError("no test has")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Run a function as a training of one's own; all its epochs, or those after ``state``."""

    def run(function, schedule=COSINE, epochs=EPOCHS, state=None, first=None, **recipe):
        monkeypatch.setattr(sys.modules[__name__], "training", function)
        given = config(tmp_path, schedule, epochs, **recipe)
        found = []
        for epoch in train(given, "cpu", state):
            found.append(replace(epoch, state=None))
            if len(found) == first:
                return pack(given, epoch.state())
        return found

    return run


def config(folder: Path, schedule=COSINE, epochs: int = EPOCHS, **recipe) -> OwnConfig:
    if "command" not in recipe:
        recipe["function"] = f"{__name__}.body"
    judged_by = Objective(metric="val/x", direction="minimize")
    told = OwnTraining(epochs=epochs, **recipe)
    return OwnConfig(told, load(schedule), judged_by, (f"{__name__}.",), folder / "files", folder / "log")


def planned(schedule=COSINE, updates: int = UPDATES, epochs: int = EPOCHS, history=()) -> list[float]:
    return load(schedule).lrs(updates * epochs, epochs=epochs, history=history)


def used(epochs: list[OwnEpoch], schedule=COSINE) -> list[float]:
    """What MLflow gets as the learning rate of every update."""
    facts = [epoch.facts() for epoch in epochs]
    apart = {n: f[f"lrs:{n}"] for n, f in enumerate(facts) if f"lrs:{n}" in f}
    told = {"updates": facts[0].get("updates"), "used": apart, "train": {"epochs": len(epochs)}}
    values = [{**epoch.metrics(), "epoch": epoch.number} for epoch in epochs]
    record = Record(0, "x", load(schedule).to_json(), {}, "complete", epochs=values, **told)
    return [lr for _, lr in Tracker._rates(Told(), record)]


class Told:
    """The little of a tracker that this needs: its sweep, and how many updates are drawn where nobody knows."""

    updates = 100

    class sweep:
        objective = Objective(metric="val/x", direction="minimize")
        train = OwnTraining(function="x", epochs=EPOCHS)
        schedule = staticmethod(load)


def network() -> nn.Module:
    return nn.Linear(3, 1)


def update(net: nn.Module, optimizer, seen: list | None = None) -> None:
    """One update of the weights; notes its learning rate."""
    optimizer.zero_grad()
    net(torch.randn(4, 3)).square().mean().backward()
    if seen is not None:
        seen.append(float(optimizer.param_groups[0]["lr"]))
    optimizer.step()


def loop(job, *, said=UPDATES, made=UPDATES, make=torch.optim.SGD, seen=None, x=lambda epoch: 1.0, **options):
    """The plain training loop, with a scheduler to step after every update."""
    net = network()
    optimizer = make(net.parameters(), **options)
    scheduler = job.scheduler(optimizer, said)
    for epoch in range(job.epochs):
        for _ in range(made if isinstance(made, int) else made[epoch]):
            update(net, optimizer, seen)
            scheduler.step()
        yield {"val/x": x(epoch)}


# --- the learning rate that was really used ---------------------------------------------------------------------

KINDS = [COSINE, {"type": "wsd", "cooldown": 0.4}, {"type": "step", "step_size": {"epochs": 1}, "interval": "epoch"}]


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s["type"])
def test_a_loop_that_steps_the_scheduler_after_every_update_uses_exactly_the_schedule(own, schedule):
    seen = []
    epochs = own(lambda job: loop(job, seen=seen), schedule)
    assert seen == planned(schedule) == used(epochs, schedule)
    assert [(e.remark, e.used, e.updates) for e in epochs] == [(None, None, UPDATES)] * EPOCHS
    assert [e.lr for e in epochs] == planned(schedule)[::UPDATES]


def test_of_several_groups_the_highest_gets_init_lr_and_the_others_keep_their_ratios(own):
    seen = []

    def several(job):
        net = nn.Sequential(network(), nn.Linear(1, 3), network())
        groups = [{"params": net[i].parameters(), "lr": lr} for i, lr in enumerate((3e-4, 3e-3, 0.0))]
        optimizer = torch.optim.AdamW(groups)
        scheduler = job.scheduler(optimizer, UPDATES)
        for _ in range(job.epochs):
            for _ in range(UPDATES):
                seen.append([group["lr"] for group in optimizer.param_groups])
                update(net, optimizer)
                scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(several)
    assert [lr for _, lr, _ in seen] == pytest.approx(planned())
    assert [lr for lr, _, _ in seen] == pytest.approx([lr / 10 for lr in planned()])
    assert {lr for _, _, lr in seen} == {0.0}
    assert epochs[-1].remark is None
    assert used(epochs) == planned()


def once_an_epoch(job):
    net = network()
    optimizer = torch.optim.SGD(net.parameters())
    scheduler = job.scheduler(optimizer, UPDATES)
    for _ in range(job.epochs):
        for _ in range(UPDATES):
            update(net, optimizer)
        scheduler.step()
        yield {"val/x": 1.0}


def a_rate_of_its_own(job):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for _ in range(job.epochs):
        for _ in range(UPDATES):
            update(net, optimizer)
        yield {"val/x": 1.0}


def a_hand_on_the_rate(job):
    net = network()
    optimizer = torch.optim.SGD(net.parameters())
    scheduler = job.scheduler(optimizer, UPDATES)
    for t in range(job.epochs * UPDATES):
        if t == 7:
            optimizer.param_groups[0]["lr"] = 0.5
        update(net, optimizer)
        scheduler.step()
        if t % UPDATES == UPDATES - 1:
            yield {"val/x": 1.0}


def another_optimizer(job):
    """As Transformers' Trainer does with one of its own where it is given none."""
    job.scheduler(torch.optim.SGD(network().parameters()), UPDATES)
    yield from a_rate_of_its_own(job)


AFTER = "the schedule ends after the training: it is 20 updates long, and its scheduler came to update"
BEFORE = AFTER.replace("after", "before")
NOT_IT = "update 0 was made at lr 0.02, where the schedule has 0.025 (20 updates differ)"


@pytest.mark.parametrize(
    ("function", "said", "rates"),
    [
        (lambda job: loop(job, made=4), f"{AFTER} 16", planned()[:16]),
        (lambda job: loop(job, made=6), f"{BEFORE} 24", [*planned(), 0.0, 0.0, 0.0, 0.0]),
        (lambda job: loop(job, made=(5, 5, 5, 3)), f"{AFTER} 18", planned()[:18]),
        (once_an_epoch, f"{AFTER} 4", [lr for lr in planned()[:4] for _ in range(UPDATES)]),
        (a_rate_of_its_own, NOT_IT, [0.02] * 20),
        (another_optimizer, NOT_IT, [0.02] * 20),
        (
            a_hand_on_the_rate,
            f"update 7 was made at lr 0.5, where the schedule has {planned()[7]:.4g}",
            [*planned()[:7], 0.5, *planned()[8:]],
        ),
    ],
    ids=["fewer", "more", "fewer at last", "stepped once an epoch", "its own", "another optimizer", "one by hand"],
)
def test_what_is_not_the_schedule_is_said_with_both_numbers_and_what_was_used_is_kept(own, function, said, rates):
    epochs = own(function)
    assert epochs[-1].remark == said
    assert used(epochs) == pytest.approx(rates, abs=1e-12)


def test_epochs_of_different_lengths_are_right_where_they_are_as_many_updates_as_was_said(own):
    seen = []
    epochs = own(lambda job: loop(job, made=(4, 6, 3, 7), seen=seen))
    assert seen == planned() == used(epochs)
    assert epochs[-1].remark is None
    assert [sum(n for n, _ in e.used) for e in epochs] == [4, 6, 3, 7]


def by_hand(job, made=(UPDATES,) * EPOCHS, T=None, dtype=float):
    net, t = network(), 0
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for n in made:
        for _ in range(n):
            optimizer.param_groups[0]["lr"] = dtype(job.schedule.lr(t, T or sum(made), epochs=job.epochs))
            update(net, optimizer)
            t += 1
        yield {"val/x": 1.0}


def test_who_sets_the_rate_by_hand_is_right_without_a_scheduler(own):
    for schedule in KINDS:
        for dtype in (float, np.float32):  # no false alarm for rounding
            epochs = own(lambda job, dtype=dtype: by_hand(job, dtype=dtype), schedule)
            assert (epochs[-1].remark, epochs[-1].used) == (None, None)


def test_a_cosine_that_was_computed_in_single_precision_is_no_other_schedule(own):
    def rough(job):
        net, T = network(), 1000 * job.epochs
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        rates = 0.1 * 0.5 * (1 + torch.cos(torch.arange(T, dtype=torch.float32) * (math.pi / T)))
        for t, lr in enumerate(rates):
            optimizer.param_groups[0]["lr"] = float(lr)
            optimizer.step()
            if t % 1000 == 999:
                yield {"val/x": 1.0}

    assert own(rough, COSINE | {"warmup": 0})[-1].remark is None


def test_by_hand_with_another_number_of_updates_in_an_epoch_is_compared_only_where_somebody_said_it(own):
    unsaid = own(lambda job: by_hand(job, (5, 5, 5, 3)))
    wrong = "which learning rates it was to use is not known: epoch 3 made 3 updates, and the first one 5"
    assert unsaid[-1].remark == wrong
    assert used(unsaid) == load(COSINE).lrs(18, epochs=EPOCHS)
    said = own(lambda job: by_hand(job, (5, 5, 5, 3), T=20), updates_per_epoch=5)
    assert said[-1].remark == "the schedule ends after the training: it is 20 updates long, and 18 were made"


def test_a_file_and_a_job_that_do_not_agree_on_the_number_of_updates(own):
    epochs = own(loop, updates_per_epoch=8)
    assert epochs[-1].remark == "it has 5 updates in an epoch, where the sweep file says updates_per_epoch: 8"
    assert used(epochs) == planned()
    assert own(loop, updates_per_epoch=5)[-1].remark is None


def test_an_epoch_that_was_not_seen_does_not_shift_the_others(tmp_path):
    """A script that loads torch late, and has a scheduler of its own, is seen from its first report on."""
    reports = [Report({"val/x": 1.0}), *[Report({"val/x": 1.0}, planned()[n : n + 5]) for n in (5, 10, 15)]]
    plan = Plan(config(tmp_path), [], {})
    epochs = [plan.epoch(n, report, 1.0) for n, report in enumerate(reports)]
    unknown = "it did not say which learning rate it used in epoch 0: the schedule's is shown"
    assert [e.remark for e in epochs] == [unknown] * EPOCHS
    assert [e.used for e in epochs] == [None] * EPOCHS
    assert epochs[-1].updates == UPDATES


def test_two_rates_that_are_nearly_the_same_are_told_apart(tmp_path):
    plan = Plan(config(tmp_path, {"type": "constant", "init_lr": 0.1}), [], {})
    said = plan.epoch(0, Report({"val/x": 1.0}, [0.1, 0.100004]), 1.0).remark
    assert said == "update 1 was made at lr 0.100004, where the schedule has 0.1"


def test_with_accumulated_gradients_the_scheduler_counts_updates_and_not_batches(own):
    def accumulating(job):
        net = network()
        optimizer = torch.optim.SGD(net.parameters())
        scheduler = job.scheduler(optimizer, 3)
        for _ in range(job.epochs):
            for batch in range(9):
                net(torch.randn(4, 3)).mean().backward()
                if batch % 3 == 2:
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(accumulating)
    assert epochs[-1].remark is None
    assert used(epochs) == planned(updates=3)


def test_updates_that_a_gradient_scaler_skips_are_no_false_alarm(own):
    """Two of the first batches overflow; the scheduler is stepped whatever the scaler does, as is usual."""
    seen = []

    def mixed(job):
        net = network()
        optimizer = torch.optim.SGD(net.parameters())
        scaler, scheduler = torch.amp.GradScaler("cpu"), job.scheduler(optimizer, UPDATES)
        for epoch in range(job.epochs):
            for i in range(UPDATES):
                optimizer.zero_grad()
                loss = net(torch.randn(4, 3)).square().mean() * (math.inf if (epoch, i) in ((0, 1), (1, 4)) else 1)
                scaler.scale(loss).backward()
                seen.append(optimizer.param_groups[0]["lr"])
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(mixed)
    assert seen == planned()
    assert epochs[-1].remark is None
    assert used(epochs) == [lr for t, lr in enumerate(planned()) if t not in (1, 9)]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_of_two_optimizers_the_one_that_was_given_to_the_job_is_read(own):
    def adversarial(job):
        one, two = network(), network()
        judge, maker = torch.optim.Adam(one.parameters(), lr=4e-4), torch.optim.Adam(two.parameters())
        scheduler = job.scheduler(maker, UPDATES)
        for _ in range(job.epochs):
            for _ in range(UPDATES):
                update(one, judge), update(one, judge), update(two, maker)
                scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(adversarial)
    assert (epochs[-1].remark, used(epochs)) == (None, planned())


@pytest.mark.parametrize("fused", [{}, {"foreach": False}, {"fused": True}], ids=str)
def test_a_learning_rate_that_is_a_tensor_stays_that_tensor(own, fused):
    rates = []

    def watched(job):
        rate = torch.tensor(1.0)
        optimizer = torch.optim.Adam(network().parameters(), lr=rate, **fused)
        scheduler = job.scheduler(optimizer, UPDATES)
        for _ in range(job.epochs):
            for _ in range(UPDATES):
                optimizer.step()
                rates.append(float(rate))
                scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(watched)
    assert rates == pytest.approx(planned())
    assert (epochs[-1].remark, used(epochs)) == (None, planned())


@pytest.mark.filterwarnings("ignore")
def test_the_updates_of_a_compiled_optimizer_are_seen(own):
    def compiled(job):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(1.0))
        step = torch.compile(lambda: optimizer.step(), backend="eager")
        scheduler = job.scheduler(optimizer, UPDATES)
        for _ in range(job.epochs):
            for _ in range(UPDATES):
                net(torch.randn(4, 3)).mean().backward()
                step()
                scheduler.step()
            yield {"val/x": 1.0}

    epochs = own(compiled)
    assert (epochs[-1].remark, used(epochs)) == (None, planned())


@pytest.mark.parametrize("name", ["lamb", "adafactorbv", "lion", "lookahead_momentum"])
def test_an_optimizer_of_timms_is_one_of_torchs(own, name):
    create = pytest.importorskip("timm.optim").create_optimizer_v2

    def make(parameters):
        return create(list(parameters), opt=name, lr=0.05)

    epochs = own(lambda job: loop(job, make=make))
    assert (epochs[-1].remark, used(epochs)) == (None, planned())


def test_adafactor_of_transformers_is_one_of_torchs_where_it_has_a_rate_to_set(own):
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    epochs = own(lambda job: loop(job, make=adafactor, lr=1.0, relative_step=False, scale_parameter=False))
    assert (epochs[-1].remark, used(epochs)) == (None, planned())
    with pytest.raises(Exception, match="the optimizer has no learning rate that can be set"):
        own(lambda job: loop(job, make=adafactor))  # which follows a rule of its own


def test_a_training_without_an_optimizer_of_torchs_says_its_rate(own):
    def says(job, rate):
        for epoch in range(job.epochs):
            yield {"val/x": 1.0} | ({} if rate is None else {"lr": rate(job, epoch)})

    right = own(lambda job: says(job, lambda job, epoch: job.schedule.lr(epoch, job.epochs)))
    assert [(e.remark, e.used) for e in right] == [(None, None)] * EPOCHS
    middle = own(lambda job: says(job, lambda job, epoch: job.schedule.lr(100 * epoch + 50, 100 * job.epochs)))
    assert middle[-1].remark is None
    wrong = own(lambda job: says(job, lambda job, epoch: 0.5))
    first = "epoch 0 was trained at lr 0.5, where the schedule has 0.00125 to 0.1 (4 epochs differ)"
    assert wrong[-1].remark == first
    assert set(used(wrong)) == {0.5}
    constant = own(lambda job: says(job, lambda job, epoch: 0.5), {"type": "constant", "init_lr": 0.1})
    assert constant[0].remark == "epoch 0 was trained at lr 0.5, where the schedule has 0.1"
    silent = own(lambda job: says(job, None))
    assert silent[-1].remark == "it did not say which learning rate it used in epoch 0: the schedule's is shown"


@pytest.mark.parametrize("early", [False, True], ids=["metric, then step", "step, then metric"])
def test_plateau_follows_the_objective_as_torchs_own_does(own, early):
    losses, seen, wanted = [0.9, 0.8, 0.85, 0.7, 0.75, 0.71, 0.72, 0.5], [], []

    def plateau(job):
        net = network()
        optimizer = torch.optim.SGD(net.parameters())
        scheduler = job.scheduler(optimizer, UPDATES)
        for epoch in range(job.epochs):
            for i in range(UPDATES):
                update(net, optimizer, seen if i else None)
                if not early or i < UPDATES - 1:
                    scheduler.step()
            yield {"val/x": losses[epoch]}
            if early:
                scheduler.step()

    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e-9)
    for loss in losses:
        wanted.append(optimizer.param_groups[0]["lr"])
        theirs.step(loss)
    schedule = PLATEAU | {"threshold": 1e-9}
    epochs = own(plateau, schedule, epochs=len(losses))
    assert len(set(wanted)) > 3
    assert [e.lr for e in epochs] == pytest.approx(wanted)
    assert seen == pytest.approx([lr for lr in wanted for _ in range(UPDATES - 1)])
    assert epochs[-1].remark is None
    assert epochs[-1].used is None


def test_a_scheduler_that_begins_in_the_middle_goes_on_as_one_that_was_stepped_there():
    schedule = load(COSINE)
    optimizers = [torch.optim.SGD(network().parameters(), lr=0.1) for _ in range(2)]
    stepped = lambda_lr(optimizers[0], schedule, 20)
    for _ in range(7):
        optimizers[0].step()
        stepped.step()
    begun = lambda_lr(optimizers[1], schedule, 20, done=7)
    for _ in range(20):
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"]
        for optimizer, scheduler in zip(optimizers, (stepped, begun), strict=True):
            optimizer.step()
            scheduler.step()


# --- what others train with -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prepared", [False, True], ids=["all at once", "a prepared optimizer"])
def test_accelerates_optimizer_and_scheduler_are_followed(own, prepared):
    accelerate = pytest.importorskip("accelerate")
    seen = []

    def accelerated(job):
        helper = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net, loader = network(), torch.utils.data.DataLoader(torch.randn(40, 3), batch_size=8)
        optimizer, another = torch.optim.Adam(net.parameters()), torch.optim.SGD(network().parameters(), lr=3.0)
        if prepared:
            net, optimizer, loader = helper.prepare(net, optimizer, loader)
            scheduler = helper.prepare(job.scheduler(optimizer, 3))
        else:
            net, optimizer, loader, scheduler = helper.prepare(net, optimizer, loader, job.scheduler(optimizer, 3))
        for _ in range(job.epochs):
            for batch in loader:
                with helper.accumulate(net):
                    another.step()
                    helper.backward(net(batch).mean())
                    if helper.sync_gradients:
                        seen.append(optimizer.param_groups[0]["lr"])
                    optimizer.step(), scheduler.step(), optimizer.zero_grad()
            yield {"val/x": 1.0}

    epochs = own(accelerated)
    assert epochs[-1].remark is None
    assert seen == used(epochs) == planned(updates=3)


def lightning_fit(job, lightning, said: int, accumulated: int, keep: bool = False, results: list | None = None):
    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def training_step(self, batch, _):
            return self.layers(batch).square().mean()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), momentum=0.9)
            return [optimizer], [{"scheduler": job.scheduler(optimizer, said), "interval": "step"}]

        def on_train_epoch_end(self):
            state = None
            if keep:
                state = {"file": f"{self.current_epoch}.ckpt"}
                self.trainer.save_checkpoint(job.folder / state["file"])
            job.report({"val/x": float(self.layers.weight.detach().double().sum())}, state)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        max_epochs=job.epochs, accelerator="cpu", default_root_dir=job.folder, accumulate_grad_batches=accumulated,
        enable_checkpointing=False, **quiet,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), 8)
    trainer.fit(Net(), loader, ckpt_path=job.folder / job.state["file"] if job.state else None)


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_accumulated_batches_counts_its_updates(own):
    lightning = pytest.importorskip("lightning")
    epochs = own(lambda job: lightning_fit(job, lightning, 3, 2))
    assert (epochs[-1].remark, used(epochs)) == (None, planned(updates=3))
    epochs = own(lambda job: lightning_fit(job, lightning, 5, 2))
    said = "the schedule ends after the training: it is 20 updates long, and its scheduler came to update 12"
    assert epochs[-1].remark == said
    assert used(epochs) == planned()[:12]


def trainer_fit(job, transformers, said: int, given: bool = True, keep: bool = False):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x, labels):
            return {"loss": (self.layers(x) - labels).square().mean(), "logits": labels}

    class Report(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **_):
            self.measured = {"val/x": metrics["eval_loss"]}
            if not keep:
                job.report(self.measured)

        def on_save(self, args, state, control, **_):
            job.report(self.measured, {"file": f"checkpoint-{state.global_step}"})

    data = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(40)]
    model, quiet = Net(), {"report_to": "none", "disable_tqdm": True, "save_strategy": "epoch" if keep else "no"}
    args = transformers.TrainingArguments(
        str(job.folder), num_train_epochs=job.epochs, seed=job.seed, eval_strategy="epoch", use_cpu=True,
        gradient_accumulation_steps=2, **quiet,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    optimizers = (optimizer, job.scheduler(optimizer, said)) if given else (None, None)
    more = {"callbacks": [Report()], "optimizers": optimizers}
    trainer = transformers.Trainer(model, args, train_dataset=data, eval_dataset=data, **more)
    trainer.train(resume_from_checkpoint=str(job.folder / job.state["file"]) if job.state else None)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_counts_its_updates_and_its_own_schedule_is_noticed(own):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    epochs = own(lambda job: trainer_fit(job, transformers, 3))
    assert (epochs[-1].remark, used(epochs)) == (None, planned(updates=3))
    epochs = own(lambda job: trainer_fit(job, transformers, 3, given=False))
    linear = [5e-5 * (1 - t / 12) for t in range(12)]
    assert used(epochs) == pytest.approx(linear)
    assert epochs[-1].remark == "update 0 was made at lr 5e-05, where the schedule has 0.05 (12 updates differ)"


# --- going on ---------------------------------------------------------------------------------------------------


def resumable(job, *, form="yields", restores=True, first=True, momentum=0.9, made=UPDATES, results=None):
    """A training that goes on from its state, in each of the ways in which one may be written."""
    net = network()
    optimizer, epoch = torch.optim.SGD(net.parameters(), momentum=momentum), 0
    if job.state and not first:
        optimizer.load_state_dict(job.state["optimizer"])
    scheduler, draws = job.scheduler(optimizer, UPDATES), np.random.default_rng(job.seed)
    weights = np.ones(3, dtype=np.float32)
    if job.state is not None:
        net.load_state_dict(job.state["net"])
        if first:
            optimizer.load_state_dict(job.state["optimizer"])
        if restores:
            scheduler.load_state_dict(job.state["scheduler"])
        torch.set_rng_state(job.state["torch"])
        random.setstate(job.state["python"])
        draws.bit_generator.state, weights, epoch = job.state["numpy"], job.state["weights"], job.state["epoch"]
    for number in range(epoch, job.epochs):
        for _ in range(made):
            update(net, optimizer, results)
            weights = weights * np.float32(draws.random())
            scheduler.step()
        measured = (
            net.weight.detach().double().sum() + weights.sum() + random.random() + 3 * number
        )  # which gets worse

        def state(number=number, weights=weights):
            return {
                "net": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
                "torch": torch.get_rng_state(), "python": random.getstate(), "numpy": draws.bit_generator.state,
                "weights": weights, "epoch": np.int64(number + 1),
            }  # fmt: skip

        if form == "yields":
            yield {"val/x": measured}, state()
        else:
            job.report({"val/x": measured}, state)


def reports(job, **options):
    for _ in resumable(job, form="reports", **options):
        pass


def result(epochs: list[OwnEpoch]) -> list[OwnEpoch]:
    return [replace(epoch, seconds=0.0, keep=False) for epoch in epochs]


@pytest.mark.parametrize("first", [True, False], ids=["scheduler first", "optimizer's state first"])
@pytest.mark.parametrize("restores", [True, False], ids=["restored", "not restored"])
@pytest.mark.parametrize("schedule", [COSINE, PLATEAU], ids=["cosine", "plateau"])
@pytest.mark.parametrize("function", [resumable, reports])
def test_a_function_that_goes_on_equals_one_that_was_not_interrupted_bit_for_bit(
    own, tmp_path, function, schedule, restores, first
):
    def told(job):
        return function(job, restores=restores, first=first)

    whole = own(told, schedule)
    assert whole[-1].remark is None
    assert schedule is COSINE or [e.lr for e in whole] == [0.1, 0.1, 0.05, 0.025]
    for n in range(1, EPOCHS):
        packed = own(told, schedule, first=n)
        resumed = own(told, schedule, state=unpack(packed, config(tmp_path, schedule)))
        assert result(resumed) == result(whole), n


@pytest.mark.parametrize("function", [lambda job: resumable(job, made=4, restores=False), a_rate_of_its_own])
def test_what_was_not_the_schedule_is_said_alike_of_a_training_that_went_on(own, tmp_path, function):
    def told(job):
        for n, item in enumerate(function(job), job.epoch):
            yield item if isinstance(item, tuple) else (item, {"epoch": n})
            if n + 1 == job.epochs:
                return

    whole = own(told)
    assert whole[-1].remark
    for n in range(1, EPOCHS):
        resumed = own(told, state=unpack(own(told, first=n), config(tmp_path)))
        assert result(resumed) == result(whole), n


SCRIPTS = {
    "plain": """
from runner.job import job
x = job.state["x"] if job.state else job.seed + 1.0
for epoch in range(job.epoch, job.epochs):
    for t in range(5 * epoch, 5 * epoch + 5):
        x -= job.schedule.lr(t, 5 * job.epochs, epochs=job.epochs) * x
    job.report({"val/x": x, "lr": job.schedule.lr(5 * epoch, 5 * job.epochs)}, {"x": x})
""",
    "torch": """
from runner.job import job
job  # before torch is there
import torch
net = torch.nn.Linear(3, 1)
net.load_state_dict({"weight": torch.full((1, 3), 0.1), "bias": torch.zeros(1)})
optimizer = torch.optim.SGD(net.parameters())
if job.state:
    net.load_state_dict(torch.load(job.folder / job.state["file"]))
scheduler = job.scheduler(optimizer, 5)
for epoch in range(job.epoch, job.epochs):
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    torch.save(net.state_dict(), job.folder / f"{epoch}.pt")
    job.report({"val/x": float(net.weight.double().sum())}, {"file": f"{epoch}.pt"})
""",
}


@pytest.mark.parametrize("name", ["plain", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_script_that_goes_on_equals_one_that_was_not_interrupted_bit_for_bit(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "script.py"
    script.write_text(SCRIPTS[name])
    given = config(tmp_path, epochs=3, command=[sys.executable, str(script)], updates_per_epoch=5)
    whole, packed = [], []
    for epoch in train(given, "cpu"):
        packed.append(pack(given, epoch.state()))
        whole.append(replace(epoch, state=None))
    assert (whole[-1].remark, used(whole)) == (None, planned(epochs=3))
    resumed = [replace(e, state=None) for e in train(given, "cpu", unpack(packed[1], given))]
    assert result(resumed) == result(whole)


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_from_its_own_checkpoint_in_the_jobs_folder(own, tmp_path):
    lightning = pytest.importorskip("lightning")

    def told(job):
        return lightning_fit(job, lightning, 5, 1, keep=True)

    whole = own(told)
    assert whole[-1].remark is None
    for n in (1, 3):
        resumed = own(told, state=unpack(own(told, first=n), config(tmp_path)))
        assert result(resumed) == result(whole), n


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", [COSINE, PLATEAU], ids=["cosine", "plateau"])
def test_the_trainer_of_transformers_goes_on_from_its_own_checkpoint_in_the_jobs_folder(own, tmp_path, schedule):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def told(job):
        return trainer_fit(job, transformers, 3, keep=True)

    whole = own(told, schedule)
    assert whole[-1].remark is None
    resumed = own(told, schedule, state=unpack(own(told, schedule, first=2), config(tmp_path, schedule)))
    assert result(resumed) == result(whole)


class Mine:
    """What ``torch.load(weights_only=True)`` refuses."""


def test_a_state_that_cannot_be_kept_is_said_once_and_the_training_goes_on(own):
    def holds(job, form):
        for _ in range(job.epochs):
            state = {"net": network().state_dict(), "sampler": [0, Mine()]}
            yield {"val/x": 1.0, "lr": 0.1}, state if form == "mapping" else lambda state=state: state

    wrong = "its state was not kept, and it cannot be resumed: state['sampler'][1] is a "
    epochs = own(lambda job: holds(job, "mapping"), {"type": "constant", "init_lr": 0.1})
    assert [e.remark for e in epochs] == [f"{wrong}{__name__}.Mine"] * EPOCHS
    assert not any(e.keep for e in epochs)
    with pytest.raises(Exception, match=r"state\['sampler'\]\[1\] is a"):
        own(lambda job: holds(job, "function"), {"type": "constant", "init_lr": 0.1}, first=1)


def test_a_state_that_is_given_now_and_then_is_kept_with_its_own_epoch_or_not_at_all(own, tmp_path, monkeypatch):
    """The tensors in it are those of the training, which go on changing."""

    def rarely(job):
        for metrics, state in resumable(job):
            yield (metrics, state) if state["epoch"] % 2 == 0 else metrics

    whole, packed = own(rarely), []
    given = config(tmp_path)
    worker.begin(given, "cpu")
    for _ in range(2):
        packed.append(worker.save())
        worker.advance()
    packed.append(worker.save())
    assert (packed[0], packed[2]) == (None, None)
    assert result(own(rarely, state=unpack(packed[1], given))) == result(whole)


def test_a_function_whose_state_cannot_be_kept_says_so_with_the_next_epoch(tmp_path, monkeypatch):
    def holds(job):
        for _ in range(job.epochs):
            yield {"val/x": 1.0, "lr": 0.1}, lambda: {"sampler": Mine()}

    monkeypatch.setattr(sys.modules[__name__], "training", holds)
    given, remarks = config(tmp_path, {"type": "constant", "init_lr": 0.1}), []
    for epoch in train(given, "cpu"):
        remarks.append(epoch.remark)
        with pytest.raises(Exception, match="Mine"):
            epoch.state()
    wrong = f"its state was not kept, and it cannot be resumed: state['sampler'] is a {__name__}.Mine"
    assert remarks == [None] + [wrong] * (EPOCHS - 1)


def test_numpys_arrays_and_numbers_come_back_as_they_were(tmp_path):
    values = {
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "backwards": np.arange(3)[::-1],
        "point": np.array(2.5),
        "counts": np.array([1, 2], dtype=np.uint32),
        "number": np.float32(0.1),
        "truth": np.bool_(True),
        "whole": np.int64(7),
        "legacy": np.random.RandomState(3).get_state(),
        ("a", 1): [{"deep": (np.float64(0.1), None)}],
    }
    given = config(tmp_path)
    found = restored(unpack(pack(given, {"own": plain(values)}), given)["own"])
    assert list(found) == list(values)
    for key, value in values.items():
        if isinstance(value, (np.ndarray, np.generic)):
            assert type(found[key]) is type(value)
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value)
    assert found["fortran"].flags.f_contiguous
    assert found["legacy"][0] == "MT19937"
    np.testing.assert_array_equal(found["legacy"][1], values["legacy"][1])
    assert found["a", 1] == [{"deep": (0.1, None)}]
    kept = network().state_dict()
    assert plain(kept) is kept  # with the versions that it has beside its items


# --- the examples, as they are shown -----------------------------------------------------------------------------


def section(page: str, title: str) -> str:
    return (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


README = section("README.md", "Your own training")
EXAMPLES = {
    re.search(r"# (\w+)\.py", block)[1]: block
    for block in [
        *re.findall(r"```python\n(.*?)```", README, flags=re.S),
        *re.findall(r"```python\n(.*?)```", section("docs/own.md", "A training of your own"), flags=re.S),
    ]
}
NEEDS = {"module": ["lightning"], "hugging": ["transformers", "accelerate"]}


def test_there_are_three_examples_and_another_in_few_lines():
    assert list(EXAMPLES) == ["mine", "script", "module", "hugging"]
    assert len(README.strip().splitlines()) < 40


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_it_is_shown(project, monkeypatch, name):
    for library in NEEDS.get(name, ()):
        pytest.importorskip(library)
    (project / f"{name}.py").write_text(EXAMPLES[name])
    recipe = yaml.safe_load(re.search(r"train: (\{.*\})", EXAMPLES[name].splitlines()[0])[1])
    told = {
        "question": "Does it run?",
        "train": recipe | {"epochs": 3},
        "objective": {"metric": "val/loss" if name == "hugging" else "val/mse", "direction": "minimize"},
        "space": {"init_lr": 0.01, "schedules": {"cosine": {}, "linear": {}}},
        "search": {"trials": 2, "balance": "equal"},
        "confirm": {"top": 0, "types": False},
    }
    (project / "sweeps/shown.yaml").write_text(yaml.safe_dump(told))
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    permits = ["--allow-command"] if "command" in recipe else ["--allow-plugin", f"{name}."]
    importlib.invalidate_caches()
    assert sweep.main(["sweeps/shown.yaml", *HERE, *permits]) == 0
    _, records = load_study("shown", f"sqlite:///{project}/optuna.db")
    assert [(r.outcome, r.remark, len(r.epochs)) for r in records] == [("complete", None, 3)] * 2
    assert all(b < a for record in records for a, b in pairwise(record.values(told["objective"]["metric"])))


def test_mlflow_has_the_rates_that_were_used_with_their_epochs(project, monkeypatch):
    uneven, seen = (3, 5, 4), []

    def told(job):
        return loop(job, said=5, made=uneven, seen=seen)

    monkeypatch.setattr(sys.modules[__name__], "training", told)
    text = f"""\
    question: Which rates?
    train: {{name: custom, function: {__name__}.body, epochs: 3}}
    objective: {{metric: val/x, direction: minimize}}
    space: {{init_lr: 0.1, schedules: {{cosine: {{}}}}}}
    search: {{trials: 1}}
    confirm: {{top: 0, types: false}}
    """
    (project / "sweeps/uneven.yaml").write_text(re.sub("^    ", "", text, flags=re.M))
    assert sweep.main(["sweeps/uneven.yaml", *HERE, "--allow-plugin", f"{__name__}."]) == 0
    (run,) = children()
    rows = Path(client().download_artifacts(run.info.run_id, "lr_per_update.csv", str(project))).read_text().split()
    wanted = [f"{t},{e},{lr!r}" for t, (e, lr) in enumerate(zip([0] * 3 + [1] * 5 + [2] * 4, seen, strict=True))]
    assert rows == ["update,epoch,lr", *wanted]
    said = "the schedule ends after the training: it is 15 updates long, and its scheduler came to update 12"
    assert run.data.tags["remark"] == said
