"""A command of one's own as a generator of reports: started by ``supervise``, it answers in lines of JSON."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files.document import first_line, printable
from ..files.sweep_file import PLACEHOLDER
from ..files.trial import OwnConfig
from .checkpoint import State
from .job import KilledError, Report, TrainingError, numbers
from .log import tail
from .own_state import job_of
from .plan import OwnEpoch
from .supervise import MARK, PATIENCE


def reports(
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
