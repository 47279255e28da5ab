"""MLflow: one parent run per sweep, one child run per trial, and a saved view that shows the curves.

Everything here is a projection of the study's committed history: the same record sent twice leaves one run with one
value per key and step, because timestamps and steps are the record's own.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .data import updates_per_epoch
from .document import SpecError
from .place import Place, redacted
from .schedules import Schedule, load
from .spec import Record, Sweep

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from .data import Dataset

STATUS = {"complete": "FINISHED", "diverged": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
"""How a trial ended, and the status its run shows."""


def make_client(place: Place) -> MlflowClient:
    """An explicit client: no global tracking URI, no active run, no telemetry unless asked for."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "false" if place.file.telemetry else "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=place.tracking_uri)


class Tracker:
    """A sweep's runs in MLflow, sent from a thread of their own: no lane ever waits for a server.

    ``open`` it before anything is trained: it fails then or not at all. What could not be sent later on is sent again
    when the sweep closes, or goes on.
    """

    def __init__(
        self, place: Place, sweep: Sweep, dataset: Dataset, where: Mapping[str, str], allow: Sequence[str]
    ) -> None:
        self.place, self.sweep, self.dataset, self.allow = place, sweep, dataset, allow
        self.updates = updates_per_epoch(len(dataset.train), sweep.train.batch_size)
        self.facts = facts() | {
            **where,
            "sweep.updates_per_epoch": str(self.updates),
            "sweep.direction": sweep.objective.direction,
        }
        self.client = make_client(place)
        self.experiment_id = _experiment(self.client, place)
        self.parent = ""
        self.runs: dict[tuple[str, int], str] = {}
        """The run of each trial, by its stage and its number in it."""
        self._error: Exception | None = None
        self._settled: set[tuple[str, int]] = set()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="mlflow")

    @staticmethod
    def open(
        place: Place, sweep: Sweep, dataset: Dataset, where: Mapping[str, str], allow: Sequence[str] = ()
    ) -> Tracker:
        """Reach MLflow and the experiment; nothing of the sweep is written yet (see ``go_on``).

        Args:
            where: tags that say what trains: ``device`` and ``engine``.

        Raises:
            SpecError: the tracking server or its database cannot be used.
        """
        with _reachable(place):
            return Tracker(place, sweep, dataset, where, allow)

    def go_on(self, parent: str | None, sweep_file: Path) -> None:
        """Take up the parent run ``parent`` and its trials' runs, or make a parent where there is none.

        Raises:
            SpecError: as ``open``.
        """
        with _reachable(self.place):
            if parent is None or not _usable(self.client, parent):
                self.parent = self._create(self.sweep.name, {"sweep.role": "study"})
                self._describe(sweep_file)
                return
            self.parent = parent
            self.client.update_run(parent, status="RUNNING")
            query = f"tags.`mlflow.parentRunId` = '{parent}'"
            for run in _all_runs(self.client, self.experiment_id, query):
                key = (run.data.tags.get("sweep.stage", ""), int(run.data.tags["trial.number"]))
                self.runs[key] = run.info.run_id
                if run.info.status != "RUNNING":
                    self._settled.add(key)

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        said = {
            **self.place.file.tracking.run.tags,
            **self.facts,
            **tags,
            "sweep.study": self.sweep.name,
            "mlflow.runName": name,
        }
        return str(self.client.create_run(self.experiment_id, tags=resolve_tags(said)).info.run_id)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Send what is left; a sweep that was stopped leaves its parent run KILLED, one that broke FAILED."""
        if kind is not None and self.parent:
            status = "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
            self._send(self.client.set_terminated, self.parent, status)
        self._sender.shutdown(wait=True)

    # ---------------------------------------------------------------------- the parent

    def _describe(self, sweep_file: Path) -> None:
        """Write what the sweep is onto its parent run: question, settings, data, environment."""
        self._params(self.parent, flat({**self.sweep.science(), "trials": self.sweep.search.trials}, skip=("space",)))
        self.note(f"**{escape(self.sweep.question)}**\n\nThe sweep is running.")
        self.client.log_artifact(self.parent, str(sweep_file))
        self.client.log_text(self.parent, "\n".join(_environment()) + "\n", "environment.txt")
        self._dataset(self.parent)
        if self.place.file.ui.saved_view:
            self._save_view()

    def note(self, markdown: str) -> None:
        """The parent run's description."""
        self.client.set_tag(self.parent, "mlflow.note.content", markdown)

    def settle(self, records: Sequence[Record]) -> None:
        """Wait until every ended trial is sent, once more where something was missed; ``runs`` is complete then."""
        if self._flush():
            self.catch_up(records, everything=True)
            self._wait()

    def finish(self, files: Iterable[Path], note: str, summary: Mapping[str, float]) -> str | None:
        """End the parent run with the sweep's results; returns why MLflow lacks something, or None."""
        self._send(self._finish, list(files), note, summary)
        return self._flush()

    def _finish(self, files: Sequence[Path], note: str, summary: Mapping[str, float]) -> None:
        for path in files:
            self.client.log_artifact(self.parent, str(path), "figures" if path.suffix == ".png" else "tables")
        self.note(note)
        self._metrics(self.parent, summary, 0, _now())
        self.client.set_terminated(self.parent, "FINISHED")

    # ---------------------------------------------------------------------- trials, in the background

    def begin(self, record: Record) -> None:
        """A trial has begun, perhaps again."""
        self._send(self._begin, record)

    def epoch(self, record: Record) -> None:
        """A trial has a new last epoch."""
        self._send(self._epoch, record, record.epochs[-1])

    def end(self, record: Record) -> None:
        """A trial has ended."""
        self._send(self._end, record)

    def catch_up(self, ended: Iterable[Record], everything: bool = False) -> None:
        """Send the ended trials whose runs have not ended, or everything; what MLflow has stays as it is."""
        for record in ended:
            if everything or _key(record) not in self._settled:
                self._send(self._begin, record)
                for entry in record.epochs:
                    self._send(self._epoch, record, entry)
                self._send(self._end, record)

    def _flush(self) -> str | None:
        """Wait until everything is sent; returns, and forgets, why something was not. A bug is raised here."""
        self._wait()
        error, self._error = self._error, None
        if error is None:
            return None
        from mlflow.exceptions import MlflowException

        if not isinstance(error, (MlflowException, OSError, KeyError)):  # KeyError: a run that was not created before
            raise error
        return redacted(f"{type(error).__name__}: {error}".splitlines()[0])

    def _wait(self) -> None:
        self._sender.submit(lambda: None).result()

    def _send(self, what: Callable[..., object], *args: Any) -> None:
        def attempt() -> None:
            try:
                what(*args)
            except Exception as error:
                self._error = self._error or error

        self._sender.submit(attempt)

    def _begin(self, record: Record) -> None:
        known = self.runs.get(_key(record))
        if known and _usable(self.client, known):
            if record.outcome is None:
                self.client.update_run(known, status="RUNNING")
            return
        schedule = self._schedule(record)
        what = f"{record.stage} {record.title} " if record.arm else f"{record.stage} t{record.number:04d} ".lstrip()
        run = self._create(
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
        self.runs[_key(record)] = run
        said = {"data": self.sweep.data, "model": self.sweep.model, "train": record.recipe(self.sweep)}
        sections = {name: section.model_dump(mode="json") for name, section in said.items()}
        self._params(run, flat({"schedule": plain(schedule), **sections}))
        self._dataset(run)

    def _schedule(self, record: Record) -> Schedule:
        return load(record.schedule, allow=self.allow)

    def _epoch(self, record: Record, entry: Mapping[str, float]) -> None:
        metrics = {k: v for k, v in entry.items() if k not in ("epoch", "timestamp")}
        self._metrics(self.runs[_key(record)], metrics, int(entry["epoch"]), int(entry["timestamp"]))

    def _end(self, record: Record) -> None:
        run, epochs = self.runs[_key(record)], record.recipe(self.sweep).epochs
        summary = {"total_seconds": record.seconds}
        if record.outcome != "failed":  # perhaps because of its schedule
            lrs = self._schedule(record).lrs(self.updates * epochs, epochs=epochs, history=record.history)
            summary |= {"schedule/mean_lr": math.fsum(lrs) / len(lrs), "schedule/max_lr": max(lrs)}
            rows = "".join(f"{t},{t // self.updates},{lr!r}\n" for t, lr in enumerate(lrs))
            self.client.log_text(run, f"update,epoch,lr\n{rows}", "lr_per_update.csv")
        accuracies = [a for a in record.history if math.isfinite(a)]
        if accuracies:
            summary["best/val_accuracy"] = max(accuracies)
        if record.value is not None:
            summary["objective"] = record.value
        self._metrics(run, summary, 0, int(record.epochs[-1]["timestamp"]) if record.epochs else 0)
        self.client.log_dict(run, dict(record.schedule), "schedule.json")
        if record.cause:
            self.client.set_tag(run, "cause", record.cause[:500])
        self.client.set_tag(run, "outcome", record.outcome)
        self.client.set_terminated(run, STATUS[record.outcome or "failed"])

    # ---------------------------------------------------------------------- sending

    def _metrics(self, run: str, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        from mlflow.entities import Metric

        # MLflow keeps NaN, and turns infinity into the largest float, which no chart survives.
        values = {k: math.nan if math.isinf(v) else float(v) for k, v in metrics.items()}
        self.client.log_batch(
            run, metrics=[Metric(k, v, timestamp, step) for k, v in values.items()], synchronous=True
        )

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

        try:
            self.client.set_experiment_tag(
                self.experiment_id, f"mlflow.sharedViewState.{self._view_key()}", saved_view(self.sweep.name)
            )
        except MlflowException:
            return

    def _view_key(self) -> str:
        import hashlib

        return hashlib.sha256(f"runner/{self.sweep.name}".encode()).hexdigest()[:32]

    def link(self) -> str:
        """The address of the chart page that shows this sweep, for the UI that mlflow.yaml describes."""
        ui = self.place.file.ui
        remote = self.place.tracking_uri.startswith(("http://", "https://"))
        base = redacted(self.place.tracking_uri).rstrip("/") if remote else f"http://{ui.host}:{ui.port}"
        page = f"{base}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        if ui.saved_view:
            return f"{page}&viewStateShareKey={self._view_key()}"
        query = quote(f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{self.sweep.name}'")
        return f"{page}&searchFilter={query}&orderByKey={quote('metrics.`objective`')}&orderByAsc=false"


def _key(record: Record) -> tuple[str, int]:
    return record.stage, record.number


def _usable(client: MlflowClient, run_id: str) -> bool:
    """Whether a run is there and not in the bin."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _experiment(client: MlflowClient, place: Place) -> str:
    """The experiment's id; created, or restored from the bin, where needed."""
    settings = place.file.tracking.experiment
    found = client.get_experiment_by_name(place.experiment)
    if found is None:
        kwargs = settings.create_experiment_kwargs
        return str(
            client.create_experiment(place.experiment, artifact_location=place.artifacts, tags=dict(kwargs.tags))
        )
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
    path = Path(place.tracking_uri.removeprefix("sqlite:///"))
    if place.tracking_uri.startswith("sqlite:///") and not path.exists():
        raise SpecError(f"there is no {path} either")  # and reading makes none
    with _reachable(place):
        return _read_records(place, name)


@contextmanager
def _reachable(place: Place) -> Iterator[None]:
    """Turn what MLflow and its database say when they cannot be used into a SpecError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = redacted((str(error).strip().splitlines() or [""])[0])
        raise SpecError(
            f"MLflow at {redacted(place.tracking_uri)} cannot be used: {reason}; check server.mlflow_tracking_uri"
        ) from None


def _read_records(place: Place, name: str) -> tuple[dict[str, Any], list[Record]]:
    client = make_client(place)
    found = client.get_experiment_by_name(place.experiment)
    query = f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{name}'"
    runs = _all_runs(client, found.experiment_id, query) if found is not None else []
    if not runs:
        raise SpecError(f"MLflow at {redacted(place.tracking_uri)} has no trials of a sweep {name!r}; run it first")
    tags = runs[0].data.tags
    facts = {"direction": tags["sweep.direction"], "updates_per_epoch": int(tags["sweep.updates_per_epoch"])}
    return facts, sorted((_read(client, run) for run in runs), key=lambda record: record.number)


def _all_runs(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    """Every run that fits: ``search_runs`` alone stops at 1000."""
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
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
    outcome = tags.get("outcome")
    return Record(
        number=int(tags["trial.number"]),
        name=tags["schedule.name"],
        schedule=json.loads(tags["schedule"]),
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


def flat(value: Mapping[str, Any], prefix: str = "", skip: Iterable[str] = ()) -> dict[str, str]:
    """A nested mapping as dotted names and text, the way MLflow keeps params."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if name not in skip:
                    yield from walk(inner, f"{key}.{name}" if key else str(name))
        elif value is not None:
            yield key, json.dumps(value) if isinstance(value, (list, tuple, bool)) else str(value)

    return dict(walk(value, prefix))


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


def _environment() -> list[str]:
    """What is installed, a line each."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)


def _now() -> int:
    return int(time.time() * 1000)


# --------------------------------------------------------------------------------------
# The saved view of MLflow's chart page.


def saved_view(name: str) -> str:
    """The value of the experiment tag that presets the chart page for one sweep.

    MLflow draws no learning-rate curve by default and hides nested runs. Since 3.15 a view of its chart page is an
    experiment tag; the format is its own and undocumented, read in 3.17.
    """
    curves, answer = "curves", "answer"
    objective = "metrics.`objective`"
    charts = [
        _line("lr", curves, "Learning rate") | {"scaleType": "log"},
        _line("val/accuracy", curves, "Validation accuracy"),
        _line("train/loss", curves, "Training loss"),
        _chart(
            "PARALLEL",
            answer,
            selectedParams=["schedule.type", "schedule.init_lr", "schedule.warmup"],
            selectedMetrics=["objective"],
            showAllRuns=True,
            displayName="What leads to which accuracy",
        ),
        _chart(
            "SCATTER",
            answer,
            xaxis={"key": "schedule.init_lr", "type": "PARAM"},
            yaxis={"key": "objective", "type": "METRIC"},
            displayName="Accuracy against init_lr",
        ),
        _chart("BAR", answer, runsCountToCompare=20, metricKey="objective"),
    ]
    sections = [
        {"uuid": curves, "name": "Curves", "columns": 3},
        {"uuid": answer, "name": "Which schedule is best", "columns": 3},
    ]
    state = {
        "searchFilter": f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{name}'",
        "orderByKey": objective,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            objective,
            "tags.`schedule.type`",
            "params.`schedule.init_lr`",
            "params.`schedule.warmup`",
            "tags.`outcome`",
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            section | {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for section in sections
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "chartsSearchFilter": "",
    }
    return json.dumps({"name": f"{name}: schedules", "createdAt": _now(), "state": json.dumps(state)})


def _chart(kind: str, section: str, **settings: Any) -> dict[str, Any]:
    common = {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    named = settings.get("metricKey") or settings.get("displayName")
    return common | {"type": kind, "uuid": f"{section}-{kind}-{named}"} | settings


def _line(metric: str, section: str, title: str) -> dict[str, Any]:
    return _chart(
        "LINE",
        section,
        metricKey=metric,
        selectedMetricKeys=[metric],
        displayName=title,
        lineSmoothness=0,
        xAxisScaleType="linear",
        scaleType="linear",
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
        range={},
    )
