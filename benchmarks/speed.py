"""Ours against a naive script (P0) and a tuned one (P1): images per second, accuracy, wall time of a sweep.

    python benchmarks/speed.py                                   all cases and parts for the device at hand
    python benchmarks/speed.py --cases digits --parts rates      parts measured at the same commit stay in the file
    python benchmarks/speed.py --parts alone                     ours without the scripts

The arms take turns (P0 P1 one-lane all-lanes limits, P0 P1 ...), each warm in processes of its own. All have the same
network, initial weights, batch size, schedule, splits, distribution of augmented images and number of updates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, count, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mlflow
import optuna
import report
import torch
from machine import RESULTS, ROOT, environment, machine, open_lanes, result_file, save, spread
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from runner.files.images import cores
from runner.files.sweep_file import Search, Sweep, load_sweep
from runner.files.trial import DivergedError, TrialConfig
from runner.lanes.lane import Lanes
from runner.lanes.worker import begin
from runner.schedules import Schedule, load, set_lr
from runner.study.study import load_study
from runner.training import data
from runner.training.device import pick_device
from runner.training.fast import choice, engine
from runner.training.fast.conv import compact
from runner.training.loop import make_optimizer
from runner.training.model import build

PARTS = ("alone", "rates", "accuracy", "sweep")
"""Ours alone; beside the scripts; the accuracy of both; a whole sweep of each."""
LONG = 100_000
"""Epochs of a sweep that is worth compiling for."""


@dataclass(frozen=True)
class Case:
    """A file of ``sweeps/`` with another batch size, and what is done with it."""

    name: str
    device: str
    batch_size: int
    lr: float
    """Of the one good schedule: cosine after a warmup of a tenth."""
    epochs: int
    """Of a training whose accuracy is compared."""
    parts: tuple[str, ...] = PARTS[1:]
    stem: str = "small"
    limit: int | None = None
    floor: float | None = None
    """Seconds per 50,000 images that one H200 needs at best, with library convolutions."""


CASES = (
    Case("digits", "cpu", 128, lr=0.03, epochs=5),
    # 640 images: nine updates are an epoch of seconds, and an image costs what it costs in a longer one
    Case("cifar10", "cpu", 64, lr=0.05, epochs=10, parts=("rates",), limit=640),
    Case("cifar10", "cuda", 512, lr=0.4, epochs=10, floor=0.37),
    Case("cifar10-unmodified", "cuda", 128, lr=0.1, epochs=10, parts=("rates",), stem="imagenet", floor=0.055),
)


def timed(device: str, function: Callable[..., object], *args: Any) -> float:
    """Seconds until ``function(*args)`` is done, on the GPU too."""
    synchronise(device)
    start = time.perf_counter()
    function(*args)
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --------------------------------------------------------------------------------------
# The peers: a training as scripts do it.


@dataclass(frozen=True)
class Way:
    """How a script trains. The defaults are the naive one's."""

    tuned: bool = False
    """Pinned memory, fused optimizer, all threads; logs per epoch and waits for no update."""
    compiled: bool = False
    bf16: bool = False
    channels_last: bool = False
    workers: int = 2
    persistent: bool = False


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's own data sets do: a PIL image at a time, through transforms."""

    def __init__(self, split: data.Split, *steps: Callable[[Any], Any]) -> None:
        self.images, self.labels = split.images.numpy(), split.labels.tolist()
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


class Script:
    """A script's loaders and network; ``begin`` starts a trial."""

    def __init__(self, config: TrialConfig, way: Way, device: str, *, track: bool) -> None:
        self.way, self.device, self.track, cuda = way, device, track, device.startswith("cuda")
        pictures, augment = data.load(config.data, config.data_dir), config.data.augment
        norm = transforms.Normalize((pictures.mean / 255).tolist(), (pictures.std / 255).tolist())
        crop = transforms.RandomCrop(pictures.size, padding=augment.pad)
        flip = [transforms.RandomHorizontalFlip()] if augment.flip else []
        train = Pictures(pictures.train, crop, *flip, transforms.ToTensor(), norm)
        val = Pictures(pictures.val, transforms.ToTensor(), norm)
        how: dict[str, Any] = {"num_workers": way.workers, "pin_memory": way.tuned and cuda}
        how["multiprocessing_context"] = "fork" if way.workers else None  # as in a script: this process was spawned
        how["persistent_workers"] = way.persistent and way.workers > 0
        self.train = DataLoader(train, config.train.batch_size, shuffle=True, drop_last=True, **how)
        self.val = DataLoader(val, 512, **how)
        if way.tuned:
            torch.set_num_threads(cores())
            torch.backends.cudnn.benchmark = True
        self.classes = pictures.classes
        self.layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.network = build(config.model, self.classes, 0).to(device).to(memory_format=self.layout)
        self.forward = torch.compile(self.network) if way.compiled else self.network
        self.begin(config)

    def begin(self, config: TrialConfig) -> None:
        self.config, recipe = config, config.train
        torch.manual_seed(recipe.seed)
        self.network.load_state_dict(build(config.model, self.classes, recipe.seed).state_dict())
        parameters, fused = list(self.network.parameters()), self.way.tuned or None
        self.optimizer = make_optimizer(recipe, parameters, config.schedule.init_lr, fused=fused)
        self.updates = chain.from_iterable(self.epoch(n % recipe.epochs) for n in count())

    def logits(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=self.way.tuned, memory_format=self.layout)
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.way.bf16):
            network = self.forward if self.network.training else self.network  # not compiled again to be evaluated
            return network(images).float()

    def epoch(self, number: int) -> Iterator[None]:
        """Train one epoch, and come back after every update."""
        epochs, schedule = self.config.train.epochs, self.config.schedule
        self.loss = torch.zeros((), device=self.device) if self.way.tuned else 0.0
        self.network.train()
        for t, (images, labels) in enumerate(self.train, number * len(self.train)):
            set_lr(self.optimizer, schedule.factor(t, len(self.train) * epochs, epochs=epochs))
            loss = F.cross_entropy(self.logits(images), labels.to(self.device, non_blocking=self.way.tuned))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss += loss.detach() if self.way.tuned else (value := loss.item())
            if self.track and not self.way.tuned:
                mlflow.log_metric("step/loss", value, step=t)
            yield

    def trial(self, config: TrialConfig) -> float:
        """Train from scratch; the last validation accuracy, 0 where a loss became NaN or infinite."""
        self.begin(config)
        for number in range(config.train.epochs):
            for _ in self.epoch(number):
                pass
            self.network.eval()
            total, right = (torch.zeros((), device=self.device) for _ in range(2))
            with torch.no_grad():
                for images, labels in self.val:
                    logits, answers = self.logits(images), labels.to(self.device)
                    total += F.cross_entropy(logits, answers, reduction="sum")
                    right += (logits.argmax(1) == answers).sum()
            n = len(self.val.dataset)  # type: ignore[arg-type]
            seen = {"train/loss": float(self.loss) / len(self.train), "val/loss": float(total) / n}
            if not all(map(math.isfinite, seen.values())):
                return 0.0
            if self.track:
                mlflow.log_metrics(seen | {"val/accuracy": float(right) / n}, step=number)
        return float(right) / n

    def rate(self, seconds: float) -> float:
        """Updates per second: whole ones, training only."""
        for _ in range(2 + 2 * self.way.workers):  # what the workers had ready is not of this window
            next(self.updates)
        synchronise(self.device)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(self.updates)
            done += 1
        synchronise(self.device)
        return done / (time.perf_counter() - start)

    def epoch_seconds(self) -> float:
        """Of an epoch and its evaluation, the second of two: the first one begins the workers."""
        config = replace(self.config, train=self.config.train.model_copy(update={"epochs": 1}))
        return [timed(self.device, self.trial, config) for _ in range(2)][1]


_made: list[Script] = []  # in a peer's process: its script


def make(*args: Any, track: bool) -> None:
    for last in _made:
        last.updates = iter(())  # which hold it: left to the garbage collector, each worker would be waited for
    _made.clear()
    _made.append(Script(*args, track=track))


def ask(method: str, *args: Any) -> Any:
    return getattr(_made[0], method)(*args)


def tune(config: TrialConfig, device: str, seconds: float, compiled: bool) -> dict[Way, dict[str, float]]:
    """The ways that a user would try, and the updates per second of each, the better of two windows.

    On a GPU the seconds of an epoch with its evaluation, too: what workers cost at the start of each is in no window.
    There what is ``compiled`` is tried where it is wanted: it takes half a minute, and pays in long sweeps alone.
    """
    found, rough = {}, (False, True) if machine()["bf16"] else (False,)
    ways = product((False,), rough, (False, True), (0, 1, 2))
    if device.startswith("cuda"):
        ways = product((True, False) if compiled else (False,), (True,), (True,), sorted({8, cores()}))
    for combination in ways:
        make(config, way := Way(True, *combination, persistent=True), device, track=False)
        try:
            seen = {"updates_per_second": max(ask("rate", seconds) for _ in range(2))}
            found[way] = seen | ({"epoch_seconds": ask("epoch_seconds")} if device.startswith("cuda") else {})
        except Exception as error:  # what torch's compiler does not take, a user does without
            print(f"{way}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return found


def whole_epochs(tried: Sequence[dict[str, Any]]) -> Way:
    """The fastest in whole epochs, where they were tried, of the ways that do not compile: it pays in long sweeps."""
    plain = [found for found in tried if not found.get("compiled")]  # an older file does not say so
    best = min(plain, key=lambda found: found.get("epoch_seconds", 1 / found["updates_per_second"]))
    return Way(**{field.name: best[field.name] for field in fields(Way) if field.name in best})


def script(file: str, way: str, data_dir: str, device: str) -> None:
    """A sweep as a script does it: one trial after the other, in this process."""
    sweep, made, accuracy = load_sweep(file)[0], None, list[float]()
    mlflow.set_experiment(sweep.name)
    for schedule in random_schedules(sweep, sweep.search.trials):
        config = TrialConfig(sweep.data, sweep.model, sweep.train, schedule, data_dir)
        made = made or Script(config, Way(**json.loads(way)), device, track=True)
        with mlflow.start_run():
            mlflow.log_params({"schedule": schedule.type, "init_lr": schedule.init_lr})
            accuracy.append(made.trial(config))
    print(json.dumps(accuracy))


def random_schedules(sweep: Sweep, n: int) -> Iterator[Schedule]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n):
        yield load(sweep.schedules.sample(study.ask())[1])


# --------------------------------------------------------------------------------------
# Ours: what runs on a lane.


def lane_costs(config: TrialConfig, device: str) -> dict[str, Any]:
    """What else a lane does, in seconds: before an epoch, which ``engine.rate`` leaves out, and before a trial."""
    slot, epochs = engine.slot_of(config, torch.device(device)), config.train.epochs
    n, total = len(slot.dataset.train), slot.updates * epochs

    def before_an_epoch() -> None:  # a script's window has it: samples and learning rates
        data.Tables.draw(n, config.data.augment, 0, 0).to(slot.device)
        torch.tensor([config.schedule.lr(t, total, epochs=epochs) for t in range(slot.updates)]).to(slot.device)

    starts = [timed(device, slot.begin, config.train.seed + 1) for _ in range(21)]
    return {
        "before_an_epoch_seconds": statistics.median(timed(device, before_an_epoch) for _ in range(5)),
        "trial_start_seconds": spread(starts[1:]) | {"new_seed": starts[0]},
        "slot_megabytes": slot.bytes / 1e6,
    }


def lane_accuracy(config: TrialConfig, device: str) -> float:
    try:
        return [epoch.val_accuracy for epoch in engine.train_function(config)(config, torch.device(device))][-1]
    except DivergedError:
        return 0.0


def on(lanes: Lanes, function: Callable[..., Any], configs: Sequence[TrialConfig]) -> list[Any]:
    """``function`` of every config, in order; the lanes take turns, and work at the same time."""
    where = [lanes.all[i % len(lanes.all)] for i in range(len(configs))]
    futures = [lane.executor.submit(function, c, lane.device) for lane, c in zip(where, configs, strict=True)]
    return [future.result() for future in futures]


def lanes_rate(lanes: Lanes, config: TrialConfig, seconds: float) -> float:
    """Updates per second of all lanes. Of three windows on each the middle counts: none is cold then, or alone."""
    windows = (seconds / 3, seconds, seconds / 3)
    futures = [[lane.executor.submit(engine.rate, config, lane.device, s) for s in windows] for lane in lanes.all]
    return sum([[future.result() for future in lane][1] for lane in futures])


# --------------------------------------------------------------------------------------
# The limits.


def limits(device: str, precision: str) -> dict[str, float]:
    """TFLOP/s of a matrix product and GB/s of a copy (read and written), the best of five; random numbers.

    bf16 only where the machine computes in it, or ours does: without such instructions a product takes half a minute.
    """
    cuda, found = device.startswith("cuda"), {}
    n = 8192 if cuda else 2048

    def best(function: Callable[..., object], *args: Tensor) -> float:
        return min([timed(device, function, *args) for _ in range(6)][1:])

    kinds = ("bf16",) if cuda else ("fp32", "bf16") if machine()["bf16"] or precision == "bf16" else ("fp32",)
    for kind, threads in product(kinds, (cores(),) if cuda else (1, cores())):
        torch.set_num_threads(threads)
        a, b = torch.randn(2, n, n, device=device).to(torch.bfloat16 if kind == "bf16" else torch.float32)
        found[f"gemm {kind} x{threads}"] = 2e-12 * n**3 / best(torch.mm, a, b)
    a, b = torch.randn(2, 2**28 if cuda else 2**25, device=device)
    return found | {"copy": 2e-9 * a.nbytes / best(b.copy_, a)}


def gflop(network: nn.Module, height: int, width: int, images: int) -> float:
    """Of the forward and the backward pass of one image of so many: what is done once for all is shared."""
    with FlopCounterMode(display=False) as counter:
        network.to("meta").train()(torch.zeros(images, 3, height, width, device="meta")).sum().backward()
    return counter.get_total_flops() / images / 1e9


# --------------------------------------------------------------------------------------
# The parts of the benchmark.

Peers = dict[str, ProcessPoolExecutor]
Scripts = Sequence[ProcessPoolExecutor]
"""Of one kind, where nobody asks for their speed."""


def rates(config: TrialConfig, device: str, peers: Peers, ours: dict[str, Lanes], args: Any) -> dict[str, Any]:
    """Steady images per second of the arms, the limits in the same turns, and how far ours is from them."""
    pictures, size, cuda = data.load(config.data, config.data_dir), config.train.batch_size, device.startswith("cuda")
    shape, updates = pictures.size, config.train.updates(len(pictures.train))
    for lanes in ours.values():
        on(lanes, begin, [config] * len(lanes.all))  # a trial's first epoch: its learning rates stay in the slot
    costs = on(ours["one lane"], lane_costs, [config])[0]
    seen: dict[str, list[float]] = {name: [] for name in (*peers, *ours)}
    tops: list[dict[str, float]] = []
    with ProcessPoolExecutor(1, get_context("spawn")) as empty:
        for _ in range(args.repeats):
            for name, peer in peers.items():
                seen[name].append(size * peer.submit(ask, "rate", args.seconds).result())
            for name, lanes in ours.items():
                lane = lanes_rate(lanes, config, args.seconds) / len(lanes.all)
                seen[name].append(size * len(lanes.all) / (1 / lane + costs["before_an_epoch_seconds"] / updates))
            tops.append(empty.submit(limits, device, config.engine.precision).result())
            print({name: round(values[-1]) for name, values in seen.items()}, "images/s", file=sys.stderr)
    speed, top = {k: spread(v) for k, v in seen.items()}, {k: spread([t[k] for t in tops]) for k in tops[0]}
    network = build(config.model, pictures.classes, 0)
    nominal = gflop(build(config.model, pictures.classes, 0), *shape, size)
    computed = nominal if cuda else gflop(compact(network, *shape, config.engine.tiled), *shape, size)
    distance = {}
    for name in ours:
        second, threads = speed[name]["median"], 1 if name == "one lane" and not cuda else cores()
        tflops, peak = computed * second / 1e3, top[f"gemm {config.engine.precision} x{threads}"]["median"]
        epochs = {"seconds_per_epoch": len(pictures.train) / second, "seconds_per_50000_images": 50_000 / second}
        distance[name] = epochs | {"tflops": tflops, "share_of_gemm": tflops / peak}
    return costs | {
        "lanes": len(ours["all lanes"].all),
        "images_per_second": speed,
        "ratios": {f"{a} / {b}": speed[a]["median"] / speed[b]["median"] for a, b in product(ours, peers)},
        "limits": top,
        "gflop_per_image": {"nominal": nominal, "computed": computed},
        "distance": distance,
    }


def theirs(p0: Scripts, configs: Sequence[TrialConfig], seconds: float = math.inf) -> list[float]:
    """P0's last validation accuracies, of as many as it trains in so many seconds: two at least."""
    until, found = time.perf_counter() + seconds, list[float]()
    while len(found) < len(configs) and (len(found) < 2 or time.perf_counter() < until):
        some = zip(p0, configs[len(found) :], strict=False)
        found += [future.result() for future in [each.submit(ask, "trial", config) for each, config in some]]
    return found


def seeded(config: TrialConfig, seed: int, schedule: Schedule) -> TrialConfig:
    return replace(config, train=config.train.model_copy(update={"seed": seed}), schedule=schedule)


def seeds(config: TrialConfig, p0: Scripts, lanes: Lanes, args: Any) -> dict[str, Any]:
    """Last validation accuracies of ours and of P0, over seeds at the good schedule."""
    from scipy.stats import ttest_ind  # here: a script's sweep does without

    configs = [seeded(config, seed, config.schedule) for seed in range(args.seeds)]
    peer = theirs(p0, configs, args.patience)
    ours = on(lanes, lane_accuracy, configs[: len(peer)])
    interval = ttest_ind(ours, peer, equal_var=False).confidence_interval(0.95)
    difference, welch = statistics.fmean(ours) - statistics.fmean(peer), [float(interval.low), float(interval.high)]
    print(f"ours - P0: {difference:+.4f}, 95 % {welch}", file=sys.stderr)
    return {
        "epochs": config.train.epochs,
        "images": len(data.load(config.data, config.data_dir).train),
        "batch_size": config.train.batch_size,
        "schedule": config.schedule.to_json(),
        "seeds": {"ours": spread(ours), "P0": spread(peer)},
        "difference_of_means": difference,
        "welch_95": welch,
    }


def ranks(config: TrialConfig, sweep: Sweep, p0: Scripts, lanes: Lanes, args: Any) -> dict[str, Any]:
    """The same over random schedules: whether both, and P0 with two seeds, put them into the same order."""
    from scipy.stats import spearmanr

    first, second = ([seeded(config, seed, s) for s in random_schedules(sweep, args.schedules)] for seed in (0, 1))
    scores = {"ours": on(lanes, lane_accuracy, first), "P0": theirs(p0, first), "P0, other seed": theirs(p0, second)}
    rank = {k: float(spearmanr(scores[k], scores["P0"]).statistic) for k in ("ours", "P0, other seed")}
    print(f"Spearman's rank correlation with P0: {rank}", file=sys.stderr)
    return {"init_lr": [c.schedule.init_lr for c in first], "accuracy": scores, "spearman_with_P0": rank}


PAIRS = (("ours", "P0"), ("ours", "P1"), ("P1", "P0"))
"""The last says how far apart two scripts are; one of them computes in bf16, perhaps."""


def same_schedules(sweep: Sweep) -> Sweep:
    """The sweep with the schedules that the scripts train, each under a name of its own and with nothing open."""
    names = {f"s{n:03}": s.to_json() for n, s in enumerate(random_schedules(sweep, sweep.search.trials))}
    search = sweep.search.model_copy(update={"sampler": "grid", "balance": "free"})
    return sweep.model_copy(update={"space": {"schedules": names}, "search": search})


def sweeps(sweep: Sweep, device: str, way: Way, args: Any) -> Iterator[dict[str, Any]]:
    """Wall time of a whole sweep in a fresh process, from its imports to its last record; the arms take turns.

    All train the same schedules, so their accuracies are compared as well, those of the first turn. What there is
    comes after every sweep.
    """
    peer, where = [sys.executable, str(Path(__file__).resolve()), "script", "sweep.yaml"], (args.data_dir, device)
    ours = [sys.executable, "-m", "runner.sweep", "ours.yaml", "--data-dir", args.data_dir, "--device", device]
    given = same_schedules(sweep)
    ways = {"P0": Way(), "P1": way}
    commands = {"ours": ours} | {name: [*peer, json.dumps(asdict(ways[name])), *where] for name in args.against}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    accuracy: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _, (name, command) in product(range(args.sweep_repeats), commands.items()):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "sweep.yaml").write_text(sweep.model_dump_json())
            (Path(folder) / "ours.yaml").write_text(given.model_dump_json())
            start = time.perf_counter()
            done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
            seconds[name].append(time.perf_counter() - start)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            if name == "ours":
                records = load_study(sweep.name, f"sqlite:///{folder}/optuna.db")[1]
                if failed := [record.cause for record in records if record.outcome == "failed"]:
                    raise SystemExit(f"ours: {failed}")
                accuracy[name].append([record.value or 0.0 for record in records])  # 0 is a diverged one, as theirs
            else:
                accuracy[name].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"sweep, {name}: {seconds[name][-1]:.1f} s, accuracy {accuracy[name][-1]}", file=sys.stderr)
        wall = {arm: spread(values) for arm, values in seconds.items() if values}
        yield {
            "trials": sweep.search.trials,
            "epochs": sweep.train.epochs,
            "wall_seconds": wall,
            "ratios": {
                f"{arm} / ours": wall[arm]["median"] / wall["ours"]["median"] for arm in wall if arm != "ours"
            },
            "accuracy": {arm: accuracy[arm] for arm in wall},
            "same_schedules": {
                f"{a} - {b}": beside_each_other(accuracy[a][0], accuracy[b][0])
                for a, b in PAIRS
                if {a, b} <= wall.keys()
            },
        }


def beside_each_other(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """The mean of ``a - b`` with its 95 % interval, and whether both put the schedules into the same order.

    None where there is no such number: of one schedule, or where all are alike.
    """
    from scipy.stats import spearmanr, ttest_rel

    interval = ttest_rel(a, b).confidence_interval(0.95)
    mean = statistics.fmean(x - y for x, y in zip(a, b, strict=True))
    found = (float(interval.low), float(interval.high), float(spearmanr(a, b).statistic))
    low, high, rank = (None if math.isnan(value) else value for value in found)
    return {"mean_difference": mean, "paired_95": [low, high], "spearman": rank}


# --------------------------------------------------------------------------------------
# The command.


def science(case: Case, epochs: int | None = None, trials: int | None = None) -> Sweep:
    """The case as a sweep; with the file's own number of epochs and trials where none is given."""

    def changed(part: Any, **values: Any) -> Any:
        return part.model_copy(update={key: value for key, value in values.items() if value is not None})

    sweep = load_sweep(ROOT / "sweeps" / f"{case.name.partition('-')[0]}.yaml")[0]
    return changed(
        sweep,
        data=changed(sweep.data, limit=case.limit),
        model=changed(sweep.model, stem=case.stem),
        train=changed(sweep.train, batch_size=case.batch_size, epochs=epochs),
        search=changed(sweep.search, trials=trials),
        confirm=changed(sweep.confirm, top=0, types=False),  # the scripts confirm nothing either
    )


def measure(case: Case, device: str, args: Any) -> Path:
    """Measure the parts of a case that are wanted, and write its file after each."""
    sweep, parts, here, spawn = science(case), args.parts or case.parts, machine(), get_context("spawn")
    schedule = load({"type": "cosine", "init_lr": case.lr, "warmup": 0.1})
    config = TrialConfig(sweep.data, sweep.model, sweep.train, schedule, args.data_dir)
    config = replace(config, train=science(case, args.epochs or case.epochs).train)
    path = result_file(args.out_dir, f"speed-{case.name}", device)
    old = json.loads(path.read_text()) if path.exists() else {}
    same = old.get("commit") == here["commit"] and not here["commit"].endswith("+")
    result = {part: old[part] for part in (*PARTS, "engine") if part in old and same}
    whole = all("epoch_seconds" in way for way in old.get("P1_tried", ())) or not device.startswith("cuda")
    if whole and (old.get("torch"), old.get("limit", case.limit)) == (here["torch"], case.limit):  # not our commit
        result |= {part: old[part] for part in ("P1", "P1_tried") if part in old}
    result |= {"case": case.name, "device": device, "batch_size": case.batch_size, "limit": case.limit}
    result |= {"floor_seconds_per_50000_images": case.floor, "load_average_before": os.getloadavg()}
    with ExitStack() as stack:
        opened = {"one lane": "1"} if set(parts) - {"sweep", "accuracy"} else {}
        opened |= {"all lanes": "auto"} if set(parts) - {"sweep"} else {}
        if opened:
            config = replace(config, engine=choice.choose(config, torch.device(device), LONG))  # as for a long sweep
            result["engine"] = str(config.engine)
            print(f"{case.name}: ours {config.engine}", file=sys.stderr)
        window = Search.model_fields["window"].default
        ours = {k: stack.enter_context(open_lanes(n, device, window, config=config)) for k, n in opened.items()}
        if "alone" in parts:  # first: nothing that a script does can keep it from being measured
            result["alone"] = rates(config, device, {}, ours, args)
            save(path, result)
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))

        def process() -> ProcessPoolExecutor:
            return stack.enter_context(ProcessPoolExecutor(1, spawn, os.chdir, (folder,)))

        peers = {name: process() for name in ("P0", "P1")}
        if "rates" in parts or ("P1" not in result and "sweep" in parts):
            tried = peers["P1"].submit(tune, config, device, args.seconds / 2, "rates" in parts).result()
            result["P1_tried"] = [asdict(w) | seen for w, seen in tried.items()]
            result["P1"] = asdict(max(tried, key=lambda way: tried[way]["updates_per_second"]))
            print(f"{case.name}: P1 {result['P1']}", file=sys.stderr)
        if "rates" in parts:
            peers["P0"].submit(make, config, Way(persistent=True), device, track=True).result()
            peers["P1"].submit(make, config, Way(**result["P1"]), device, track=False).result()
            result["rates"] = rates(config, device, peers, ours, args)
            save(path, result)
        if "accuracy" in parts:  # P0's arithmetic, nothing logged; nobody asks how fast it is
            plain, several = Way(persistent=True), 1
            if device.startswith("cuda"):  # on a CPU each takes all cores
                several = max(1, min(args.seeds, cores() // (1 + plain.workers)))
            scripts = [peers["P0"], *(process() for _ in range(1, several))]
            for made in [each.submit(make, config, plain, device, track=False) for each in scripts]:
                made.result()
            both = scripts, ours["all lanes"], args
            result["accuracy"] = seeds(config, *both)
            save(path, result)
            if args.schedules:
                result["accuracy"]["schedules"] = ranks(config, sweep, *both)
                save(path, result)
    if "sweep" in parts:
        trials = args.sweep_trials or (16 if device.startswith("cuda") else 12)
        way = whole_epochs(result["P1_tried"])
        for result["sweep"] in sweeps(science(case, args.sweep_epochs, trials), device, way, args):
            save(path, result)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=sorted({case.name for case in CASES}))
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: those of the case")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", default="data", help="where cifar10/*.parquet is, or torchvision's files")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--seeds", type=int, help="default: 5 on a CPU, 20 on a GPU")
    parser.add_argument("--epochs", type=int, help="of a training whose accuracy is compared; default: the case's")
    parser.add_argument("--limit", type=int, help="images to train with; default: the case's")
    parser.add_argument(
        "--patience", type=float, default=math.inf, help="seconds for P0's seeds; then they are fewer"
    )
    parser.add_argument("--sweep-trials", type=int, help="default: 12 on a CPU, 16 on a GPU")
    parser.add_argument("--against", nargs="+", choices=("P0", "P1"), default=["P1", "P0"], help="of a whole sweep")
    for name, default in (("repeats", 5), ("schedules", 12), ("sweep-repeats", 3), ("sweep-epochs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    device = str(pick_device(args.device))
    args.data_dir, args.seeds = str(Path(args.data_dir).resolve()), args.seeds or (5 if device == "cpu" else 20)
    paths = []
    for case in CASES:
        if device.startswith(case.device) and case.name in (args.cases or [case.name]):
            try:
                data.load(science(case).data, args.data_dir)
                paths.append(measure(replace(case, limit=args.limit or case.limit), device, args))
            except data.DataError as error:
                print(f"{case.name} is skipped: {error}", file=sys.stderr)
    print(report.table(paths))


if __name__ == "__main__":
    os.environ.update(MLFLOW_TRACKING_URI="sqlite:///mlflow.db", MLFLOW_DISABLE_TELEMETRY="true")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    script(*sys.argv[2:]) if sys.argv[1:2] == ["script"] else main()
