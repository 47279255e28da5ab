"""What is sent to a server that may go away: jobs by name, done in a thread of their own, and tried again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial

from .client import is_server_error, is_transient

PATIENCE = 60.0
"""Seconds without progress after which nobody waits any longer."""

Job = Callable[[], None]


class Sender:
    """Jobs by name, of which the newest of a name replaces the one before; whoever adds one goes on at once.

    A job brings the server to where the sender is, and may be done again. One that fails with what may pass by itself
    (the server is away) is tried again, ever more rarely, and all others wait behind it; one that is refused is set
    aside until ``retry``; any other error is a bug, and ends the thread.

    ``first`` comes before each job; ``say`` is told when the server goes away and why, and when it is back (None);
    ``refuse`` of every job that is refused.
    """

    def __init__(
        self, first: Job, say: Callable[[Exception | None], None], refuse: Callable[[Exception], None]
    ) -> None:
        self.bug: Exception | None = None
        self.unreachable: Exception | None = None
        """Why the server cannot be reached at the moment."""
        self._first, self._say, self._refuse, self._changed = first, say, refuse, threading.Condition()
        self._jobs: dict[Hashable, Job] = {}
        """What is to be done; one that is under way stays here until it is done."""
        self._refused: dict[Hashable, tuple[Job, Exception]] = {}
        self._closed, self._done, self._stuck_at = False, 0, -1
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, name: Hashable, job: Job) -> None:
        """Add a job."""
        with self._changed:
            self._jobs[name] = job
            self._changed.notify_all()

    @property
    def refused(self) -> Exception | None:
        """Why the first of those that were refused was."""
        return next((error for _, error in self._refused.values()), None)

    @property
    def idle(self) -> bool:
        """Whether everything is done."""
        return not (self._jobs or self._refused)

    def retry(self) -> None:
        """Try what has failed once more, now, and wait for as long as that helps."""
        with self._changed:
            self._jobs = {name: job for name, (job, _) in self._refused.items()} | self._jobs
            self._refused, self.unreachable = {}, None
            self._changed.notify_all()
        self.wait(PATIENCE if self._stuck_at != self._done else 0.1)

    def wait(self, seconds: float, most: float = math.inf) -> None:
        """Until nothing is left to do, the server is away, nothing was done for ``seconds``, or ``most`` are over."""
        until = time.monotonic() + most
        with self._changed:
            while self._jobs and self.bug is None and self.unreachable is None:
                done, left = self._done, min(seconds, until - time.monotonic())
                self._changed.wait_for(partial(self._moved, done), left)
                if self._done == done:
                    self._stuck_at = done
                    break

    def close(self) -> None:
        """Do no more; what is left stays undone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _moved(self, done: int) -> bool:
        return self.bug is not None or self.unreachable is not None or self._done != done

    def _work(self) -> None:
        """The thread: one job after the other, a pause where the server is away."""
        pause, away = 1.0, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                name, job = next(iter(self._jobs.items()))
            try:
                self._first()
                job()
            except Exception as error:
                theirs = is_server_error(error)
                refused = theirs and not is_transient(error)
                if refused:
                    self._refuse(error)
                with self._changed:
                    if not theirs:
                        self.bug = error
                        self._changed.notify_all()
                        return
                    if refused:
                        self._refused[name] = job, error
                        self._end(name, job)
                        continue
                    self._jobs[name] = self._jobs.pop(name)  # behind the others
                    self.unreachable = error
                    self._changed.notify_all()
                    if not away:
                        self._say(error)
                    self._changed.wait_for(lambda: self._closed or self.unreachable is None, pause)
                    pause, away = min(2 * pause, 60.0), True
            else:
                if away:
                    self._say(None)
                pause, away = 1.0, False
                with self._changed:
                    self.unreachable = None
                    self._end(name, job)

    def _end(self, name: Hashable, job: Job) -> None:
        """A job is done, or refused; a newer one of its name waits behind the others."""
        newest = self._jobs.pop(name)
        if newest is not job:
            self._jobs[name] = newest
        self._done += 1
        self._changed.notify_all()
