"""A function of one's own as a generator of reports: in a greenlet of its lane's thread it waits where it reports."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import greenlet

from ..files.document import first_line
from ..files.trial import OwnConfig
from ..schedules.plugins import find_function
from .checkpoint import State
from .job import Report, TrainingError, TrialStopped
from .own_state import job_of
from .plan import OwnEpoch

PARKED = list[Any]()
"""Functions that have caught what was to stop them: they stand still where they reported, for good."""


def reports(
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
