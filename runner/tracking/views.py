"""MLflow's pages of a sweep: their addresses, and the saved views of its chart page."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any
from urllib.parse import quote

from ..files.place import Place
from ..files.secrets import redacted
from ..files.sweep_file import ACCURACY, Objective
from .client import all_runs, check, in_bin, is_server_error, make_client, missing_database, unusable


def _query() -> str:
    """What a link says so that MLflow's UI shows runs, not traces; and of which workspace, where there are some."""
    workspace = os.environ.get("MLFLOW_WORKSPACE")
    return "workflowType=machine_learning" + (f"&workspace={quote(workspace, safe='')}" if workspace else "")


def page(place: Place, experiment_id: str, sweep: str, port: int | None = None, grouped: bool = False) -> str:
    """The address of the chart page that shows a sweep, in the UI that mlflow.yaml describes; ``grouped``: each
    schedule's mean and range over its trials."""
    ui = place.file.ui
    base = redacted(place.tracking_uri).rstrip("/") if place.served else f"http://{ui.host}:{port or ui.port}"
    if not experiment_id:  # never reached
        return base
    charts = f"{base}/#/experiments/{experiment_id}/runs?{_query()}&compareRunsMode=CHART"
    if ui.saved_view:
        return f"{charts}&viewStateShareKey={view_key(sweep, grouped)}"
    query = quote(f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{sweep}'")
    return f"{charts}&searchFilter={query}&orderByKey={quote('metrics.`objective`')}&orderByAsc=false"


def pages(place: Place, port: int | None = None) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The pages of every sweep that MLflow has by what they show, the newest sweep first; and the sweeps that are in
    its bin.

    Raises:
        SpecError: its database cannot be used, or not without a change.
    """
    check(place)
    if missing_database(place):
        return {}, []
    try:
        client = make_client(place)
        experiment = client.get_experiment_by_name(place.experiment)
        if experiment is None:
            return {}, []
        runs = all_runs(client, experiment.experiment_id, "tags.`sweep.role` = 'study'", "DESC")
        named = [(str(run.data.tags.get("sweep.study", "")), run) for run in reversed(runs)]
        newest = {name: run.info.run_id for name, run in named if not in_bin(run)}
        shown = {n: links(place, experiment.experiment_id, n, newest[n], port) for n in reversed(newest)}
        return shown, sorted({name for name, _ in named} - set(newest))
    except Exception as error:
        if not is_server_error(error):
            raise
        raise unusable(place, error) from None


def links(place: Place, experiment_id: str, sweep: str, parent: str, port: int | None = None) -> dict[str, str]:
    """The addresses of the pages that show a sweep, by what they show."""
    charts, types = (page(place, experiment_id, sweep, port, grouped) for grouped in (False, True))
    if not (experiment_id and parent):
        return {"MLflow": charts}
    report = f"{charts.partition('#')[0]}#/experiments/{experiment_id}/runs/{parent}?{_query()}"
    return {"curves": charts} | ({"types": types} if place.file.ui.saved_view else {}) | {"report": report}


def view_key(sweep: str, grouped: bool = False) -> str:
    return hashlib.sha256(f"runner/{sweep}{'/types' * grouped}".encode()).hexdigest()[:32]


def saved_view(name: str, grouped: bool = False, judged_by: Objective = ACCURACY) -> str:
    """The value of the experiment tag that presets the chart page for one sweep; ``grouped`` by its schedules.

    MLflow draws no learning-rate curve by default and hides nested runs. Since 3.15 a view of its chart page is an
    experiment tag; the format is its own and undocumented, read in 3.17. What is not said has the page's own default.
    """
    what = "accuracy" if judged_by.metric == "val/accuracy" else judged_by.metric
    lines = [
        _line("lr", "Learning rate") | {"scaleType": "log"},
        _line(judged_by.metric, "Validation accuracy" if judged_by.metric == "val/accuracy" else judged_by.metric),
        _line("train/loss", "Training loss"),
    ]
    parallel = _chart(
        "PARALLEL",
        "axes",
        selectedParams=["schedule.type", "schedule.init_lr", "schedule.warmup"],
        selectedMetrics=["schedule/mean_lr", "schedule/final_over_peak", "objective"],
        showAllRuns=True,
        displayName=f"Schedule, init_lr, warmup, {what}",
    )
    x, y = {"key": "schedule.init_lr", "type": "PARAM"}, {"key": "objective", "type": "METRIC"}
    scatter = _chart(
        "SCATTER", "answer", xaxis=x, yaxis=y, displayName=f"{what[0].upper()}{what[1:]} against init_lr"
    )
    bars = _chart("BAR", "answer", runsCountToCompare=20, metricKey="objective")
    sections = {"curves": ("Curves", 1, lines)}  # beside the runs and the assistant there is room for one
    if not grouped:  # of groups MLflow draws none
        sections["axes"] = f"What leads to which {what}", 1, [parallel]  # as wide as it needs
    sections["answer"] = "The search: one seed each", 1, [scatter, bars]
    shown = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    by_name = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "schedule.name"}]}
    objective, params = "metrics.`objective`", ["params.`schedule.init_lr`", "params.`schedule.warmup`"]
    state = {
        "searchFilter": f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{name}'",
        "orderByKey": objective,
        "orderByAsc": judged_by.sign < 0,
        "selectedColumns": [objective, "tags.`schedule.type`", *params, "tags.`outcome`"],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [chart for _, _, charts in sections.values() for chart in charts],
        "compareRunSections": [
            {"uuid": uuid, "name": title, "columns": columns, **shown}
            for uuid, (title, columns, _) in sections.items()
        ],
        "isAccordionReordered": True,
        "groupBy": by_name if grouped else None,
    }
    title = f"{name}: {'types' if grouped else 'schedules'}"
    return json.dumps({"name": title, "createdAt": int(time.time() * 1000), "state": json.dumps(state)})


def _chart(kind: str, section: str, **settings: Any) -> dict[str, Any]:
    common = {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    named = settings.get("metricKey") or settings.get("displayName")
    return common | {"type": kind, "uuid": f"{section}-{kind}-{named}"} | settings


def _line(metric: str, title: str) -> dict[str, Any]:
    common = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return _chart("LINE", "curves", metricKey=metric, displayName=title, **common)
