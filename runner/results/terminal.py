"""What a person sees while a sweep runs: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..files.document import printable
from ..files.secrets import redacted
from ..files.sweep_file import ACCURACY, Objective
from ..files.trial import Record
from ..lanes.lane import StalledError
from ..lanes.process import IN_A_WORKER
from ..training.job import TrainingError

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """``values`` as a row of blocks from 0 to their maximum."""
    if not values:
        return ""
    top, n = max(values) or 1.0, min(width, len(values))
    at = [values[int((i + 0.5) * len(values) / n)] for i in range(n)]
    blocks = BLOCKS if encodable(BLOCKS) else ASCII
    return "".join(blocks[min(int(v / top * len(blocks)), len(blocks) - 1)] for v in at)


def encodable(text: str) -> bool:
    """Whether what is printed can have these characters."""
    try:
        text.encode(CONSOLE.encoding)
    except UnicodeEncodeError:
        return False
    return True


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shown(path: Path) -> Path:
    """A path as a person finds it from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _console() -> Console:
    """A console that moves the cursor on a terminal alone, whatever FORCE_COLOR says, which asks for colours."""
    coloured = os.environ.get("FORCE_COLOR") and not os.environ.get("NO_COLOR")
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(force_terminal=is_terminal, color_system="standard" if coloured and not is_terminal else "auto")


CONSOLE = _console()
"""One, so that what is said while a display is live stands above it."""
_quiet = False


def be_quiet(quiet: bool) -> None:
    """From here on print warnings and the result alone, or everything."""
    global _quiet
    _quiet = quiet


def echo(text: str, markdown: bool = False) -> None:
    """Print for a person."""
    text = printable(redacted(text))
    whole = not CONSOLE.is_terminal or any(word in text for word in ("://", "python -m"))  # to be copied in one piece
    soft = whole and not markdown
    CONSOLE.print(Markdown(text) if markdown else text, markup=False, highlight=False, soft_wrap=soft)


def info(text: str) -> None:
    """Print for a person who watches; ``quiet`` leaves all of it but warnings out."""
    if not _quiet or text.startswith("warning: "):
        echo(text)


DROPPED_FIRST = ("test", "with", "one seed", "seeds", "warmup", "trial")
"""The columns that a narrow terminal does without, in this order."""


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print a table for a person: every number whole, however narrow the terminal is; in a file there is room."""
    names = list(rows[0]) if rows else []
    console = CONSOLE if CONSOLE.is_terminal else Console(file=CONSOLE.file, width=10_000, force_terminal=False)
    for least in DROPPED_FIRST:
        if sum(2 + max(len(name), *(len(row[name]) for row in rows)) for name in names) <= console.width:
            break
        names = [name for name in names if name != least]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    console.print(table)


def _traceback(error: BaseException | None) -> str:
    """Where an error comes from; of a training of one's own, where in that; nothing of what is said in its cause."""
    if error is None:
        return ""
    if isinstance(error, (TrainingError, StalledError)):
        return "".join(note for note in getattr(error, "__notes__", ()) if not note.startswith(IN_A_WORKER))
    return "".join(traceback.format_exception(error))


class Display:
    """The progress of a stage of a sweep. ``with`` it; tell it of epochs and of ended trials."""

    def __init__(
        self,
        trials: int,
        epochs: int,
        stage: str = "search",
        done: int = 0,
        best: Record | None = None,
        begun: Mapping[int, int] | None = None,
        objective: Objective = ACCURACY,
    ) -> None:
        """``done``, ``best``: of the trials that an earlier process ended; ``begun``: the epochs on record of those
        that it did not."""
        self.trials, self.epochs, self.stage, self.done, self.best = trials, epochs, stage, done, best
        self.objective = objective
        self._resumed, self._started = done, time.monotonic()
        self._measured = self._spared = 0
        """Epochs: those trained here; those that need not be, of trials that were stopped or taken up again."""
        self._known, self._again = dict(begun or {}), dict(begun or {})
        self._seen = set[str]()
        self._bar = Progress(TextColumn(stage), BarColumn(), MofNCompleteColumn(), console=CONSOLE)
        self._task = self._bar.add_task("trials", total=trials, completed=done)
        self._lines: dict[int, str] = {}
        longest = {"search": f"trial {trials}", "fresh seeds": "trial 1 again seed 1"}
        self._width = len(longest.get(stage, f"{stage} trial {trials}"))  # of what a trial is called
        self._live = Live(self._view(), console=CONSOLE, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self._moves and not _quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def epoch(self, record: Record) -> None:
        """The newest committed epoch of a running trial."""
        entry, n = record.epochs[-1], len(record.epochs)
        if n > self._known.get(record.number, 0):
            self._known[record.number], self._measured = n, self._measured + 1
        elif self._again.get(record.number):  # it was on record before
            self._again[record.number], self._spared = self._again[record.number] - 1, self._spared + 1
        rates = [e["lr"] for e in record.epochs]
        curve, words = ("", "acc") if self._narrow else (f" {sparkline(rates)}", "val accuracy")
        words = words if self.objective.metric == "val/accuracy" else self.objective.metric
        value = entry.get(self.objective.metric, math.nan)
        self._lines[record.number] = (
            f"{record.title} {record.name}  epoch {n}/{record.train.get('epochs', self.epochs)}  "
            f"lr {entry['lr']:.3g}{curve}  {words} {f'{value:.2%}' if self.objective.points else f'{value:.4g}'}"
        )
        self._live.update(self._view())

    def ended(
        self, record: Record, better: bool, error: BaseException | None = None, trials: int | None = None
    ) -> None:
        """A trial has ended; ``better`` if it is the best so far, ``error`` if it failed; ``trials``, where their
        number has changed."""
        self.done, self.trials = self.done + 1, self.trials if trials is None else trials
        self._spared += self.epochs - len(record.epochs)
        self._lines.pop(record.number, None)
        if error is not None or record.outcome == "failed":
            where = "\n".join(record.output) or _traceback(error)
            where = "(as before)" if where in self._seen else where
            self.warn(f"{record.title} failed: {record.cause}\n{where}".rstrip())
            self._seen.update([where] if where else [])
        if record.remark and record.remark not in self._seen:
            self._seen.add(record.remark)
            self.warn(f"{record.title}: {record.remark}")
        if better:
            self.best = record
        self._bar.update(self._task, completed=self.done, total=self.trials)
        if _quiet:
            return
        result = f"{record.value:.4g}" if record.value is not None else record.outcome
        lr, live, digits = f"{record.schedule['init_lr']:.3g}", self._moves, len(str(self.trials))
        room = not live or CONSOLE.width >= 100
        if room:  # what was changed of a winner is told in more words
            self._width = max(self._width, len(record.title))
        head = f"[{self.done:>{digits}}/{self.trials}] {record.title:<{self._width}}"
        if self._narrow:
            line = f"{head.strip()} {record.name} {lr}: {result}{' best' * better}"
        else:  # what fits, in one line
            rates = sparkline([e["lr"] for e in record.epochs], 16 if room else 8)
            name, rate = (15, 8) if len(record.title) <= self._width else (0, 0)  # a long title takes their room
            line = f"{head} {record.name:<{name}} init_lr {lr:<{rate}} {rates} {result}"
            line += " best so far" * better + f" ({duration(record.seconds)})" * room
            if self.done < self.trials and not live:  # which says so below
                line += f"  {self._left}"
        CONSOLE.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
        self._live.update(self._view())

    @property
    def _moves(self) -> bool:
        """Whether lines can be written anew."""
        return CONSOLE.is_terminal and not CONSOLE.is_dumb_terminal

    @property
    def _narrow(self) -> bool:
        return CONSOLE.width < 80

    def warn(self, message: str) -> None:
        text = escape(printable(redacted(message)))
        CONSOLE.print(f"[yellow]warning[/yellow]: {text}", highlight=False, soft_wrap=True)

    def eta(self) -> float:
        """Seconds to the end, from the epochs measured in this process."""
        if not self._measured:
            return 0.0
        each = (time.monotonic() - self._started) / self._measured
        return each * max(self.epochs * (self.trials - self._resumed) - self._measured - self._spared, 0)

    @property
    def _left(self) -> str:
        return f"{'at most ' * (self.stage == 'fresh seeds')}{duration(self.eta())} left"

    def _view(self) -> Group:
        best = ""
        if self.best is not None and self.best.value is not None:
            best = f"best so far {self.best.value:.4g}: trial {self.best.number} {self.best.name}, "
        left = f"{self._left} of the {self.stage}" if self._measured else ""
        return Group(self._bar, *map(Text, self._lines.values()), Text(best + left))
