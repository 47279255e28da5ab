"""What is sent to a server that may go away: jobs by name, done in a thread of their own, and tried again."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from functools import partial

PATIENCE = 60.0
"""Seconds without progress after which nobody waits any longer."""

Job = Callable[[], None]


class Sender:
    """Jobs by name, of which the newest of a name replaces the one before; whoever adds one goes on at once.

    A job brings the server to where the sender is, and may be done again. One that fails with what may pass by itself
    (the server is away) is tried again, ever more rarely, and all others wait behind it; one that is refused is set
    aside until ``again``; any other error is a bug, and ends the thread.
    """

    def __init__(
        self,
        first: Job,
        trouble: Callable[[Exception], bool],
        passing: Callable[[Exception], bool],
        say: Callable[[bool], None],
    ) -> None:
        """
        Args:
            first: comes before each job.
            trouble: tells the server's errors from bugs.
            passing: tells those of them that may pass by themselves.
            say: is told when the server goes away (False), and when it is back (True).
        """
        self.bug: Exception | None = None
        self.away: Exception | None = None
        """Why the server cannot be reached at the moment."""
        self._first, self._trouble, self._passing, self._say = first, trouble, passing, say
        self._news = threading.Condition()
        self._jobs: dict[Hashable, Job] = {}
        self._refused: dict[Hashable, tuple[Job, Exception]] = {}
        self._busy, self._closed, self._done, self._stuck_at = False, False, 0, -1
        self._thread = threading.Thread(target=self._work, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def do(self, name: Hashable, job: Job) -> None:
        """Add a job."""
        with self._news:
            self._jobs[name] = job
            self._news.notify_all()

    @property
    def refused(self) -> Exception | None:
        """Why the first of those that were refused was."""
        return next((error for _, error in self._refused.values()), None)

    @property
    def idle(self) -> bool:
        """Whether everything is done."""
        return not (self._jobs or self._refused or self._busy)

    def again(self) -> None:
        """Try what has failed once more, now, and wait for as long as that helps."""
        with self._news:
            self._jobs = {name: job for name, (job, _) in self._refused.items()} | self._jobs
            self._refused, self.away = {}, None
            self._news.notify_all()
        self.wait(PATIENCE if self._stuck_at != self._done else 0.1)

    def wait(self, seconds: float, most: float = math.inf) -> None:
        """Until nothing is left to do, the server is away, nothing was done for ``seconds``, or ``most`` are over."""
        until = time.monotonic() + most
        with self._news:
            while self.bug is None and self.away is None and (self._jobs or self._busy):
                done, left = self._done, min(seconds, until - time.monotonic())
                self._news.wait_for(partial(self._moved, done), left)
                if self._done == done:
                    self._stuck_at = done
                    break

    def close(self) -> None:
        """Do no more; what is left stays undone."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _moved(self, done: int) -> bool:
        return self.bug is not None or self.away is not None or self._done != done

    def _work(self) -> None:
        """The thread: one job after the other, a pause where the server is away."""
        pause, away = 1.0, False
        while True:
            with self._news:
                self._news.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                name = next(iter(self._jobs))
                job, self._busy = self._jobs.pop(name), True
            try:
                self._first()
                job()
            except Exception as error:
                with self._news:
                    if not self._trouble(error):
                        self.bug = error
                        self._news.notify_all()
                        return
                    self._busy = False
                    if not self._passing(error):
                        self._refused[name] = job, error
                        self._done += 1
                        self._news.notify_all()
                        continue
                    self._jobs.setdefault(name, job)
                    self.away = error
                    self._news.notify_all()
                    if not away:
                        self._say(False)
                    self._news.wait_for(lambda: self._closed or self.away is None, pause)
                    pause, away = min(2 * pause, 60.0), True
            else:
                if away:
                    self._say(True)
                pause, away = 1.0, False
                with self._news:
                    self._busy, self.away = False, None
                    self._done += 1
                    self._news.notify_all()
