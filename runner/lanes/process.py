"""A worker process as an executor: its death is noticed whatever it was doing, in the middle of a message too.

The standard library's pool would do, but for one thing. It keeps the writing end of the pipe that results come
through open in the coordinator, which then waits for ever for the rest of a result whose sender was killed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, InvalidStateError
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from typing import Any

from .stop import kill

Context = ForkServerContext | SpawnContext
IN_A_WORKER = "in a worker process:"
WAY_OUT = 5.0
"""Seconds that a worker has to end by itself when nobody wants anything of it any more."""


class WorkerDiedError(BrokenExecutor):
    """A worker process has ended that should not have; ``exitcode`` as multiprocessing has it."""

    def __init__(self, message: str, exitcode: int | None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class ProcessExecutor(Executor):
    """One process of ``context``, begun when it is first asked for something; jobs are done in their order.

    When it dies, all that it still had to do raises BrokenExecutor.
    """

    def __init__(self, context: Context, start: Callable[..., None], *args: Any, name: str | None = None) -> None:
        """``start(*args)`` comes first, in the process, which is called ``name``."""
        self._context, self._start, self._args, self._name = context, start, args, name
        self._process: Any = None
        self._lock = threading.Lock()
        self._futures: deque[Future[Any]] = deque()
        self._jobs: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._broken = self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Raises BrokenExecutor where the process has died before, OSError or EOFError where it cannot be begun."""
        job, future = ForkingPickler.dumps((fn, args, kwargs)), Future[Any]()
        with self._lock:
            if self._broken or self._closed:
                raise BrokenExecutor("the worker has ended")
            if self._process is None:
                self._begin()
            self._futures.append(future)
            self._jobs.put(job)
        return future

    def _begin(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._process = self._context.Process(
            target=_work, name=self._name, args=(theirs, self._start, self._args)
        )
        process.start()
        theirs.close()  # so that what the worker leaves unsaid ends with it
        util.Finalize(self, kill, (process,), exitpriority=0)  # else Python would wait for it when it ends
        for work in (self._send, self._receive, self._watch):
            threading.Thread(target=work, args=(ours,), name="lane", daemon=True).start()

    def _send(self, pipe: Connection) -> None:
        with contextlib.suppress(OSError):  # it has died: ``_receive`` says so
            while (job := self._jobs.get()) is not None:
                pipe.send_bytes(job)

    def _receive(self, pipe: Connection) -> None:
        try:
            while True:
                done, value = pipe.recv()
                with self._lock:
                    future = self._futures.popleft()
                with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                    future.set_result(value) if done else future.set_exception(value)
        except Exception as error:  # the end of the pipe, or what cannot be read: none of what follows can be trusted
            self._end(error)

    def _watch(self, pipe: Connection) -> None:
        """The end of the process is the end of the pipe, whoever else has that open: children of its own."""
        wait([self._process.sentinel])
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)  # what has arrived can still be read

    def _end(self, error: Exception) -> None:
        with self._lock:
            self._broken, left = True, list(self._futures)
            self._futures.clear()
        kill(self._process)
        self._jobs.put(None)
        self._process.join(WAY_OUT)
        for future in left:
            broken = WorkerDiedError(f"{type(error).__name__}: {error}".strip(": "), self._process.exitcode)
            with contextlib.suppress(InvalidStateError):
                future.set_exception(broken)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Let the process end when its jobs are done; with ``wait`` it has ended on return, killed after a while."""
        with self._lock:
            self._closed = True
            if self._process is None:
                return
            if not self._broken:
                self._jobs.put(ForkingPickler.dumps(None))
        if wait:
            self._process.join(WAY_OUT)
            kill(self._process)
            self._process.join(WAY_OUT)

    def kill(self) -> None:
        """End the process now; what it still had to do raises BrokenExecutor."""
        if self._process is not None:
            kill(self._process)


def _work(pipe: Connection, start: Callable[..., None], args: tuple[Any, ...]) -> None:
    """In the process: one job after the other, until there is none, or nobody to ask for one."""
    wrong: Exception | None = None
    try:
        start(*args)
    except Exception as error:
        wrong = error
    with contextlib.suppress(OSError, EOFError):
        while (job := pipe.recv()) is not None:
            function, given, named = job
            try:
                if wrong is not None:
                    raise wrong
                answer = True, function(*given, **named)
            except BaseException as error:
                error.add_note(f"{IN_A_WORKER}\n{''.join(traceback.format_exception(error))}")
                answer = False, error
            try:
                packed = ForkingPickler.dumps(answer)
                if not answer[0]:
                    ForkingPickler.loads(packed)  # an error may be one that cannot be built again
            except Exception as error:
                packed = ForkingPickler.dumps((False, RuntimeError(f"what it gave cannot be sent: {error}")))
            pipe.send_bytes(packed)
