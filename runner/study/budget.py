"""How much time a sweep has, and what of it is set aside for what comes last."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..files.trial import Record

MORE = 1.25
"""What trainings take, times the time of their epochs: what lies between them is no part of it."""
SHARE = 0.5
"""Of all the time, what fresh seeds may have set aside at most: without a search there is nothing to confirm."""


@dataclass
class Budget:
    """So many seconds, from now on."""

    seconds: float = math.inf
    began: float = field(default_factory=time.monotonic)
    over: bool = False
    """Whether something was not begun for want of time."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside takes none of it."""
        before = time.monotonic()
        yield
        self.began += time.monotonic() - before

    def has_room(self, epochs: int, later: int, lanes: int, measured: Sequence[Record]) -> bool:
        """Whether a training of so many ``epochs`` may begin now: it ends in time, and so do the ``later`` epochs of
        what is to follow, on so many ``lanes``. As long as no epoch was ``measured`` it may."""
        epoch = seconds_per_epoch(measured)
        if self.seconds == math.inf or epoch is None:
            return True
        aside = min(MORE * later * epoch / lanes, SHARE * self.seconds)
        fits = time.monotonic() + epochs * epoch + aside <= self.began + self.seconds
        self.over = self.over or not fits
        return fits


def seconds_per_epoch(records: Sequence[Record], last: int = 40) -> float | None:
    """The mean over the epochs that were measured last; None where there are none."""
    found = [e["seconds"] for e in sorted((e for r in records for e in r.epochs), key=lambda e: e["timestamp"])]
    return math.fsum(found[-last:]) / len(found[-last:]) if found else None
