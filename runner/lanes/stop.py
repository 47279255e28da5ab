"""How a sweep is stopped: the first signal is polite, the second is not."""

from __future__ import annotations

import atexit
import contextlib
import errno
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from ..training.supervise import MARK, end_all, marked

GRACE = 30.0
"""Seconds that running epochs have to end after the first signal."""
DEBOUNCE = 0.5
"""Seconds in which a second signal is the first again: wrappers hand Ctrl-C on, closing terminals hang up twice."""
EXIT_SECONDS = 2.0
"""Seconds for Python to put its own things away, after a stop or an error."""
EXIT = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 75, "SIGUSR2": 75}
"""Exit codes by signal; 75 asks a batch system to queue the job again (Slurm's --signal=USR1)."""
SIGNALS = [signal.Signals[name] for name in EXIT]
OWN = "own-"
"""How the name begins of a worker process that trains one's own code, which may begin others."""


class Stopped(KeyboardInterrupt):
    """The sweep was stopped by a signal, and can be continued."""

    def __init__(self, name: str) -> None:
        self.name, self.code = name, EXIT[name]
        super().__init__(name)


class GpuError(Exception):
    """A GPU has failed, for all that this process has on it."""


class ClusterError(Exception):
    """The cluster that all lanes are on has gone."""


class Stop:
    """``with`` it: the first signal sets it where somebody looks (``listening``), and raises Stopped elsewhere.

    The second ends the process at once. Signals that are ignored when it begins, as under nohup, stay ignored.
    """

    def __init__(self) -> None:
        self.raised: Stopped | None = None
        self._name: str | None = None
        self._since = math.inf
        self._listening = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._name is not None

    @property
    def left(self) -> float:
        """Seconds that running epochs still have."""
        return max(0.0, self._since + GRACE - time.monotonic())

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = _handle(self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Have the signals again that it had, where a library has put handlers of its own in their place."""
        for number in self._before:
            signal.signal(number, self._received)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal only sets this; after it, Stopped is raised."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
        if self._name is not None:
            self._stop(self._name)

    def _stop(self, name: str) -> NoReturn:
        self.raised = Stopped(name)
        raise self.raised

    def _received(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._name is not None:
            if time.monotonic() - self._since > DEBOUNCE:
                exit_now(EXIT[name])
            return
        self._name, self._since = name, time.monotonic()
        if not self._listening:
            self._stop(name)
        again = "Ctrl-C" if name == "SIGINT" else name
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, f"\nstopping within {GRACE:.0f} s; {again} again ends it at once\n".encode())


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Inside, the signals wait; a process that is begun there has them wait until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(group: bool = False) -> None:
    """What a worker process does first: signals are for its parent to decide about, and when that ends it ends;
    with ``group`` what it has begun ends with it."""
    for number in SIGNALS:
        signal.signal(number, (lambda *_: None) if group else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    parent, name = multiprocessing.parent_process(), multiprocessing.current_process().name
    if group:
        os.setsid()
        os.environ[MARK] = name
        _let_forks_heed_signals()

    def end() -> None:
        assert parent is not None
        wait([parent.sentinel])
        if group:
            end_all(lambda: marked(name))
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end, daemon=True).start()


def _let_forks_heed_signals() -> None:
    """In what this process forks, signals do what they do by default: who forks it may want to end it."""
    before = threading.local()

    def block() -> None:  # what comes before the child is ready waits until it is
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def heed() -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=heed)


def kill(process: Any) -> None:
    """End a worker process now, and what it has begun where it leads a group."""
    process.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError, TypeError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.name.startswith(OWN):
        end_all(lambda: marked(process.name))


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let ``handler`` have the signals, but for those that are ignored; who had them before."""
    return {n: signal.signal(n, handler) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}


class SafeStream:
    """A stream that goes on, into nothing, when its reader has gone: a closed terminal, a pipe to a dead process."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._ignoring_a_gone_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._ignoring_a_gone_reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _ignoring_a_gone_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                raise  # a full disk
            _discard(self._stream)


def _discard(stream: TextIO) -> None:
    """What is written to it from here on goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def exit_on_signals() -> None:
    """Before anything has begun: a signal ends this process with its code and without a word."""
    _handle(lambda number, _: os._exit(EXIT[signal.Signals(number).name]))


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with its code, whoever is left to read what it says.

    After an error, without waiting long for threads that nobody wants any more; where it used a GPU, before Python
    takes its objects apart, of which it has died (see ``engine._SLOTS``).
    """
    # Without one of the two (``>&-``) the null device stands in, open until this process ends.
    out, err = (stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for stream in (sys.stdout, sys.stderr))
    for stream in (out, err):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # what its encoding does not have
    sys.stdout, sys.stderr = cast("TextIO", SafeStream(out)), cast("TextIO", SafeStream(err))
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: what was to be printed is not complete: {error.strerror}", file=sys.stderr)
        _discard(out)
        code = 4
    sys.stderr.flush()
    if code:
        last = threading.Timer(EXIT_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def exit_now(code: int) -> None:
    """End this process and its workers now; what is on record stays."""
    for process in multiprocessing.active_children():
        kill(process)
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # the live display hides the cursor
    os._exit(code)
