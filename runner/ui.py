"""Browse sweeps in MLflow's own UI, on this machine only.

    python -m runner.ui                     start it, and print the page of every sweep
    python -m runner.ui digits              the page of this one
    python -m runner.ui --expose lab.example.org    for others too: whoever reaches this machine reads and writes all

MLflow's server has no users of its own, and by default answers to names that a hostile page can point at this
machine. So it listens on loopback, and answers to the names below and to no other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from .document import SpecError, no_control, printable
from .place import Place, load_place, redacted
from .stop import leave
from .zoo import did_you_mean

LOOPBACK = ("127.0.0.1", "localhost")
ML = "workflowType=machine_learning"
"""What a link says so that MLflow's UI shows runs, not traces."""


def server(place: Place, expose: str | None = None, port: int | None = None) -> tuple[list[str], Mapping[str, str]]:
    """The command that starts MLflow's server for a place, and what its environment has besides.

    The address of the store may hold a password, so it is in the environment: everybody can read a command line.

    Raises:
        SpecError: mlflow.yaml asks for a wider host and nobody has said ``--expose``, or the place has a server.
    """
    ui, port = place.file.ui, place.file.ui.port if port is None else port
    if not 1 <= port <= 65_535:
        raise SpecError(f"--port {port}: a port is 1 to 65535")
    if place.served:
        raise SpecError(f"{redacted(place.tracking_uri)} is a server already: open it in a browser")
    if ui.host not in LOOPBACK and expose is None:
        raise SpecError(
            f"ui.host is {ui.host}, which others can reach, and MLflow asks nobody who they are; "
            "say --expose NAME, the name they use, if that is wanted"
        )
    if expose is not None and not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", expose):
        raise SpecError(f"--expose takes the one name that others use for this machine, not {expose!r}")
    host = "0.0.0.0" if expose and ui.host in LOOPBACK else ui.host
    names = ["localhost", "127.0.0.1", *([expose] if expose else [])]
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    return command, {
        "MLFLOW_BACKEND_STORE_URI": place.tracking_uri,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name}:{port}" for name in names),
        "MLFLOW_DISABLE_TELEMETRY": "false" if place.file.telemetry else "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


# --------------------------------------------------------------------------------------
# The pages that show a sweep.


def page(place: Place, experiment_id: str, sweep: str, port: int | None = None, grouped: bool = False) -> str:
    """The address of the chart page that shows a sweep, in the UI that mlflow.yaml describes.

    ``grouped``: each schedule's mean and range over its trials.
    """
    ui = place.file.ui
    base = redacted(place.tracking_uri).rstrip("/") if place.served else f"http://{ui.host}:{port or ui.port}"
    if not experiment_id:  # never reached
        return base
    charts = f"{base}/#/experiments/{experiment_id}/runs?{ML}&compareRunsMode=CHART"
    if ui.saved_view:
        return f"{charts}&viewStateShareKey={view_key(sweep, grouped)}"
    query = quote(f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{sweep}'")
    return f"{charts}&searchFilter={query}&orderByKey={quote('metrics.`objective`')}&orderByAsc=false"


def links(place: Place, experiment_id: str, sweep: str, parent: str, port: int | None = None) -> dict[str, str]:
    """The addresses of the pages that show a sweep, by what they show."""
    charts, types = (page(place, experiment_id, sweep, port, grouped) for grouped in (False, True))
    if not (experiment_id and parent):
        return {"MLflow": charts}
    report = f"{charts.partition('#')[0]}#/experiments/{experiment_id}/runs/{parent}?{ML}"
    return {"curves": charts} | ({"types": types} if place.file.ui.saved_view else {}) | {"report": report}


def view_key(sweep: str, grouped: bool = False) -> str:
    return hashlib.sha256(f"runner/{sweep}{'/types' * grouped}".encode()).hexdigest()[:32]


def saved_view(name: str, grouped: bool = False) -> str:
    """The value of the experiment tag that presets the chart page for one sweep; ``grouped`` by its schedules.

    MLflow draws no learning-rate curve by default and hides nested runs. Since 3.15 a view of its chart page is an
    experiment tag; the format is its own and undocumented, read in 3.17. What is not said has the page's own default.
    """
    curves, axes, answer = "curves", "axes", "answer"
    objective = "metrics.`objective`"
    charts = [
        _line("lr", curves, "Learning rate") | {"scaleType": "log"},
        _line("val/accuracy", curves, "Validation accuracy"),
        _line("train/loss", curves, "Training loss"),
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
        {"uuid": answer, "name": "The search: one seed each", "columns": 2},
    ]
    if not grouped:  # of groups MLflow draws none
        parallel = _chart(
            "PARALLEL",
            axes,
            selectedParams=["schedule.type", "schedule.init_lr", "schedule.warmup"],
            selectedMetrics=["schedule/mean_lr", "schedule/final_over_peak", "objective"],
            showAllRuns=True,
            displayName="Schedule, init_lr, warmup, accuracy",
        )
        charts.insert(3, parallel)
        wide = {"uuid": axes, "name": "What leads to which accuracy", "columns": 1}  # as it needs
        sections.insert(1, wide)
    key = {"mode": "tag", "groupByData": "schedule.name"}
    group = {"aggregateFunction": "average", "groupByKeys": [key]} if grouped else None
    state = {
        "searchFilter": f"tags.`sweep.role` = 'trial' and tags.`sweep.study` = '{name}'",
        "orderByKey": objective,
        "orderByAsc": False,
        "selectedColumns": [
            objective,
            "tags.`schedule.type`",
            "params.`schedule.init_lr`",
            "params.`schedule.warmup`",
            "tags.`outcome`",
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            section | {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for section in sections
        ],
        "isAccordionReordered": True,
        "groupBy": group,
    }
    title = f"{name}: {'types' if grouped else 'schedules'}"
    return json.dumps({"name": title, "createdAt": int(time.time() * 1000), "state": json.dumps(state)})


def _chart(kind: str, section: str, **settings: Any) -> dict[str, Any]:
    common = {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    named = settings.get("metricKey") or settings.get("displayName")
    return common | {"type": kind, "uuid": f"{section}-{kind}-{named}"} | settings


def _line(metric: str, section: str, title: str) -> dict[str, Any]:
    return _chart(
        "LINE", section, metricKey=metric, displayName=title, useGlobalXaxisKey=True, useGlobalLineSmoothing=True
    )


# --------------------------------------------------------------------------------------
# The command.


def _free(port: int) -> None:
    """Raise SpecError where another program has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError(f"port {port} cannot be had ({error.strerror}); another one: --port N") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runner.ui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", nargs="?", help="the name of a sweep (default: all)")
    parser.add_argument("--mlflow", metavar="FILE", help="the place (default: mlflow.yaml in this folder)")
    parser.add_argument("--port", type=int, metavar="N", help="instead of mlflow.yaml's ui.port")
    parser.add_argument("--expose", metavar="NAME", help="let others in, by this name of the machine")
    args = parser.parse_args(argv)
    try:
        no_control([args.sweep or "", args.mlflow or ""])
        place = load_place(args.mlflow)
        command, environment = server(place, args.expose, args.port)
        from .tracking import pages

        found = pages(place, args.port)
        if args.sweep and args.sweep not in found:
            hint = did_you_mean(args.sweep, sorted(found)) if found else "it has none"
            raise SpecError(f"MLflow has no sweep {args.sweep!r}; {hint}")
        _free(place.file.ui.port if args.port is None else args.port)
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, pages_ in found.items():
        if args.sweep in (None, name):
            for what, page in pages_.items():
                print(printable(f"{name}, {what}: {page}"))
    print("starting; Ctrl-C ends it", flush=True)
    os.chdir(place.folder)
    return os.execve(command[0], command, os.environ | environment)


if __name__ == "__main__":
    leave(main)
