"""How a sweep is stopped: the first signal is polite, the second is not."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE = 30.0
"""Seconds that running epochs have to end after the first signal."""
EXIT = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}
"""Exit codes by signal; 75 asks a batch system to queue the job again (Slurm's --signal=USR1)."""


class Stopped(KeyboardInterrupt):
    """The sweep was stopped by a signal, and can be continued."""

    def __init__(self, name: str) -> None:
        self.name, self.code = name, EXIT[name]
        super().__init__(name)


class Stop:
    """``with`` it: the first signal sets it where somebody looks (``listening``), and raises Stopped elsewhere.

    The second ends the process at once. Signals that are ignored when it begins, as under nohup, stay ignored.
    """

    def __init__(self, grace: float | None = None) -> None:
        self._grace, self._until = GRACE if grace is None else grace, math.inf
        self._name: str | None = None
        self._listening = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._name is not None

    @property
    def left(self) -> float:
        """Seconds that running epochs still have."""
        return max(0.0, self._until - time.monotonic())

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for name in EXIT:
                number = getattr(signal, name, None)  # Windows has not all of them
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal only sets this; after it, Stopped is raised."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
        if self._name is not None:
            raise Stopped(self._name)

    def _came(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._name is not None:
            at_once(EXIT[name])
        self._name, self._until = name, time.monotonic() + self._grace
        if not self._listening:
            raise Stopped(name)
        again = "Ctrl-C" if name == "SIGINT" else name
        said = f"stopping: running epochs have {self._grace:.0f} s to end; {again} again ends them at once"
        os.write(2, f"\n{said}\n".encode())


def leave(code: int) -> None:
    """End this process with ``code``; after a stop without waiting for the threads of epochs that were abandoned."""
    if code in EXIT.values():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def at_once(code: int) -> None:
    """End this process and its workers now; what is on record stays."""
    for process in multiprocessing.active_children():
        process.kill()
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the live display hides the cursor
    os._exit(code)
