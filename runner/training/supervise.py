"""Starts a command, and ends all that it began: a script of its own, which is there in 20 ms.

    python -I -S supervise.py STATUS,LOCK COMMAND...

It has the file descriptor LOCK until it ends. It writes one line to STATUS when the command has ended: its return
code, or what kept it from being begun. When its standard input ends, whoever asked for the command is gone, or wants
nothing of it any more: the command gets SIGTERM, ``PATIENCE`` later SIGKILL, and so does all that it has begun,
daemons included.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

PATIENCE = 5.0
"""Seconds that a command has to end after SIGTERM."""
MARK = "RUNNER_WORKER"
"""The environment's variable by which what a worker process has begun is known, when that is no more."""


def adopt_orphans() -> None:
    """Become the parent of what the children of this process leave behind; Linux alone has this."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end_with_parent() -> None:
    """Be killed where the parent of this process is."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs; nothing where there is no /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = list[int](), [pid]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found


def marked(worker: str) -> list[int]:
    """What a worker process of this name has begun, whoever is its parent by now; nothing where there is no /proc."""
    found, wanted = list[int](), f"{MARK}={worker}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def end_all(find: Callable[[], Collection[int]]) -> None:
    """Kill what ``find`` finds, until it finds nothing more. Who has begun a process reaps it."""
    until = time.monotonic() + 2.0
    while (left := find()) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def end_descendants(spared: Collection[int] = ()) -> None:
    """Kill what this process has begun, and what that has, but for ``spared``."""
    end_all(lambda: {*descendants(os.getpid())} - {*spared})


def supervise(status: int, lock: int, command: list[str]) -> int:
    adopt_orphans()
    wakes, awake = os.pipe()
    os.set_blocking(awake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # which a batch system sends to everybody: others decide
    signal.set_wakeup_fd(awake)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _end_with_parent()
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.set_inheritable(status, False)
            os.set_inheritable(lock, False)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGUSR1,
                signal.SIGUSR2,
                signal.SIGPIPE,
            ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execvp(command[0], command)
        except OSError as error:
            os.write(status, f"cannot be begun: {error.strerror}\n".encode())
        os._exit(127)
    code, wanted, until = None, True, float("inf")
    while code is None:
        ready, _, _ = select.select(
            [wakes, *([0] if wanted else [])], [], [], min(1.0, max(0.0, until - time.monotonic()))
        )
        if wakes in ready:
            os.read(wakes, 512)
        if wanted and 0 in ready and not os.read(0, 512):
            wanted, until = False, time.monotonic() + PATIENCE
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGTERM)
        if time.monotonic() >= until:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        ended, how = os.waitpid(pid, os.WNOHANG)
        while ended not in (0, pid):
            ended, how = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(how) if ended == pid else None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    end_descendants()
    with suppress(OSError):
        os.write(status, f"{code}\n".encode())
    return 0


if __name__ == "__main__":
    numbers = sys.argv[1].split(",")
    os._exit(supervise(int(numbers[0]), int(numbers[1]), sys.argv[2:]))
