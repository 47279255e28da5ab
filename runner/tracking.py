"""MLflow: one parent run per sweep, one child run per trial, and a saved view that shows the curves.

Everything here is a projection of the study's committed history: the same record sent twice leaves one run with one
value per key and step, because timestamps and steps are the record's own.
"""

from __future__ import annotations

import contextlib
import errno
import html
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .document import SpecError, first_line
from .place import Place, alone, redacted, sqlite_path
from .schedules import Schedule, load
from .sender import Sender
from .spec import Record, Sweep
from .terminal import say
from .ui import ML, links, saved_view, view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .data import Dataset
    from .sweep import Options

STATUS = {"complete": "FINISHED", "diverged": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
"""How a trial ended, and the status its run shows."""
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "IO_ERROR", "DEADLINE_EXCEEDED")
"""MLflow's codes for what may pass by itself; a server that cannot be reached is an internal error to it."""
LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EROFS)
"""What is wrong with a local folder and does not pass by itself."""
CLOUDS = ("botocore", "boto3", "azure", "google", "paramiko")
"""The libraries of artifact stores, whose errors have no ancestor in common."""
NOTE = "mlflow.note.content"
"""The tag that holds a run's description."""
Note = Callable[[Callable[[str], str]], str]
"""A description, once it is known where figures are."""


def make_client(place: Place) -> MlflowClient:
    """An explicit client: no global tracking URI, no active run, no telemetry unless asked for."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "false" if place.file.telemetry else "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the sender tries again, and knows what it did
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what is raised is said anyhow
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=place.tracking_uri)


def check(place: Place) -> None:
    """Refuse a database that is not there and cannot be made: MLflow itself would try for minutes.

    Raises:
        SpecError: what is wrong with its folder.
    """
    path = _missing(place)
    if path is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        wrong = "cannot be written to" if path.parent.is_dir() else "is no folder"
        raise SpecError(f"MLflow's {path} cannot be made: {path.parent} {wrong}; check server.mlflow_tracking_uri")


def _missing(place: Place) -> Path | None:
    """MLflow's database where that is a file which is not there yet: a client would make it."""
    path = sqlite_path(place.tracking_uri)
    return None if path is None or path.exists() else path


class Tracker:
    """A sweep's runs in MLflow, sent from a thread of their own: no lane ever waits for a server.

    What is to be sent is a set of jobs by name, of which the newest of a name replaces the one before. A job brings
    MLflow to where the study is and may be done again. While a server is away its jobs wait, and training goes on;
    what is still missing at the end is sent when the sweep is begun again, or with ``--sync``.
    """

    def __init__(
        self, place: Place, sweep: Sweep, dataset: Dataset, where: Mapping[str, str], options: Options
    ) -> None:
        """``where``: tags that say what trains, ``device`` and ``engine``."""
        self.place, self.sweep, self.dataset, self.options = place, sweep, dataset, options
        self.updates = sweep.train.updates(len(dataset.train))
        self.facts = facts() | {
            **where,
            "sweep.updates_per_epoch": str(self.updates),
            "sweep.direction": sweep.objective.direction,
        }
        self.client: MlflowClient
        self.experiment_id = self.parent = ""
        self.runs: dict[tuple[str, int], str] = {}
        """The run of each trial, by its stage and its number in it."""
        self._settled = set[tuple[str, int]]()
        self._known = False
        """Whether these are all that MLflow has."""
        self._sent: dict[str, int] = {}
        """How many epochs are on each run that says what it trains."""
        self._identity = ""
        self._status = "KILLED"
        """What the parent run is left as where the sweep does not end."""
        self._local = sqlite_path(place.tracking_uri) is not None
        self._finished = False
        self._sender = Sender(self._reach, _trouble, _passing, self._say_whether_it_answers)

    def __enter__(self) -> Tracker:
        """Reach MLflow and the experiment; nothing of the sweep is written yet.

        Raises:
            SpecError: the tracking server or its database cannot be used. A server that does not answer is waited
                for in the background.
        """
        self._sender.start()
        self._sender.do("experiment", self._reach)
        self._sender.wait(600.0 if self._local else 2.0)
        if self._sender.bug is not None:
            raise self._sender.bug
        wrong = self._sender.refused or (self._sender.away if self._local else None)
        if wrong is not None:
            raise unusable(self.place, wrong)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left; a sweep that was stopped leaves its parent run KILLED, one that broke FAILED.

        Raises a bug of the sender's, where nothing else went wrong.
        """
        if self.parent and not (kind is None and self._finished):
            status = self._status if kind is None or issubclass(kind, KeyboardInterrupt) else "FAILED"
            self._sender.do("status", lambda: self.client.set_terminated(self.parent, status))
        self._sender.wait(5.0, most=10.0)
        self._sender.close()
        if self._sender.bug is not None and kind is None:
            raise self._sender.bug

    def go_on(self, identity: str) -> None:
        """Take up the parent run and the trials' runs that have this ``sweep.id``, or make what is not there."""
        self._identity = identity
        self._sender.do("parent", self._reach)
        self._sender.wait(2.0)

    def show(self, *records: Record) -> None:
        """Bring MLflow to where these trials are; what it has stays as it is."""
        for record in records:
            if _key(record) not in self._settled:
                self._sender.do(_key(record), partial(self._project, record))

    def settle(self, records: Sequence[Record] = ()) -> str | None:
        """Wait until these are sent, those too whose runs somebody has deleted since; ``runs`` is complete then.

        Returns: why something is missing, or None.
        """
        if records:
            self._sender.do("look", self._look)
            self._sender.again()
            self.show(*records)
        self._sender.again()
        if self._sender.idle:
            return None
        error = self._sender.bug or self._sender.away or self._sender.refused or TimeoutError("it does not answer")
        return redacted(f"{type(error).__name__}: {error}".splitlines()[0])

    def finish(self, files: Iterable[Path], note: Note, summary: Mapping[str, float]) -> str | None:
        """End the parent run with the sweep's results; why MLflow lacks something, or None."""
        self._finished = True
        self._sender.do("report", partial(self._finish, list(files), note, summary))
        return self.settle()

    def _say_whether_it_answers(self, back: bool) -> None:
        if back:
            say("MLflow answers again")
        elif self._identity or not self._local:  # else it ends the sweep before it begins
            said = f"MLflow at {redacted(self.place.tracking_uri)} does not answer"
            say(f"warning: {said}; training goes on, and what it misses is sent when it is back")

    # ---------------------------------------------------------------------- the parent

    def _reach(self) -> None:
        """Before anything else is sent: the experiment; and, once the sweep is known, what it has of that."""
        if not self.experiment_id:
            with alone(self.place.tracking_uri):
                self.client = make_client(self.place)  # which asks a database at once, and again and again
                self.experiment_id = _experiment(self.client, self.place)
        if self._identity and not self._known:
            self._look()

    def _look(self) -> None:
        """Find the runs of this sweep as they are now, and make the parent where there is none."""
        ours = _all_runs(self.client, self.experiment_id, f"tags.`sweep.id` = '{self._identity}'", "ASC")
        runs, settled = dict[tuple[str, int], str](), set[tuple[str, int]]()
        known = next((run for run in ours if run.data.tags.get("sweep.role") == "study"), None)
        parent = known.info.run_id if known else self._create(self.sweep.name, {"sweep.role": "study"})
        if known:
            if self.options.sync and known.info.status != "RUNNING":
                self._status = known.info.status
            self.client.update_run(parent, status="RUNNING")
        if not known or "sweep.described" not in known.data.tags:
            self._sender.do("describe", partial(self._describe, parent))
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
                settled.add(key)
        self.parent, self.runs, self._settled, self._known = parent, runs, settled, True

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        said = {
            **self.place.file.tracking.run.tags,
            **self.facts,
            **tags,
            "sweep.study": self.sweep.name,
            "sweep.id": self._identity,
            "mlflow.runName": name,
        }
        return str(self.client.create_run(self.experiment_id, tags=resolve_tags(said)).info.run_id)

    def _describe(self, run: str) -> None:
        """Write what the sweep is onto its parent run: question, settings, data, environment."""
        said = {key: part for key, part in self.sweep.science().items() if key != "space"}
        self._params(run, flat(said))
        if not self._finished:  # else its report is there, or comes
            self.client.set_tag(run, NOTE, f"**{escape(self.sweep.question)}**\n\nThe sweep is running.")
        self.client.log_text(run, self.options.text, self.options.file.name)
        self.client.log_text(run, "\n".join(_environment()) + "\n", "environment.txt")
        self._dataset(run)
        if self.place.file.ui.saved_view:
            self._save_view()
        self.client.set_tag(run, "sweep.described", "yes")

    def _finish(self, files: Sequence[Path], note: Note, summary: Mapping[str, float]) -> None:
        for path in files:
            folder = "figures" if path.suffix in (".png", ".html") else "tables"
            self.client.log_artifact(self.parent, str(path), folder)
        self.client.set_tag(self.parent, NOTE, note(self.figure))
        self._metrics(self.parent, [(summary, 0, int(time.time() * 1000))])
        self.client.set_terminated(self.parent, "FINISHED")

    # ---------------------------------------------------------------------- trials

    def _project(self, record: Record) -> None:
        """Bring a trial's run to where the trial is; a run that somebody has deleted is made again."""
        from mlflow.exceptions import MlflowException

        key = _key(record)
        try:
            self._bring(record)
        except MlflowException as error:
            if key not in self.runs or _passing(error):
                raise
            self._look()
            if key in self.runs:
                raise
            self._bring(record)

    def _bring(self, record: Record) -> None:
        key = _key(record)
        if key not in self.runs:
            self._known = False  # until this is answered
            self.runs[key] = self._begin(record)
            self._known = True
        run, recipe = self.runs[key], record.recipe(self.sweep)
        if run not in self._sent:
            said = {"data": self.sweep.data, "model": self.sweep.model, "train": recipe}
            sections = {name: section.model_dump(mode="json") for name, section in said.items()}
            self._params(run, flat({"schedule": plain(self._schedule(record)), **sections}))
            self._dataset(run)
            self._sent[run] = 0
        if new := record.epochs[self._sent[run] :]:
            self._metrics(run, [(_measured(entry), int(entry["epoch"]), int(entry["timestamp"])) for entry in new])
            self._sent[run] = len(record.epochs)
        if record.outcome is not None:
            self._end(run, record)
            self._settled.add(key)

    def _begin(self, record: Record) -> str:
        schedule = self._schedule(record)
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
                "schedule": json.dumps(record.schedule),
                "outcome": "running",
            },
        )

    def _end(self, run: str, record: Record) -> None:
        epochs, summary = record.recipe(self.sweep).epochs, {"total_seconds": record.seconds}
        if record.outcome != "failed" and (lrs := self._lrs(record, epochs)):
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

    def _lrs(self, record: Record, epochs: int) -> list[float]:
        """Of every update; none where one's own function breaks in an epoch that was never trained."""
        try:
            return self._schedule(record).lrs(self.updates * epochs, epochs=epochs, history=record.history)
        except (ArithmeticError, ValueError):
            return []

    def _schedule(self, record: Record) -> Schedule:
        return load(record.schedule, allow=self.options.allow)

    # ---------------------------------------------------------------------- sending

    def _metrics(self, run: str, points: Iterable[tuple[Mapping[str, float], int, int]]) -> None:
        """Log metrics, each mapping with its step and its timestamp."""
        from mlflow.entities import Metric

        # MLflow keeps NaN, and turns infinity into the largest float, which no chart survives.
        metrics = [
            Metric(key, math.nan if math.isinf(value) else float(value), timestamp, step)
            for values, step, timestamp in points
            for key, value in values.items()
        ]
        self.client.log_batch(run, metrics=metrics, synchronous=True)

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(k, v) for k, v in params.items()], synchronous=True)

    def _dataset(self, run: str) -> None:
        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        dataset = self.dataset
        sizes = {name: len(getattr(dataset, name)) for name in ("train", "val", "test")}
        source = json.dumps({"source": self.sweep.data.source, "path": self.sweep.data.path})
        entity = Entity(
            name=dataset.name,
            digest=dataset.digest[:16],
            source_type="local",
            source=source,
            profile=json.dumps(sizes | {"classes": dataset.classes}),
        )
        self.client.log_inputs(run, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    # ---------------------------------------------------------------------- seeing

    def _save_view(self) -> None:
        """The chart page's view: undocumented tags of MLflow's own, so a failure here is no failure."""
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            for grouped in (False, True):
                key = f"mlflow.sharedViewState.{view_key(self.sweep.name, grouped)}"
                self.client.set_experiment_tag(self.experiment_id, key, saved_view(self.sweep.name, grouped))

    def links(self) -> dict[str, str]:
        """The addresses of the pages that show this sweep, by what they show."""
        return links(self.place, self.experiment_id, self.sweep.name, self.parent)

    def figure(self, name: str) -> str:
        """The address, in the UI, of a figure on the parent run: a picture, or a page that shows one."""
        if name.endswith(".html"):
            return f"#/experiments/{self.experiment_id}/runs/{self.parent}/artifacts/figures/{quote(name)}?{ML}"
        return f"get-artifact?path=figures%2F{quote(name)}&run_uuid={self.parent}"


def pages(place: Place, port: int | None = None) -> dict[str, dict[str, str]]:
    """The pages of every sweep that MLflow has by what they show, the newest sweep first.

    Raises:
        SpecError: its database cannot be used.
    """
    check(place)
    if _missing(place):
        return {}
    try:
        client = make_client(place)
        found = client.get_experiment_by_name(place.experiment)
        if found is None:
            return {}
        runs = _all_runs(client, found.experiment_id, "tags.`sweep.role` = 'study'", "DESC")
        known = {run.data.tags.get("sweep.study", ""): run.info.run_id for run in reversed(runs)}
        return {name: links(place, found.experiment_id, name, known[name], port) for name in reversed(known)}
    except Exception as error:
        if not _trouble(error):
            raise
        raise unusable(place, error) from None


def _key(record: Record) -> tuple[str, int]:
    return record.stage, record.number


def _trial(run: Any) -> tuple[str, int] | None:
    """The key of the trial that a run is of, by its tags; None where somebody has edited them."""
    tags = run.data.tags
    number = tags.get("trial.number", "")
    return (tags.get("sweep.stage", ""), int(number)) if number.isdecimal() and "sweep.role" in tags else None


def _measured(entry: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in entry.items() if k not in ("epoch", "timestamp")}


def _experiment(client: MlflowClient, place: Place) -> str:
    """The experiment's id; created, or restored from the bin, where needed."""
    settings = place.file.tracking.experiment
    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        tags = dict(settings.create_experiment_kwargs.tags)
        return str(client.create_experiment(place.experiment, place.artifacts, tags))
    if found.lifecycle_stage == "deleted":
        if not settings.restore_if_deleted:
            raise SpecError(f"the experiment {place.experiment!r} is deleted; restore it or name another one")
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def read_records(place: Place, name: str) -> tuple[dict[str, Any], list[Record]]:
    """A sweep's facts and trials as MLflow has them, typed again by the schedule's own JSON.

    MLflow returns params as text, so none is read.

    Raises:
        SpecError: MLflow has no trials of that sweep.
    """
    if path := _missing(place):
        raise SpecError(f"there is no {path} either")
    try:
        client = make_client(place)
        found = client.get_experiment_by_name(place.experiment)
        query = f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{name}'"
        runs = _all_runs(client, found.experiment_id, query, "DESC") if found is not None else []
        if not runs:
            where = redacted(place.tracking_uri)
            raise SpecError(f"MLflow at {where} has no trials of a sweep {name!r}; run it first")
        tags = runs[0].data.tags  # the newest study of that name
        sign = 1 if tags["sweep.direction"] == "maximize" else -1
        facts = {"sign": sign, "updates_per_epoch": int(tags["sweep.updates_per_epoch"])}
        records = [_read(client, run) for run in runs if run.data.tags.get("sweep.id") == tags.get("sweep.id")]
        return facts, sorted(records, key=lambda record: record.number)
    except (KeyError, ValueError, TypeError) as error:
        raise SpecError(
            f"MLflow's runs of {name!r} no longer say what they are ({error}): their tags were edited"
        ) from None
    except Exception as error:
        if not _trouble(error):
            raise
        raise unusable(place, error) from None


def _trouble(error: Exception) -> bool:
    """Whether it is MLflow's, its server's or the disk's fault; else it is a bug."""
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    known = (MlflowException, SQLAlchemyError, OSError, ImportError, json.JSONDecodeError, ParseError, SpecError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in CLOUDS


def _passing(error: Exception) -> bool:
    """Whether it may pass by itself: nothing that MLflow refuses, or that is missing here."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    if isinstance(error, SQLAlchemyError):
        return isinstance(error, OperationalError)
    if isinstance(error, (SpecError, ImportError)):
        return False
    if isinstance(error, OSError) and error.errno in LASTING:
        return False
    return getattr(error, "error_code", "INTERNAL_ERROR") in PASSING


def unusable(place: Place, error: Exception) -> SpecError:
    """What MLflow and its database say when they cannot be used, in a sentence."""
    if isinstance(error, SpecError):
        return error
    reason = redacted(first_line(error))
    return SpecError(
        f"MLflow at {redacted(place.tracking_uri)} cannot be used: {reason}; check server.mlflow_tracking_uri"
    )


def _all_runs(client: MlflowClient, experiment_id: str, query: str, order: str) -> list[Any]:
    """Every run that fits, by its start, ``ASC`` or ``DESC``: ``search_runs`` alone stops at 1000."""
    runs, token, by = [], None, [f"attributes.start_time {order}"]
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, order_by=by, page_token=token)
        runs += list(page)
        token = page.token
        if not token:
            return runs


def _read(client: MlflowClient, run: Any) -> Record:
    tags, metrics = run.data.tags, run.data.metrics
    epochs: dict[int, dict[str, float]] = {}
    for key in ("lr", "train/loss", "val/loss", "val/accuracy", "test/accuracy", "seconds"):
        for point in client.get_metric_history(run.info.run_id, key) if key in metrics else []:
            entry = epochs.setdefault(point.step, {"epoch": point.step, "timestamp": point.timestamp})
            entry[key] = point.value
    outcome, schedule = tags.get("outcome"), json.loads(tags["schedule"])
    if schedule["type"] != "custom":
        load(schedule)  # somebody may have edited it; what is custom needs its function
    return Record(
        number=int(tags["trial.number"]),
        name=tags["schedule.name"],
        schedule=schedule,
        params={},
        outcome=outcome if outcome in STATUS else None,
        value=metrics.get("objective"),
        epochs=tuple(epochs[n] for n in sorted(epochs)),
        run_id=run.info.run_id,
        cause=tags.get("cause"),
    )


def plain(schedule: Schedule) -> dict[str, Any]:
    """A schedule's JSON for a table of params: a warmup that is a fraction stands as one number."""
    said = schedule.to_json()
    if schedule.warmup.length.unit == "fraction":
        said["warmup"] = schedule.warmup.length.value
        said["warmup_form"] = schedule.warmup.form
    return said


def flat(value: Mapping[str, Any]) -> dict[str, str]:
    """A nested mapping as dotted names and text, the way MLflow keeps params."""
    found: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= {f"{name}.{key}": text for key, text in flat(inner).items()}
        elif inner is not None:
            found[str(name)] = json.dumps(inner) if isinstance(inner, (list, tuple, bool)) else str(inner)
    return found


def escape(text: str) -> str:
    """``text`` for MLflow's markdown, where it may neither be a tag nor a link."""
    return "".join(f"\\{c}" if c in "\\`*_[]()#!|~" else c for c in html.escape(text, quote=False))


def facts() -> dict[str, str]:
    """What a run should say of where it came from: versions, machine, git commit."""
    names = ("torch", "torchvision", "optuna", "mlflow")
    said = {f"version.{name}": importlib.metadata.version(name) for name in names}
    said |= {"version.python": platform.python_version(), "platform": platform.platform(terse=True)}
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
        if done.returncode == 0:
            said["git.commit"] = done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    return said


@lru_cache(maxsize=1)  # half a second
def _environment() -> list[str]:
    """What is installed, a line each."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)
