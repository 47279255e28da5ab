"""Servers and proxies that refuse, are slow, or say strange things: what a sweep hears of it, and when."""

import json
import re
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from runner import sweep
from runner.files.place import load_place
from runner.tracking.views import links

from ..conftest import HERE, children, client, runs

NO_HTML = "<html><body>Not here</body></html>"


@contextmanager
def server(answer):
    """An HTTP server on loopback that says what ``answer(path, body)`` gives: a status, a text, and its type."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, text, kind = answer(self, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = do_PATCH = respond

        def log_message(self, *_) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def refusal(status: int, message: str = "no", code: str | None = None):
    if code is None:
        return status, message, "text/html"
    return status, json.dumps({"error_code": code, "message": message}), "application/json"


@pytest.mark.slow
def test_a_refusal_that_comes_late_is_heard_when_it_comes(project, capsys, monkeypatch):
    def late(request, body):
        time.sleep(0.6)
        return refusal(401, "You are not authenticated")

    monkeypatch.setattr("runner.tracking.sender.Sender.wait", _impatient())
    with server(late) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        Path("sweeps/tiny.yaml").write_text(Path("sweeps/tiny.yaml").read_text().replace("trials: 3", "trials: 6"))
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    out = capsys.readouterr().out
    said = [i for i, line in enumerate(out.splitlines()) if "refuses something" in line and "401" in line]
    assert len(said) == 1  # every reason once
    assert any(line.startswith("[6/6]") for line in out.splitlines()[said[0] :])  # before the search has ended


def _impatient():
    """As at a server whose answer takes longer than the sweep waits for it at its start."""
    from runner.tracking.sender import Sender

    real = Sender.wait
    return lambda self, seconds, most=60.0: real(self, min(seconds, 0.1) if seconds == 2.0 else seconds, most)


@pytest.mark.parametrize(
    "answer",
    [
        refusal(401, "You are not authenticated"),
        refusal(403, "forbidden"),
        refusal(404, "No workspace 'lab'", "RESOURCE_DOES_NOT_EXIST"),
        refusal(404, NO_HTML),
        refusal(502, NO_HTML),
        None,
    ],
    ids=["401", "403", "unknown workspace", "404 of a proxy", "502", "nobody there"],
)
def test_a_sync_that_leaves_something_lacking_ends_with_4_and_says_what(swept, capsys, monkeypatch, answer):
    monkeypatch.setattr("runner.tracking.tracker.PATIENCE", 2.0)
    monkeypatch.setattr("runner.tracking.sender.PATIENCE", 2.0)
    with server(lambda *_: answer) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address if answer else "http://127.0.0.1:9")
        assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 4
    err = capsys.readouterr().err
    assert re.search("MLflow (lacks something|at http)", err)
    if answer:
        assert str(answer[0]) in err or "No workspace 'lab'" in err
    assert "continue with: python -m runner.sweep sweeps/tiny.yaml" in err


def test_a_proxy_that_answers_404_in_an_outage_refuses_nothing(project, capsys, monkeypatch):
    with server(lambda *_: refusal(404, NO_HTML)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
        assert "does not answer (" in capsys.readouterr().out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # back, elsewhere
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    assert len(children()) == 3


def test_an_error_of_a_megabyte_without_a_space_is_shown_in_a_line_and_at_once(project, capsys, monkeypatch):
    page = "://a:" * 200_000
    with server(lambda *_: refusal(500, page)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        start = time.monotonic()
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
        assert time.monotonic() - start < 60
    assert max(map(len, capsys.readouterr().out.splitlines())) < 700


def test_what_a_server_says_back_of_a_request_shows_no_credentials(project, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t-w0rd")
    seen = []

    def echo(request, body):
        seen.append(request.headers.get("Authorization", ""))
        return refusal(500, f"cannot handle Authorization: {seen[-1]}")

    with server(echo) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    token = b64encode(b"ann:s3cr3t-w0rd").decode()
    assert any(token in header for header in seen)
    out, err = capsys.readouterr()
    files = [p.read_text(errors="replace") for p in Path("results").rglob("*") if p.is_file()]
    assert not any(token in text for text in (out, err, *files))


@contextmanager
def proxied(refuses):
    """MLflow's own server, behind a proxy that answers itself where ``refuses(request, body)`` gives something."""
    import sys

    from ..conftest import free_port, served

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "served"]

    def forward(request, body):
        if answer := refuses(request, body):
            return answer
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        sent = Request(f"http://127.0.0.1:{port}{request.path}", body or None, headers, method=request.command)
        from urllib.error import HTTPError

        try:
            with urlopen(sent, timeout=60) as answer:
                return answer.status, answer.read().decode(), answer.headers.get("Content-Type", "")
        except HTTPError as error:
            return error.code, error.read().decode(), error.headers.get("Content-Type", "")

    with served(command, port, Path("server.log")), server(forward) as address:
        yield address


@pytest.mark.slow
def test_a_proxy_that_takes_no_large_body_costs_the_large_files_alone(project, capsys, monkeypatch):
    """nginx takes a megabyte, if nobody says otherwise; here it is less."""

    def small_only(request, body):
        return refusal(413, NO_HTML) if len(body) > 5_000 and "artifacts" in request.path else None

    with proxied(small_only) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "served")
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
        out = capsys.readouterr().out
        assert "413" in out
        assert "does not answer" not in out
        there = client()
        experiment = there.get_experiment_by_name("served").experiment_id
        found = there.search_runs([experiment])
        assert [run.info.status for run in found] == ["FINISHED"] * 4
        assert sum("objective" in run.data.metrics for run in found) == 3
        (parent,) = (run for run in found if run.data.tags["sweep.role"] == "study")
        assert "Does it run?" in parent.data.tags["mlflow.note.content"]
        tables = [file.path for file in there.list_artifacts(parent.info.run_id, "tables")]
        assert "tables/best_schedules.csv" in tables  # a small one
        assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 4


@pytest.mark.slow
def test_where_no_artifact_can_be_written_runs_end_with_their_metrics_and_later_get_their_files(project, capsys):
    Path("mlartifacts").write_text("in the way")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    assert "MLflow at sqlite" in (out := capsys.readouterr().out)
    assert "refuses something" in out
    assert [run.info.status for run in runs()] == ["FINISHED"] * 4
    assert all("objective" in run.data.metrics and run.data.tags["outcome"] == "complete" for run in children())
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 4
    Path("mlartifacts").unlink()
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    for run in children():
        assert {f.path for f in client().list_artifacts(run.info.run_id)} == {"schedule.json", "lr_per_update.csv"}


def test_a_tag_of_five_thousand_digits_is_nobodys_trial(swept):
    first, *_ = children()
    client().set_tag(first.info.run_id, "trial.number", "9" * 5_000)
    assert sweep.main(["sweeps/tiny.yaml", *HERE, "--sync"]) == 0
    numbers = sorted(run.data.tags["trial.number"] for run in children())
    assert numbers == ["0", "1", "2", "9" * 5_000]


def test_a_schedule_of_five_hundred_points_arrives_whole_in_its_file(project):
    at = [round(i / 499, 6) for i in range(500)]
    factors = [round(1 - i / 499, 6) for i in range(500)]
    text = Path("sweeps/tiny.yaml").read_text()
    cut = text.index("    cosine: {}")
    text = (
        text[:cut]
        + f"    points: {{type: piecewise, at: {at}, factors: {factors}}}\n"
        + text[text.index("search:") :]
    )
    text = text.replace("  warmup: {uniform: [0.0, 0.3]}\n", "")
    Path("sweeps/tiny.yaml").write_text(text.replace("trials: 3", "trials: 1"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    (run,) = children()
    assert run.info.status == "FINISHED"
    assert all(len(value) <= 8_000 for value in run.data.tags.values())
    assert all(len(value) <= 6_000 for value in run.data.params.values())
    path = client().download_artifacts(run.info.run_id, "schedule.json")
    assert json.loads(Path(path).read_text())["factors"] == factors


def test_links_lead_into_the_workspace(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "vision lab")
    for link in links(load_place(), "7", "tiny", "abc").values():
        assert "workspace=vision%20lab" in link.partition("#")[2]


def test_no_description_is_longer_than_a_store_keeps(project):
    from runner.tracking.tracker import MOST_TAG, _note

    page = "\n\n".join(f"paragraph {n} " + "word " * 150 for n in range(20)) + "\n"
    short = _note(page)
    assert len(short) <= MOST_TAG
    assert short.endswith("The rest is in report.md, below Artifacts.")
    assert page.startswith(short.rpartition("\n\n")[0])
    assert _note("short\n") == "short\n"
