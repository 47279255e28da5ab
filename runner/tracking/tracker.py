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
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from ..files import sqlite
from ..files.document import Document, SpecError
from ..files.place import Place, StorageError
from ..files.secrets import redacted
from ..files.sweep_file import Sweep
from ..files.trial import Record
from ..schedules.colours import colour
from ..schedules.schedule import Schedule
from .client import all_runs, in_bin, is_server_error, is_transient, make_client, make_database, said, unusable
from .sender import PATIENCE, Sender
from .views import links, saved_view, view_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_TAG, MOST_PARAM = 8_000, 6_000
"""Characters of a tag and of a param that every store of MLflow's keeps."""
STATUS = {"complete": "FINISHED", "diverged": "KILLED", "stopped": "KILLED", "failed": "FAILED"}
"""How a trial ended, and the status its run shows."""
FILES = "sweep.files"
"""The tag that says of a trial's run whether its files are there."""
UNUSUAL, MOST_NAME = r"[^\w.\- :/]", 250
"""What the name of a metric may not have in MLflow, and how many characters it may have."""
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
        updates: int,
        tags: Mapping[str, str],
        say: Callable[[str], None],
        sync: bool = False,
    ) -> None:
        """
        Args:
            place, sweep, document: where runs go, what is tracked, and the file that it is from, for its run.
            data: ``name``, ``digest``, ``classes`` and the sizes of ``train``, ``val`` and ``test``; nothing where a
                training of one's own brings them.
            updates: in an epoch.
            tags: what trains: ``device`` and ``engine``.
            say: is told when a server goes away, and when it is back.
            sync: this is all that is done: wait for the server; leave the status of a parent run that has ended.
        """
        self.place, self.sweep, self.document, self.data = place, sweep, document, data
        self.updates = updates
        said = sweep.own is None or sweep.own.updates_per_epoch is not None
        length = {"sweep.updates_per_epoch": str(self.updates)} if said else {}
        self.facts = {**facts(), **tags, **length, "sweep.direction": sweep.objective.direction}
        self._say, self._sync = say, sync
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
        self._local = sqlite.path_of(place.tracking_uri)
        self._database: sqlite.Unmoved | None = None
        self._finished = self._reported = False
        self._refusals = set[str]()
        self._sender = Sender(self._reach, self._say_whether_it_answers, self._say_what_is_refused)

    def __enter__(self) -> Tracker:
        """Reach MLflow and the experiment; nothing of the sweep is written yet.

        Raises:
            SpecError: the tracking server or its database cannot be used. A server that does not answer is waited
                for in the background.
        """
        sender = self._sender
        sender.start()
        sender.submit("experiment", self._reach)
        sender.wait(600.0 if self._local else PATIENCE if self._sync else 2.0)
        if sender.bug is not None:
            raise sender.bug
        if wrong := sender.refused or (sender.unreachable if self._local else None):
            refusal = unusable(self.place, wrong)
            raise StorageError(str(refusal)) if self._sync else refusal
        self._database = sqlite.Unmoved(self._local) if self._local else None
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
                self._sender.submit(_key(record), partial(self._send_trial, record, self._send_news))

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
        return said(sender.bug or sender.unreachable or sender.refused or TimeoutError("it does not answer"))

    def check_file(self) -> None:
        """Raise StorageError where MLflow's database was removed or replaced."""
        if self._database is not None and not self._database:
            what = "replaced" if self._database.path.exists() else "removed"
            wrong = f"MLflow's database {self._database.path} was {what} while the sweep ran"
            raise StorageError(f"{wrong}; the study has everything, and the same command brings it to MLflow again")

    def report(self, files: Iterable[Path], note: Note) -> None:
        """Put what is known so far onto the parent run, which goes on."""
        self._reported = True
        self._sender.submit("report", partial(self._report, list(files), note))

    def finish(self, files: Iterable[Path], note: Note, summary: Mapping[str, float], timestamp: int) -> str | None:
        """End the parent run with the sweep's results; why MLflow lacks something, or None. ``timestamp``, in ms, is
        the results' own: what is sent again leaves one point."""
        self._finished = self._reported = True
        self._sender.submit("report", partial(self._finish, list(files), note, summary, timestamp))
        return self.flush()

    def _say_whether_it_answers(self, error: Exception | None) -> None:
        if error is None:
            self._say("MLflow answers again")
        elif self._identity or not self._local:  # else it ends the sweep before it begins
            wrong = f"MLflow at {redacted(self.place.tracking_uri)} does not answer ({said(error)})"
            self._say(f"warning: {wrong}; training goes on, and what it misses is sent when it is back")

    def _say_what_is_refused(self, error: Exception) -> None:
        """At once, and every reason once."""
        if self._identity and (why := said(error)) not in self._refusals:
            self._refusals.add(why)
            wrong = f"MLflow at {redacted(self.place.tracking_uri)} refuses something ({why})"
            self._say(f"warning: {wrong}; training goes on; mend it, and --sync sends what it lacks")

    def _reach(self) -> None:
        """Before anything else is sent: the experiment; and, once the sweep is known, what it has of that."""
        if not self.experiment_id:
            make_database(self.place)
            with sqlite.alone(self._local):
                self.client = make_client(self.place)  # which asks a database at once, and again and again
                self.experiment_id = _experiment(self.client, self.place, self._say)
        if self._identity and not self._known:
            self._find_runs()

    def _find_runs(self) -> None:
        """Find the runs of this sweep as they are now, and make the parent where there is none."""
        ours = all_runs(self.client, self.experiment_id, f"tags.`sweep.id` = '{self._identity}'", "ASC")
        ours.sort(key=in_bin)  # what is in the bin comes last, and is taken out where nothing is in its place
        runs, ended, restored = dict[tuple[str, int], str](), set[tuple[str, int]](), 0
        parents = [run for run in ours if run.data.tags.get("sweep.role") == "study"]
        before = parents[0] if parents else None
        parent = before.info.run_id if before else self._create(self.sweep.name, {"sweep.role": "study"})
        if before:
            if in_bin(before):
                self.client.restore_run(parent)
                restored += 1
            if self._sync and before.info.status != "RUNNING":
                self._status = before.info.status
            self.client.update_run(parent, status="RUNNING")
        for other in parents[1:]:  # of a sweep whose parent was in the bin for a while
            if not in_bin(other):
                self.client.delete_run(other.info.run_id)
        if not before or "sweep.described" not in before.data.tags:
            self._sender.submit("describe", partial(self._describe, parent))
        for run in ours:
            run_id, key = run.info.run_id, _trial(run)
            if key is None:
                continue
            if runs.setdefault(key, run_id) != run_id:
                if not in_bin(run):  # made twice: the first answer was lost
                    self.client.delete_run(run_id)
                continue
            if in_bin(run):
                self.client.restore_run(run_id)
                restored += 1
            if run.data.tags.get("mlflow.parentRunId") != parent:
                self.client.set_tag(run_id, "mlflow.parentRunId", parent)
            if run.info.status != "RUNNING" and run.data.tags.get(FILES) != "lacking":
                ended.add(key)
        if restored:
            self._say(f"{restored} of this sweep's runs lay in MLflow's bin: brought back")
        self.parent, self.runs, self._ended, self._known = parent, runs, ended, True

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        named = {"sweep.study": self.sweep.name, "sweep.id": self._identity, "mlflow.runName": name}
        all_tags = resolve_tags({**self.place.file.tracking.run.tags, **self.facts, **tags, **named})
        # MLflow's own, too: the address of a checkout may hold a token
        shown = {key: shortened(redacted(value), MOST_TAG) for key, value in all_tags.items()}
        return str(self.client.create_run(self.experiment_id, tags=shown).info.run_id)

    def _describe(self, run: str) -> None:
        """Write what the sweep is onto its parent run: question, settings, data, environment."""
        from mlflow.exceptions import MlflowException

        self._params(run, flat({key: part for key, part in self.sweep.science().items() if key != "space"}))
        if not self._reported:  # else its report is there, or comes
            self.client.set_tag(run, NOTE, f"**{escape(self.sweep.question)}**\n\nThe sweep is running.")
        self._dataset(run)
        if self.place.file.ui.saved_view:
            with contextlib.suppress(MlflowException):  # undocumented tags of MLflow's own: a failure is none
                for grouped in (False, True):
                    key = f"mlflow.sharedViewState.{view_key(self.sweep.name, grouped)}"
                    view = saved_view(self.sweep.name, grouped, self.sweep.objective)
                    self.client.set_experiment_tag(self.experiment_id, key, view)
        texts = {self.document.path.name: self.document.text, "environment.txt": "\n".join(_environment()) + "\n"}
        self._each([partial(self.client.log_text, run, text, name) for name, text in texts.items()])
        self.client.set_tag(run, "sweep.described", "yes")

    def _finish(self, files: Sequence[Path], note: Note, summary: Mapping[str, float], timestamp: int) -> None:
        self._metrics(self.parent, [(summary, 0, timestamp)])
        self.client.set_terminated(self.parent, "FINISHED")
        self._report(files, note)

    def _report(self, files: Sequence[Path], note: Note) -> None:
        self.client.set_tag(self.parent, NOTE, _note(note(self.figure)))
        places = {".png": "figures", ".safetensors": "weights", ".pt": "weights"}
        folders = {path: places.get(path.suffix, "tables") for path in files}
        self._each([partial(self.client.log_artifact, self.parent, str(p), to) for p, to in folders.items()])

    def _each(self, uploads: Iterable[Callable[[], object]]) -> None:
        """Send files, each alone; raises the first refusal when all have been tried. What is away is tried later."""
        refused: Exception | None = None
        for upload in uploads:
            try:
                upload()
            except Exception as error:
                if not is_server_error(error) or is_transient(error):
                    raise
                refused = refused or error
        if refused is not None:
            raise refused

    def _send_trial(self, record: Record, send: Callable[[Record], None]) -> None:
        """Bring a trial's run, or its files, to where the trial is; one that somebody has deleted is brought back."""
        from mlflow.exceptions import MlflowException

        key = _key(record)
        try:
            send(record)
        except MlflowException as error:
            if key not in self.runs or is_transient(error):
                raise
            before = self.runs[key]
            self._find_runs()
            if self.runs.get(key) == before:  # it was in the bin; another reason comes again
                self._sent.pop(before, None)
            send(record)

    def _send_news(self, record: Record) -> None:
        key = _key(record)
        if key not in self.runs:
            self._known = False  # until this is answered
            self.runs[key] = self._begin(record)
            self._known = True
        run, recipe = self.runs[key], record.recipe(self.sweep)
        if run not in self._sent:
            ours = {"data": self.sweep.data, "model": self.sweep.model} if self.data else {}
            sections: dict[str, Any] = {**ours, "train": recipe}
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
        """First what is known of the trial, then its files: a store of files may refuse what a database takes."""
        from mlflow.entities import RunTag

        lrs, summary = [lr for _, lr in self._rates(record)], {"total_seconds": record.seconds}
        if lrs:
            mean, peak = math.fsum(lrs) / len(lrs), max(lrs)
            summary |= {"schedule/mean_lr": mean, "schedule/max_lr": peak}
            if peak > 0:  # a piecewise schedule, or one's own, may be 0 throughout
                summary["schedule/final_over_peak"] = lrs[-1] / peak
        wanted = self.sweep.objective
        if values := [v for v in record.values(wanted.metric) if math.isfinite(v)]:
            best = max(values) if wanted.sign > 0 else min(values)
            summary[f"best/{wanted.metric.replace('/', '_')}"] = best
        if record.value is not None:
            summary["objective"] = record.value
        self._metrics(run, [(summary, 0, int(record.epochs[-1]["timestamp"]) if record.epochs else 0)])
        tags = {"outcome": record.outcome or "failed", FILES: "lacking"} | (
            {"cause": record.cause[:500]} if record.cause else {}
        )
        if record.remark:
            tags["remark"] = record.remark[:500]
        if record.updates is not None:
            tags["sweep.updates_per_epoch"] = str(record.updates)
        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(run, STATUS[record.outcome or "failed"])
        self._sender.submit(("files", *_key(record)), partial(self._send_trial, record, self._send_files))

    def _send_files(self, record: Record) -> None:
        run = self.runs[_key(record)]
        rows = "".join(f"{t},{epoch},{lr!r}\n" for t, (epoch, lr) in enumerate(self._rates(record)))
        uploads: list[Callable[[], object]] = [
            partial(self.client.log_dict, run, dict(record.schedule), "schedule.json")
        ]
        if rows:
            uploads.append(partial(self.client.log_text, run, f"update,epoch,lr\n{rows}", "lr_per_update.csv"))
        log = self.place.folder / "results" / self.sweep.name / "logs" / f"{record.slug}.log"
        if log.is_file():
            uploads.append(partial(self.client.log_text, run, redacted(log.read_text(errors="replace")), "log.txt"))
        self._each(uploads)
        self.client.set_tag(run, FILES, "there")

    def _rates(self, record: Record) -> list[tuple[int, float]]:
        """The epochs and the learning rates of all updates of a trial, as they were used; none of one that failed."""
        epochs, updates = record.recipe(self.sweep).epochs, record.updates or self.updates
        if record.outcome == "failed":
            return []
        try:
            schedule, history = self.sweep.schedule(record.schedule), record.history(self.sweep.objective)
            planned = schedule.lrs(updates * epochs, epochs=epochs, history=history)
        except (ArithmeticError, ValueError):  # one's own function, in an epoch never trained
            return []
        used = list[tuple[int, float]]()
        for number in range(len(record.epochs) if record.used else epochs):
            plan = [(1, lr) for lr in planned[number * updates : (number + 1) * updates]]
            used += [(number, lr) for n, lr in record.used.get(number, plan) for _ in range(n)]
        return used

    def _metrics(self, run: str, points: Iterable[tuple[Mapping[str, float], int, int]]) -> None:
        """Log metrics, each mapping with its step and its timestamp, which may stand in it too."""
        from mlflow.entities import Metric

        # MLflow keeps NaN, and turns infinity into the largest float, which no chart survives.
        metrics = [
            Metric(_name(key), math.nan if math.isinf(value) else float(value), timestamp, step)
            for values, step, timestamp in points
            for key, value in values.items()
            if key not in ("epoch", "timestamp")
        ]
        self.client.log_batch(run, metrics=metrics, synchronous=True)

    def _params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        short = [Param(key, shortened(value, MOST_PARAM)) for key, value in params.items()]
        self.client.log_batch(run, params=short, synchronous=True)

    def _dataset(self, run: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data, source = self.data, self.sweep.data
        if source is None:
            return
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
    return (
        (tags.get("sweep.stage", ""), int(number))
        if re.fullmatch("[0-9]{1,9}", number) and "sweep.role" in tags
        else None
    )


def shortened(text: str, most: int) -> str:
    """``text`` where a store keeps all of it, else what fits, and that it is cut."""
    return text if len(text) <= most else f"{text[: most - 40]}... (cut: see schedule.json)"


def _note(text: str) -> str:
    """A description that every store keeps: where it is too long, its first paragraphs."""
    rest = "\n\nThe rest is in report.md, below Artifacts."
    while len(text) > MOST_TAG:
        text = text.removesuffix(rest)[: MOST_TAG - len(rest)].rpartition("\n\n")[0] + rest
    return text


def _experiment(client: MlflowClient, place: Place, say: Callable[[str], None]) -> str:
    """The experiment's id; created, or restored from the bin, where needed. Raises SpecError where its artifacts were
    moved away with the folder that they are in."""
    settings = place.file.tracking.experiment
    experiment = client.get_experiment_by_name(place.experiment)
    if experiment is None:
        tags = dict(settings.create_experiment_kwargs.tags)
        return str(client.create_experiment(place.experiment, place.artifacts, tags))
    if experiment.lifecycle_stage == "deleted":
        if not settings.restore_if_deleted:
            raise SpecError(f"the experiment {place.experiment!r} is deleted; restore it or name another one")
        client.restore_experiment(experiment.experiment_id)
        say(f"the experiment {place.experiment!r} lay in MLflow's bin: brought back, with its runs")
    if not place.served and (moved := _moved(experiment.artifact_location, place.artifacts)):
        old, new = moved
        wrong = f"MLflow keeps this experiment's artifacts in {old}, and this folder has some in {new}: was it moved?"
        if not old.exists():
            raise SpecError(f"{wrong} Move it back, or lead the old path here: ln -s {new.parent} {old.parent}")
        say(f"warning: {wrong} What comes now goes into the first")
    return str(experiment.experiment_id)


def _moved(recorded: str, wanted: str | None) -> tuple[Path, Path] | None:
    """The folders where an experiment keeps its artifacts and where this project does, where these are two, and both
    or only the second is there."""
    if not (wanted and wanted.startswith("file:") and recorded.startswith("file:")) or recorded == wanted:
        return None
    old, new = (Path(unquote(urlsplit(uri).path)) for uri in (recorded, wanted))
    return (old, new) if new.is_dir() and any(new.iterdir()) and old.resolve() != new.resolve() else None


def plain(schedule: Schedule) -> dict[str, Any]:
    """A schedule's JSON for a table of params: a warmup that is a fraction stands as one number."""
    params = schedule.to_json()
    if schedule.warmup.length.unit == "fraction":
        params |= {"warmup": schedule.warmup.length.value, "warmup_form": schedule.warmup.form}
    return params


def _name(metric: str) -> str:
    """The name of a metric as MLflow takes it: usual characters, and a path that stands for nothing but itself."""
    parts = [part for part in re.sub(UNUSUAL, "_", metric).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MOST_NAME].rstrip("/") or "_"


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
