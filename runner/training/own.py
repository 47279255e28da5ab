"""A training of one's own, a function or a command, as a generator that yields after every epoch, as our own does.

A function gets a ``Job``. It is a generator itself, or it calls ``job.report``; both run in a greenlet, in the
thread of their lane, so that a report waits for what becomes of the trial. A command is started by ``supervise``,
which ends all that it began, and answers in lines of JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import itertools
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import greenlet

from ..files.document import first_line, printable
from ..files.secrets import redacted
from ..files.sweep_file import PLACEHOLDER
from ..files.trial import DivergedError, OwnConfig
from ..schedules.plugins import find_function
from .checkpoint import State
from .job import Job, Report, TrialStopped, numbers
from .supervise import MARK, PATIENCE

NOMINAL = 100
"""Updates of an epoch of which nobody says how many it has: for the drawing of curves alone."""
PARKED = list[Any]()
"""Functions that have caught what was to stop them: they stand still where they reported, for good."""
TAIL = 10
"""The last lines of what a training printed, which are kept where it fails."""
LOGGED = 2**20
"""Bytes at the beginning and at the end of a trial's log that are kept of a longer one."""


class TrainingError(Exception):
    """What went wrong in a training of one's own, in a sentence."""


class KilledError(TrainingError):
    """Its process was killed: the trial begins again."""


@dataclass(frozen=True)
class OwnEpoch:
    """What one epoch gave; the interface of ``loop.Epoch``."""

    number: int
    values: Mapping[str, float]
    """What the training reported, by name."""
    lr: float
    """Of the epoch's first update, as it was used; the plan's where that is not known."""
    seconds: float
    updates: int | None = None
    """In an epoch, as the training said, or made in its first one."""
    used: Sequence[tuple[int, float]] | None = None
    """The learning rates that were used, and for how many updates, where they are not the plan's."""
    remark: str | None = None
    """Where the training was not what it was to be."""
    keep: bool = False
    """Whether its state is to be kept now: it is not made for that alone."""
    state: Callable[[], State] | None = field(default=None, compare=False, repr=False)

    def metrics(self) -> dict[str, float]:
        """The names and values under which it is logged."""
        own = {name: value for name, value in self.values.items() if name not in ("epoch", "timestamp")}
        return {**own, "lr": self.lr, "seconds": self.seconds}

    def facts(self) -> dict[str, Any]:
        """What is put on record of its trial."""
        said = {"updates": self.updates, "remark": self.remark, f"lrs:{self.number}": self.used}
        return {key: value for key, value in said.items() if value is not None}


def train(config: OwnConfig, device: Any, state: State | None = None) -> Iterator[OwnEpoch]:
    """Run the training, yielding after every epoch; or from an epoch's ``state``, yielding what was before again.

    Raises TrainingError where it fails, DivergedError where one of its losses is NaN or infinite, or its objective
    after the last epoch.
    """
    recipe, done = config.train, [_epoch(**epoch) for epoch in state["epochs"]] if state else []
    yield from done
    plan = Plan(config, done, state["plan"] if state else {})
    begin = _function if recipe.function is not None else _command
    started = time.perf_counter()
    with contextlib.closing(begin(config, str(device), state, done)) as reports:
        for report, now in _up_to_the_end(reports, recipe.epochs, plan):
            number = len(done) if report.epoch is None else report.epoch
            if number != len(done):
                lacking = f"epoch {number} comes after {len(done)} of them"
                raise TrainingError(f"it goes on at another epoch than is on record: {lacking}")
            kept = _kept(report.state, plan)
            epoch = plan.epoch(number, report, now - started)
            _refuse_nonfinite(epoch, config)
            done.append(epoch)
            if kept is not None:
                epoch = replace(epoch, keep=not callable(report.state), state=_state_of(kept, done, plan))
            yield epoch
            started = time.perf_counter()  # it was not asked to go on before
    if len(done) < recipe.epochs:
        raise TrainingError(f"it ended after {len(done)} of {recipe.epochs} epochs")


def _epoch(**fields: Any) -> OwnEpoch:
    used = fields.pop("used", None)
    return OwnEpoch(**fields, used=None if used is None else [(int(n), float(lr)) for n, lr in used])


def _state_of(kept: Callable[[], Any], done: Sequence[OwnEpoch], plan: Plan) -> Callable[[], State]:
    """The whole state of a trial after an epoch: the training's own, the epochs so far, and their comparison."""
    epochs = [{k: v for k, v in asdict(replace(e, state=None)).items() if k not in ("state", "keep")} for e in done]
    compared = plan.state()
    return lambda: {"own": kept(), "epochs": epochs, "plan": compared}


def _kept(given: State | Callable[[], State] | None, plan: Plan) -> Callable[[], Any] | None:
    """How to get a training's own state, as it can be kept; None where it gave none, or one that cannot be."""

    def keep() -> Any:
        try:
            return plain(given() if callable(given) else given)
        except Exception as error:
            what = first_line(error) if isinstance(error, TrainingError) else f"{type(error).__name__}: {error}"
            plan.remarks["state"] = f"its state was not kept, and it cannot be resumed: {what}"
            raise

    if given is None or callable(given):
        return None if given is None else keep
    try:
        whole = keep()
    except Exception:
        return None
    return lambda: whole


def _up_to_the_end(reports: Iterator[Report], epochs: int, plan: Plan) -> Iterator[tuple[Report, float]]:
    """Its reports, and when they came; the last one is given when the training has come to its end, so that it can
    put its things away."""
    for report in reports:
        now = time.perf_counter()
        if plan.number + 1 < epochs:
            yield report, now
            continue
        try:
            if next(reports, None) is not None:
                more = f"it reported more than the {epochs} epochs that it was asked for; they are left out"
                plan.remarks["more"] = more
        except Exception as error:
            plan.remarks["failed"] = f"after its last epoch it failed: {first_line(error)}"
        yield report, now
        return


def _refuse_nonfinite(epoch: OwnEpoch, config: OwnConfig) -> None:
    """Raise DivergedError for a loss that is no number, or for the objective at the end."""
    last = epoch.number + 1 == config.train.epochs
    for name, value in epoch.values.items():
        judged = name == config.objective.metric and last
        if not math.isfinite(value) and (judged or name.replace("_", "/").rpartition("/")[2] == "loss"):
            raise DivergedError(replace(epoch, state=None))


class Plan:
    """What a training was to do, beside what it does: its learning rates, update by update.

    A training's own scheduler says where in the schedule it stands. Where it has none, updates are counted.
    """

    def __init__(self, config: OwnConfig, done: Sequence[OwnEpoch], kept: Mapping[str, Any]) -> None:
        """``kept``: the ``state`` that this had after the epochs that are ``done``."""
        self.schedule, self.epochs, self.objective = config.schedule, config.train.epochs, config.objective
        self.in_file = config.train.updates_per_epoch
        self.history = [self.objective.sign * e.values.get(self.objective.metric, math.nan) for e in done]
        self.number = len(done)
        self.per_epoch: int | None = kept.get("per_epoch")
        self.stands: int | None = kept.get("stands", 0)
        """At which update of the schedule it is; None where that was not seen."""
        self.apart: int = kept.get("apart", 0)
        """How many updates, or epochs, had another learning rate than the schedule's."""
        self.remarks: dict[str, str] = dict(kept.get("remarks", {}))
        """What was not as it was to be: one sentence of each kind."""

    def state(self) -> dict[str, Any]:
        return {"per_epoch": self.per_epoch, "stands": self.stands, "apart": self.apart, "remarks": {**self.remarks}}

    def epoch(self, number: int, report: Report, seconds: float) -> OwnEpoch:
        """An epoch from what was said of it, compared with what was to be."""
        lrs, values, said = list(report.lrs), dict(report.metrics), report.updates_per_epoch or self.in_file
        if self.in_file not in (None, said):
            wrong = f"it has {said} updates in an epoch, where the sweep file says updates_per_epoch: {self.in_file}"
            self.remarks["file"] = wrong
        counted = said is None and self.per_epoch not in (None, len(lrs))
        self.per_epoch = said or self.per_epoch or len(lrs) or None
        planned = [self._at(number * self._length + i) for i in range(self._length)]
        used = None
        if lrs or report.at:
            begins = number * self._length if self.stands is None else self.stands
            at = report.at or range(begins, begins + len(lrs) + 1)
            self.stands = at[-1]
            if counted:  # nobody has said how many updates there are, and the first epoch's were a guess
                before = f"epoch {number} made {len(lrs)} updates, and the first one {self.per_epoch}"
                self.remarks["apart"] = f"which learning rates it was to use is not known: {before}"
            elif "not known" not in self.remarks.get("apart", ""):
                self._compare(lrs, at)
            if len(lrs) != len(planned) or not all(map(self._alike, lrs, planned)):
                used = [(len(list(same)), lr) for lr, same in itertools.groupby(lrs)]
        else:
            self.stands = None
            if "lr" in values:
                used = self._compare_one(values["lr"], [*planned, self._at(number, self.epochs)])
            else:
                unknown = f"it did not say which learning rate it used in epoch {number}: the schedule's is shown"
                self.remarks.setdefault("unknown", unknown)
        self.history.append(self.objective.sign * values.get(self.objective.metric, math.nan))
        self.number = number + 1
        if self.number == self.epochs and said and self.stands is not None:
            self._compare_length(bool(report.at))
        lr = lrs[0] if lrs else values.get("lr", planned[0])
        return OwnEpoch(number, values, lr, seconds, self.per_epoch, used, "; ".join(self.remarks.values()) or None)

    @property
    def _length(self) -> int:
        return self.per_epoch or NOMINAL

    def _at(self, update: int, updates: int = 0) -> float:
        T = updates or self._length * self.epochs
        return self.schedule.lr(update, T, epochs=self.epochs, history=self.history)

    def _compare(self, lrs: Sequence[float], at: Sequence[int]) -> None:
        """The rates of an epoch's updates with those of the schedule."""
        for t, lr in zip(at, lrs, strict=False):
            planned = self._at(t)
            if not self._alike(lr, planned):
                digits = next((n for n in (4, 6, 9) if f"{lr:.{n}g}" != f"{planned:.{n}g}"), 17)
                both = f"lr {lr:.{digits}g}, where the schedule has {planned:.{digits}g}"
                self._say_apart(f"update {t} was made at {both}", "updates")

    def _compare_one(self, lr: float, planned: Sequence[float]) -> list[tuple[int, float]] | None:
        """The same for a training that says one rate for an epoch: any is right that the schedule has in it."""
        low, high = min(planned), max(planned)
        if low * (1 - 1e-3) <= lr <= high * (1 + 1e-3):
            return None
        has = f"{low:.4g}" if self._alike(low, high) else f"{low:.4g} to {high:.4g}"
        self._say_apart(f"epoch {self.number} was trained at lr {lr:.4g}, where the schedule has {has}", "epochs")
        return [(self._length, lr)]

    def _say_apart(self, wrong: str, what: str) -> None:
        self.apart += 1
        first = self.remarks.get("apart", wrong).partition(" (")[0]
        self.remarks["apart"] = f"{first} ({self.apart} {what} differ)" if self.apart > 1 else first

    def _compare_length(self, scheduler: bool) -> None:
        """Whether the schedule and the training ended together."""
        total, stands = self._length * self.epochs, self.stands or 0
        if stands != total:
            came = f"its scheduler came to update {stands}" if scheduler else f"{stands} were made"
            when = "before" if stands > total else "after"
            self.remarks["length"] = f"the schedule ends {when} the training: it is {total} updates long, and {came}"

    def _alike(self, lr: float, planned: float) -> bool:
        """Whether two rates are the same but for rounding: in single precision a cosine is known to some 1e-7."""
        return math.isclose(lr, planned, rel_tol=1e-5, abs_tol=1e-6 * self.schedule.init_lr)


# --- its state -------------------------------------------------------------------------------------------------

NUMPY = "a NumPy value"
PLAIN = (type(None), bool, int, float, complex, str, bytes)


def plain(value: Any, where: str = "state") -> Any:
    """A state as it is kept: what ``torch.load`` reads without running code. NumPy's arrays and numbers, which it
    refuses, are kept as tensors. Raises TrainingError, which names the first thing that cannot be kept."""
    import numpy as np
    import torch

    kind: Any = type(value)
    if kind in (dict, OrderedDict, Counter):
        found = {plain(k, f"a key of {where}"): plain(v, f"{where}[{k!r:.40}]") for k, v in value.items()}
        same = all(found[key] is value[key] for key in found)
        return value if same else kind(found)  # a state_dict has more to it than its items
    if kind in (list, tuple, set):
        return kind(plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, (np.ndarray, np.generic)):
        with contextlib.suppress(TypeError):  # text, objects
            return {NUMPY: torch.from_numpy(np.array(value)), "number": isinstance(value, np.generic)}
    if kind in PLAIN or isinstance(value, (torch.Tensor, torch.Size, torch.dtype, torch.device)):
        return value
    raise TrainingError(f"{where} is a {kind.__module__}.{kind.__qualname__}".replace(" builtins.", " "))


def restored(value: Any) -> Any:
    """What ``plain`` has made plain, as it was."""
    kind: Any = type(value)
    if kind is dict and NUMPY in value:
        array = value[NUMPY].numpy()
        return array[()] if value["number"] else array
    if kind in (dict, OrderedDict, Counter):
        found = {key: restored(inner) for key, inner in value.items()}
        return value if all(found[key] is value[key] for key in found) else kind(found)
    return kind(map(restored, value)) if kind in (list, tuple) else value


# --- a function ------------------------------------------------------------------------------------------------


def _function(
    config: OwnConfig, device: str, state: State | None, done: Sequence[OwnEpoch]
) -> Generator[Report, None, None]:
    """The reports of a function, each when the one before has been dealt with."""
    name = config.train.function
    assert name is not None
    stopped, caught, elsewhere = False, 0, ""

    def send(report: Report) -> None:
        nonlocal caught, elsewhere
        parent = greenlet.getcurrent().parent
        if parent is None:
            elsewhere = "report() is called in the thread in which the training began, and was called in another"
            raise RuntimeError(elsewhere)
        if not stopped:
            parent.switch(report)
        if stopped:
            caught += 1
            while caught > 1:
                parent.switch()
            raise TrialStopped

    job = job_of(config, device, state, done, send)
    job._rates.watch()

    def run() -> None:
        try:
            given = find_function(name, config.allow)(job)
            if isinstance(given, Iterable) and not isinstance(given, (Mapping, str, bytes)):
                with contextlib.closing(given) if hasattr(given, "close") else contextlib.nullcontext():
                    for item in given:
                        job.report(*(item if isinstance(item, tuple) and len(item) == 2 else (item,)))
            elif given is not None and not job.epoch:
                raise TypeError(f"{name} returned {given!r:.60}; it yields after every epoch, or calls job.report")
        finally:
            job._rates.close()

    body = greenlet.greenlet(run)
    with _as_a_new_process(job.seed):
        try:
            while True:
                try:
                    report = body.switch()
                except BaseException as error:  # KeyboardInterrupt, too, would mean the sweep outside
                    raise _explained(error) from error
                if body.dead:
                    if elsewhere:
                        raise TrainingError(elsewhere)
                    return
                yield report
        finally:
            stopped = True
            if not body.dead:
                with contextlib.suppress(BaseException):
                    body.switch()  # what it has to put away
            if not body.dead:
                with contextlib.suppress(BaseException):
                    body.throw(greenlet.GreenletExit)
            if not body.dead:
                PARKED.append(body)


def _explained(error: BaseException) -> Exception:
    """An error of a function as a sentence that says where; as it is where it means the lane and not the trial."""
    import torch

    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return TrainingError(f"it called sys.exit({code:.200})")

    full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in first_line(error)
    as_it_is = isinstance(error, TrainingError) or getattr(error, "error_code", None)
    if isinstance(error, Exception) and (as_it_is or (full and isinstance(error, (MemoryError, RuntimeError)))):
        return error
    package = Path(__file__).parents[1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if package not in Path(f.filename).parents]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = f": {first_line(error)}" if first_line(error) else ""
    explained = TrainingError(f"{type(error).__name__}{said}{where}")
    if frames:
        outer = error.__traceback__
        while outer is not None and package in Path(outer.tb_frame.f_code.co_filename).parents:
            outer = outer.tb_next
        explained.add_note("".join(traceback.format_exception(type(error), error, outer)))
    return explained


@contextlib.contextmanager
def _as_a_new_process(seed: int) -> Iterator[None]:
    """What a training may change of its process is as it was afterwards; its random numbers begin with ``seed``. In a
    thread of the coordinator (``--lanes 0``) they alone: that process may have gone on to something else by then."""
    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    folder, variables, path = Path.cwd(), dict(os.environ), list(sys.path)
    streams, handlers = (sys.stdout, sys.stderr), _handlers()
    threads, dtype, matmul = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    exact, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn
    convolutions = cudnn.enabled, cudnn.benchmark, cudnn.deterministic

    def put_back() -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        for name in {*os.environ} - {*variables}:
            del os.environ[name]
        os.environ.update({k: v for k, v in variables.items() if os.environ.get(k) != v})
        sys.path[:] = path
        sys.stdout, sys.stderr = streams
        for number, handler in _handlers().items():
            if (before := handlers.get(number)) is not None and handler is not before:
                signal.signal(number, before)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.set_float32_matmul_precision(matmul)
        if torch.are_deterministic_algorithms_enabled() != exact:  # which loads torch's compiler
            torch.use_deterministic_algorithms(exact)
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = convolutions

    try:
        yield
    finally:
        if not sys.is_finalizing():
            put_back()


def _handlers() -> dict[int, Any]:
    """Who has the signals; not those that are no Python function's."""
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if handler is not None}


def job_of(
    config: OwnConfig, device: str, state: State | None, done: Sequence[OwnEpoch], send: Callable[[Report], None]
) -> Job:
    """The job of a trial, and its folder."""
    recipe, metric = config.train, config.objective.metric
    folder = config.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    history = [config.objective.sign * e.values.get(metric, math.nan) for e in done]
    known: dict[str, Any] = {"sign": config.objective.sign, "metric": metric, "updates": recipe.updates_per_epoch}
    known |= {"epoch": len(done), "history": history}
    if state:
        known |= {"state": restored(state["own"]), "stands": state["plan"]["stands"]}
    return Job(config.schedule, recipe.epochs, recipe.seed, device, folder, send, **known)


# --- a command -------------------------------------------------------------------------------------------------


def _command(
    config: OwnConfig, device: str, state: State | None, done: Sequence[OwnEpoch]
) -> Generator[Report, None, None]:
    """The reports of a command, as they come."""
    with tempfile.TemporaryDirectory(prefix="runner-") as folder:
        told = Path(folder) / "job.json"
        report = Path(folder) / "report"
        os.mkfifo(report)
        given = describe(config, device, state, done) | {"report": str(report)}
        told.write_text(json.dumps(given, indent=1), encoding="utf-8")
        values = {"schedule": str(told), "seed": str(given["seed"]), "epochs": str(given["epochs"])}
        values |= {"folder": given["folder"], "device": device}
        arguments = [fill(argument, values) for argument in config.train.command or ()]
        variables = {f"RUNNER_{name.upper()}": value for name, value in values.items() if name != "schedule"}
        variables |= {"RUNNER_JOB": str(told), "RUNNER_REPORT": str(report), "RUNNER_EPOCH": str(given["epoch"])}
        variables = {**os.environ, **variables}
        variables.pop(MARK, None)  # ``supervise`` ends what it begins
        config.log.parent.mkdir(parents=True, exist_ok=True)
        with (
            _alone(Path(given["folder"]).with_name("lock")) as lock,
            Child(arguments, variables, config.log, lock) as child,
            contextlib.closing(Lines(report)) as lines,
        ):
            for line in lines.until(child):
                yield _report(line)
            child.check(config.log, lines.rest)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The descriptor of a file that is locked: none of the trial's commands is left, of a worker that was killed."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + 2 * PATIENCE
    try:
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield file
    finally:
        os.close(file)


def describe(config: OwnConfig, device: str, state: State | None, done: Sequence[OwnEpoch]) -> dict[str, Any]:
    """What a command is told, as JSON."""
    recipe, schedule, updates = config.train, config.schedule, config.train.updates_per_epoch
    job = job_of(config, device, state, done, lambda _: None)
    fixed = schedule.type != "plateau"  # which depends on what will be measured
    return {
        "schedule": schedule.to_json(),
        "lr_per_epoch": schedule.lrs(recipe.epochs) if fixed else None,
        "lr_per_update": schedule.lrs(updates * recipe.epochs, epochs=recipe.epochs) if fixed and updates else None,
        "updates": updates,
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "device": device,
        "folder": str(job.folder),
        "epoch": job.epoch,
        "state": job.state,
        "metric": config.objective.metric,
        "sign": config.objective.sign,
        "history": job._history,
        "stands": state["plan"]["stands"] if state else None,
        "allow": list(config.allow),
    }


def fill(argument: str, values: Mapping[str, str]) -> str:
    """An argument with values in place of ``{name}``; ``{{name}}`` is the word itself."""
    return PLACEHOLDER.sub(lambda found: values[found[1]] if found[1] else found[0][1:-1], argument)


def _report(line: str) -> Report:
    """What a line of a command's says; raises TrainingError where it is no report."""
    try:
        said = json.loads(line)
        if not isinstance(said, dict):
            raise TypeError(f"a line is a mapping of names to numbers, not {line.strip():.60}")
        whole = said if isinstance(said.get("metrics"), dict) else {"metrics": said}
        lrs = [float(lr) for lr in whole.get("lrs") or ()]
        state: Any = whole.get("state")
        if state is not None and not isinstance(state, dict):
            raise TypeError(f"a state is a mapping, not {json.dumps(state):.60}")
        at: list[Any] = list(whole.get("at") or ())
        counts: list[Any] = [whole.get(name) for name in ("updates_per_epoch", "epoch")]
        if any(n is not None and (not isinstance(n, int) or n < 0) for n in (*counts, *at)):
            raise TypeError(f"updates_per_epoch and epoch are whole numbers, not {counts}")
        if len(at) not in (0, len(lrs) + 1):
            raise TypeError(f"at is one longer than lrs, which has {len(lrs)}, not {len(at)}")
        return Report(numbers(whole["metrics"]), lrs, at, counts[0] or None, state, counts[1])
    except json.JSONDecodeError:
        raise TrainingError(f"it wrote a line that is no JSON: {printable(line.strip()):.60}") from None
    except RecursionError:
        raise TrainingError(f"it wrote a line that is nested too deep: {line.strip():.60}") from None
    except (TypeError, ValueError) as error:
        raise TrainingError(first_line(error)) from None


def signal_name(number: int) -> str:
    """SIGTERM for 15; of one that has no name, which one it is."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Lines:
    """The lines that a command writes into a named pipe."""

    def __init__(self, path: Path) -> None:
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # with a writer of our own it has no end
        self.rest = b""
        """What was written behind the last line."""

    def close(self) -> None:
        os.close(self._pipe)

    def until(self, child: Child) -> Iterator[str]:
        """One after the other, until the command has ended."""
        over = False
        while not over:
            ready, _, _ = select.select([self._pipe, child.status], [], [])
            over = child.status in ready
            with contextlib.suppress(BlockingIOError):
                while some := os.read(self._pipe, 2**16):
                    *whole, self.rest = (self.rest + some).split(b"\n")
                    yield from (line.decode(errors="replace") for line in whole if line.strip())


class Child:
    """A command, started by ``supervise``. ``with`` it: afterwards it has ended, and all that it began."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path, lock: int) -> None:
        """``lock`` is a descriptor that ``supervise`` has as long as there is anything left of the command."""
        self.name = arguments[0]
        self.status, told = os.pipe()
        starter = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervise.py")), f"{told},{lock}"]
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    [*starter, *arguments],
                    stdin=subprocess.PIPE, stdout=out, stderr=out, env=variables, pass_fds=[told, lock],
                    start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(self.status)
            raise
        finally:
            os.close(told)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        os.close(self.status)

    def check(self, log: Path, rest: bytes) -> None:
        """Raise TrainingError where it did not end as it should."""
        said = os.read(self.status, 512).decode(errors="replace").partition("\n")[0]
        last = "".join(f": {line}" for line in tail(log, 1))
        if said == "0":
            if rest.strip():
                raise TrainingError(f"its last line was cut off: {printable(rest.decode(errors='replace')):.60}")
            return
        if said in ("-9", "137", ""):
            wrong = "killed, by somebody or because the machine ran out of memory"
            raise KilledError(f"{self.name} was {wrong}")
        if said.lstrip("-").isdigit():
            how = f"was ended by {signal_name(int(said[1:]))}" if said[0] == "-" else f"exited with {said}"
            raise TrainingError(f"{self.name} {how}{last}")
        raise TrainingError(f"{self.name} {said}")


# --- what it prints --------------------------------------------------------------------------------------------


def tail(log: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log, as they may be shown."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [printable(redacted(line.rstrip()))[:300] for line in text.splitlines() if line.strip()][-lines:]


def shorten(log: Path) -> None:
    """Cut out the middle of a log that has become long; who writes to it goes on at its end."""
    with contextlib.suppress(OSError), log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size > 4 * LOGGED:
            file.seek(size - LOGGED)
            end = file.read()
            file.seek(LOGGED)
            file.write(b"\n... %d bytes are left out here ...\n" % (size - 2 * LOGGED) + end)
            file.truncate()


def source_files(function: str | None, command: Sequence[str] | None) -> list[Path]:
    """The files of one's own code that a sweep file names: a function's module, a command's arguments."""
    if function is not None:
        spec = importlib.util.find_spec(function.rpartition(".")[0])
        return [Path(spec.origin)] if spec and spec.origin else []
    return [path for path in map(Path, command or ()) if path.is_file()]
