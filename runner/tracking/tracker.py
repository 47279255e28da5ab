"""MLflow: one parent run per sweep, one child run per trial, and a saved view that shows the curves.

Everything here is a projection of the study's committed history: the same record sent twice leaves one run with one
value per key and step, because timestamps and steps are the record's own.
"""

from __future__ import annotations

import contextlib
import html
import importlib.metadata
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..files.document import Document, SpecError
from ..files.place import Place, alone, sqlite_path
from ..files.secrets import redacted
from ..files.sweep_file import Sweep
from ..files.trial import Record
from ..schedules.colours import colour
from ..schedules.schedule import Schedule
from .client import all_runs, is_transient, make_client, unusable
from .sender import Sender
from .views import links, saved_view, view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS = {"complete": "FINISHED", "diverged": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
"""How a trial ended, and the status its run shows."""
NOTE = "mlflow.note.content"
"""The tag that holds a run's description."""
Note = Callable[[Callable[[str], str]], str]
"""A description, once it is known where figures are."""


class Tracker:
    """A sweep's runs in MLflow, sent from a thread of their own: no lane ever waits for a server.

    What is still missing at the end is sent when the sweep is begun again, or with ``--sync``.
    """

    def __init__(
        self,
        place: Place,
        sweep: Sweep,
        document: Document,
        data: Mapping[str, Any],
        tags: Mapping[str, str],
        say: Callable[[str], None],
        keep_status: bool = False,
    ) -> None:
        """
        Args:
            place, sweep, document: where runs go, what is tracked, and the file that it is from, for its run.
            data: ``name``, ``digest``, ``classes`` and the sizes of ``train``, ``val`` and ``test``.
            tags: what trains: ``device`` and ``engine``.
            say: is told when a server goes away, and when it is back.
            keep_status: leave the status of a parent run that has ended as it is.
        """
        self.place, self.sweep, self.document, self.data = place, sweep, document, data
        self.updates = sweep.train.updates(data["train"])
        length = {"sweep.updates_per_epoch": str(self.updates)}
        self.facts = {**facts(), **tags, **length, "sweep.direction": sweep.objective.direction}
        self._say, self._keep_status = say, keep_status
        self.client: MlflowClient
        self.experiment_id = self.parent = ""
        self.runs: dict[tuple[str, int], str] = {}
        """The run of each trial, by its stage and its number in it."""
        self._known = False
        """Whether these are all that MLflow has."""
        self._ended = set[tuple[str, int]]()
        self._sent: dict[str, int] = {}
        """How many epochs are on each run that says what it trains."""
        self._identity = ""
        self._status = "KILLED"
        """What the parent run is left as where the sweep does not end."""
        self._local = sqlite_path(place.tracking_uri) is not None
        self._finished = self._reported = False
        self._sender = Sender(self._reach, self._say_whether_it_answers)

    def __enter__(self) -> Tracker:
        """Reach MLflow and the experiment; nothing of the sweep is written yet.

        Raises:
            SpecError: the tracking server or its database cannot be used. A server that does not answer is waited
                for in the background.
        """
        sender = self._sender
        sender.start()
        sender.submit("experiment", self._reach)
        sender.wait(600.0 if self._local else 2.0)
        if sender.bug is not None:
            raise sender.bug
        if wrong := sender.refused or (sender.unreachable if self._local else None):
            raise unusable(self.place, wrong)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left; a sweep that was stopped leaves its parent run KILLED, one that broke FAILED. A bug of
        the sender's is raised where nothing else went wrong."""
        if self.parent and not (kind is None and self._finished):
            status = self._status if kind is None or issubclass(kind, KeyboardInterrupt) else "FAILED"
            self._sender.submit("status", lambda: self.client.set_terminated(self.parent, status))
        self._sender.wait(5.0, most=10.0)
        self._sender.close()
        if self._sender.bug is not None and kind is None:
            raise self._sender.bug

    def resume(self, identity: str) -> None:
        """Take up the parent run and the trials' runs that have this ``sweep.id``, or make what is not there."""
        self._identity = identity
        self._sender.submit("parent", self._reach)
        self._sender.wait(2.0)

    def update(self, *records: Record) -> None:
        """Bring MLflow to where these trials are; what it has stays as it is."""
        for record in records:
            if _key(record) not in self._ended:
                self._sender.submit(_key(record), partial(self._send_trial, record))

    def flush(self, records: Sequence[Record] = ()) -> str | None:
        """Wait until these are sent, those too whose runs somebody has deleted since; ``runs`` is complete then.

        Returns: why something is missing, or None.
        """
        if records:
            self._sender.submit("look", self._find_runs)
            self._sender.retry()
            self.update(*records)
        self._sender.retry()
        if self._sender.idle:
            return None
        sender = self._sender
        error = sender.bug or sender.unreachable or sender.refused or TimeoutError("it does not answer")
        return redacted(f"{type(error).__name__}: {error}".splitlines()[0])

    def report(self, files: Iterable[Path], note: Note) -> None:
        """Put what is known so far onto the parent run, which goes on."""
        self._reported = True
        self._sender.submit("report", partial(self._report, list(files), note))

    def finish(self, files: Iterable[Path], note: Note, summary: Mapping[str, float]) -> str | None:
        """End the parent run with the sweep's results; why MLflow lacks something, or None."""
        self._finished = self._reported = True
        self._sender.submit("report", partial(self._finish, list(files), note, summary))
        return self.flush()

    def _say_whether_it_answers(self, back: bool) -> None:
        if back:
            self._say("MLflow answers again")
        elif self._identity or not self._local:  # else it ends the sweep before it begins
            wrong = f"MLflow at {redacted(self.place.tracking_uri)} does not answer"
            self._say(f"warning: {wrong}; training goes on, and what it misses is sent when it is back")

    def _reach(self) -> None:
        """Before anything else is sent: the experiment; and, once the sweep is known, what it has of that."""
        if not self.experiment_id:
            with alone(self.place.tracking_uri):
                self.client = make_client(self.place)  # which asks a database at once, and again and again
                self.experiment_id = _experiment(self.client, self.place)
        if self._identity and not self._known:
            self._find_runs()

    def _find_runs(self) -> None:
        """Find the runs of this sweep as they are now, and make the parent where there is none."""
        ours = all_runs(self.client, self.experiment_id, f"tags.`sweep.id` = '{self._identity}'", "ASC")
        runs, ended = dict[tuple[str, int], str](), set[tuple[str, int]]()
        before = next((run for run in ours if run.data.tags.get("sweep.role") == "study"), None)
        parent = before.info.run_id if before else self._create(self.sweep.name, {"sweep.role": "study"})
        if before:
            if self._keep_status and before.info.status != "RUNNING":
                self._status = before.info.status
            self.client.update_run(parent, status="RUNNING")
        if not before or "sweep.described" not in before.data.tags:
            self._sender.submit("describe", partial(self._describe, parent))
        for run in ours:
            run_id, key = run.info.run_id, _trial(run)
            if key is None:
                continue
            if runs.setdefault(key, run_id) != run_id:  # made twice: the first answer was lost
                self.client.delete_run(run_id)
                continue
            if run.data.tags.get("mlflow.parentRunId") != parent:
                self.client.set_tag(run_id, "mlflow.parentRunId", parent)
            if run.info.status != "RUNNING":
                ended.add(key)
        self.parent, self.runs, self._ended, self._known = parent, runs, ended, True

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        named = {"sweep.study": self.sweep.name, "sweep.id": self._identity, "mlflow.runName": name}
        all_tags = resolve_tags({**self.place.file.tracking.run.tags, **self.facts, **tags, **named})
        return str(self.client.create_run(self.experiment_id, tags=all_tags).info.run_id)

    def _describe(self, run: str) -> None:
        """Write what the sweep is onto its parent run: question, settings, data, environment."""
        from mlflow.exceptions import MlflowException

        self._params(run, flat({key: part for key, part in self.sweep.science().items() if key != "space"}))
        if not self._reported:  # else its report is there, or comes
            self.client.set_tag(run, NOTE, f"**{escape(self.sweep.question)}**\n\nThe sweep is running.")
        self.client.log_text(run, self.document.text, self.document.path.name)
        self.client.log_text(run, "\n".join(_environment()) + "\n", "environment.txt")
        self._dataset(run)
        if self.place.file.ui.saved_view:
            with contextlib.suppress(MlflowException):  # undocumented tags of MLflow's own: a failure is none
                for grouped in (False, True):
                    key = f"mlflow.sharedViewState.{view_key(self.sweep.name, grouped)}"
                    self.client.set_experiment_tag(self.experiment_id, key, saved_view(self.sweep.name, grouped))
        self.client.set_tag(run, "sweep.described", "yes")

    def _finish(self, files: Sequence[Path], note: Note, summary: Mapping[str, float]) -> None:
        self._report(files, note)
        self._metrics(self.parent, [(summary, 0, int(time.time() * 1000))])
        self.client.set_terminated(self.parent, "FINISHED")

    def _report(self, files: Sequence[Path], note: Note) -> None:
        for path in files:
            folder = "figures" if path.suffix == ".png" else "tables"
            self.client.log_artifact(self.parent, str(path), folder)
        self.client.set_tag(self.parent, NOTE, note(self.figure))

    def _send_trial(self, record: Record) -> None:
        """Bring a trial's run to where the trial is; a run that somebody has deleted is made again."""
        from mlflow.exceptions import MlflowException

        key = _key(record)
        try:
            self._send_news(record)
        except MlflowException as error:
            if key not in self.runs or is_transient(error):
                raise
            self._find_runs()
            if key in self.runs:
                raise
            self._send_news(record)

    def _send_news(self, record: Record) -> None:
        key = _key(record)
        if key not in self.runs:
            self._known = False  # until this is answered
            self.runs[key] = self._begin(record)
            self._known = True
        run, recipe = self.runs[key], record.recipe(self.sweep)
        if run not in self._sent:
            sections = {"data": self.sweep.data, "model": self.sweep.model, "train": recipe}
            params = {name: section.model_dump(mode="json") for name, section in sections.items()}
            self._params(run, flat({"schedule": plain(self.sweep.schedule(record.schedule)), **params}))
            self._dataset(run)
            self._sent[run] = 0
        if new := record.epochs[self._sent[run] :]:
            self._metrics(run, [(entry, int(entry["epoch"]), int(entry["timestamp"])) for entry in new])
            self._sent[run] = len(record.epochs)
        if record.outcome is not None:
            self._end(run, record)
            self._ended.add(key)

    def _begin(self, record: Record) -> str:
        schedule = self.sweep.schedule(record.schedule)
        what = f"{record.stage} {record.title} " if record.arm else f"{record.stage} t{record.number:04d} ".lstrip()
        return self._create(
            f"{what}{record.name} lr={schedule.init_lr:.3g}",
            {
                "mlflow.parentRunId": self.parent,
                "sweep.role": record.stage.partition("-")[0] or "trial",
                "sweep.stage": record.stage,
                "trial.number": str(record.number),
                **({"trial.of": record.arm} if record.arm else {}),
                "schedule.type": schedule.type,
                "schedule.name": record.name,
                "mlflow.runColor": colour(schedule.type),
                "schedule": json.dumps(record.schedule),
                "outcome": "running",
            },
        )

    def _end(self, run: str, record: Record) -> None:
        epochs, summary = record.recipe(self.sweep).epochs, {"total_seconds": record.seconds}
        T, lrs = self.updates * epochs, list[float]()
        if record.outcome != "failed":
            with contextlib.suppress(ArithmeticError, ValueError):  # one's own function, in an epoch never trained
                lrs = self.sweep.schedule(record.schedule).lrs(T, epochs=epochs, history=record.history)
        if lrs:
            mean, peak = math.fsum(lrs) / len(lrs), max(lrs)
            summary |= {"schedule/mean_lr": mean, "schedule/max_lr": peak}
            if peak > 0:  # a piecewise schedule, or one's own, may be 0 throughout
                summary["schedule/final_over_peak"] = lrs[-1] / peak
            rows = "".join(f"{t},{t // self.updates},{lr!r}\n" for t, lr in enumerate(lrs))
            self.client.log_text(run, f"update,epoch,lr\n{rows}", "lr_per_update.csv")
        accuracies = [a for a in record.history if math.isfinite(a)]
        if accuracies:
            summary["best/val_accuracy"] = max(accuracies)
        if record.value is not None:
            summary["objective"] = record.value
        self._metrics(run, [(summary, 0, int(record.epochs[-1]["timestamp"]) if record.epochs else 0)])
        self.client.log_dict(run, dict(record.schedule), "schedule.json")
        if record.cause:
            self.client.set_tag(run, "cause", record.cause[:500])
        self.client.set_tag(run, "outcome", record.outcome)
        self.client.set_terminated(run, STATUS[record.outcome or "failed"])

    def _metrics(self, run: str, points: Iterable[tuple[Mapping[str, float], int, int]]) -> None:
        """Log metrics, each mapping with its step and its timestamp, which may stand in it too."""
        from mlflow.entities import Metric

        # MLflow keeps NaN, and turns infinity into the largest float, which no chart survives.
        metrics = [
            Metric(key, math.nan if math.isinf(value) else float(value), timestamp, step)
            for values, step, timestamp in points
            for key, value in values.items()
            if key not in ("epoch", "timestamp")
        ]
        self.client.log_batch(run, metrics=metrics, synchronous=True)

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(k, v) for k, v in params.items()], synchronous=True)

    def _dataset(self, run: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data, source = self.data, self.sweep.data
        dataset = Dataset(
            name=data["name"],
            digest=data["digest"][:16],
            source_type="local",
            source=json.dumps({"source": source.source, "path": source.path}),
            profile=json.dumps({key: data[key] for key in ("train", "val", "test", "classes")}),
        )
        self.client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def links(self) -> dict[str, str]:
        """The addresses of the pages that show this sweep, by what they show."""
        return links(self.place, self.experiment_id, self.sweep.name, self.parent)

    def figure(self, name: str) -> str:
        """The address, in the UI, of a figure on the parent run."""
        return f"get-artifact?path=figures%2F{quote(name)}&run_uuid={self.parent}"


def _key(record: Record) -> tuple[str, int]:
    return record.stage, record.number


def _trial(run: Any) -> tuple[str, int] | None:
    """The key of the trial that a run is of, by its tags; None where somebody has edited them."""
    tags = run.data.tags
    number = tags.get("trial.number", "")
    return (tags.get("sweep.stage", ""), int(number)) if number.isdecimal() and "sweep.role" in tags else None


def _experiment(client: MlflowClient, place: Place) -> str:
    """The experiment's id; created, or restored from the bin, where needed."""
    settings = place.file.tracking.experiment
    experiment = client.get_experiment_by_name(place.experiment)
    if experiment is None:
        tags = dict(settings.create_experiment_kwargs.tags)
        return str(client.create_experiment(place.experiment, place.artifacts, tags))
    if experiment.lifecycle_stage == "deleted":
        if not settings.restore_if_deleted:
            raise SpecError(f"the experiment {place.experiment!r} is deleted; restore it or name another one")
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def plain(schedule: Schedule) -> dict[str, Any]:
    """A schedule's JSON for a table of params: a warmup that is a fraction stands as one number."""
    params = schedule.to_json()
    if schedule.warmup.length.unit == "fraction":
        params |= {"warmup": schedule.warmup.length.value, "warmup_form": schedule.warmup.form}
    return params


def flat(value: Mapping[str, Any]) -> dict[str, str]:
    """A nested mapping as dotted names and text, the way MLflow keeps params."""
    params: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            params |= {f"{name}.{key}": text for key, text in flat(inner).items()}
        elif inner is not None:
            params[name] = json.dumps(inner) if isinstance(inner, (list, tuple, bool)) else str(inner)
    return params


def escape(text: str) -> str:
    """``text`` for MLflow's markdown, where it may neither be a tag nor a link."""
    return "".join(f"\\{c}" if c in "\\`*_[]()#!|~" else c for c in html.escape(text, quote=False))


def facts() -> dict[str, str]:
    """What a run should say of where it came from: versions, machine, git commit."""
    names = ("torch", "torchvision", "optuna", "mlflow")
    tags = {f"version.{name}": importlib.metadata.version(name) for name in names}
    tags |= {"version.python": platform.python_version(), "platform": platform.platform(terse=True)}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        tags["git.commit"] = head.stdout.strip()
    return tags


@lru_cache(maxsize=1)  # half a second
def _environment() -> list[str]:
    """What is installed, a line each."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)
