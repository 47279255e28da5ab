"""A tracking server that refuses, hangs, answers nonsense, is slow, or dies at a random call.

A real ``mlflow server`` on loopback, and a proxy before it that misbehaves while a sweep runs.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pandas as pd
import victims

from runner import ui
from runner.files.place import load_place
from runner.results.tables import epochs_table
from runner.study.study import load_study

KINDS = {
    "refused all along": "nobody listens until --sync",
    "refused, comes back": "nobody listens for some seconds in the middle",
    "hangs": "takes the request and never answers, for some seconds",
    "500": "an internal error to some calls, for some seconds",
    "nonsense": "200 and no JSON, for some seconds",
    "refuses late": "401 after 3 s, for some seconds",
    "404 of a proxy": "a page that is not MLflow's, for some seconds",
    "slow": "0.3 s for each call",
    "dies before": "now and then the connection breaks before the call is done",
    "dies after": "now and then the connection breaks after the call is done: its answer is lost",
}


class Proxy(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Forwards to a server, or misbehaves as ``mode`` says."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.mode, self.random = target, "", random.Random(0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client that went away is what this is for."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one(self) -> None:
        mode = self.server.mode
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode == "hangs":
            time.sleep(30)
            return self.gone()
        if mode == "refused" or (mode == "dies before" and self.server.random.random() < 0.2):
            return self.gone()
        if mode == "500" and self.server.random.random() < 0.7:
            return self.answer(500, b'{"error_code": "INTERNAL_ERROR", "message": "out of order"}')
        if mode == "refuses late":
            time.sleep(3.0)
            return self.answer(401, b"You are not authenticated", "text/plain")
        if mode == "404 of a proxy":
            return self.answer(404, b"<html>no such page</html>", "text/html")
        if mode == "nonsense":
            return self.answer(200, b"<html>please log in</html>")
        if mode == "slow":
            time.sleep(0.3)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        if mode == "dies after" and self.server.random.random() < 0.2:
            return self.gone()
        return self.answer(answer.status, content, answer.getheader("Content-Type") or "application/json")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def gone(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """MLflow's own server on a copy of the migrated database; its port."""
    shutil.copy(victims.template(), folder / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "server.yaml").write_text("server: {mlflow_tracking_uri: 'sqlite:///server.db'}\n")
    command, environment = ui.server(load_place(folder / "server.yaml"), port=port)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.2)
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Sweeps in every kind of outage, at random instants and calls."""
    cases = [
        (kind, victims.chance(args.seed, kind, n)) for n in range(max(1, round(6 * args.share))) for kind in KINDS
    ]
    with tempfile.TemporaryDirectory() as root:
        expected = victims.undisturbed(Path(root))
        with mlflow_server(Path(root)) as port:
            found = victims.each(functools.partial(suffer, Path(root), port, expected), cases)
    return {
        "cases": len(cases),
        "kinds": KINDS,
        "longest_wait_of_training_seconds": max(wait for wait, _ in found),
        "wrong": [text for _, several in found for text in several],
    }


def suffer(
    root: Path, port: int, expected: dict[str, str], case: tuple[str, random.Random]
) -> tuple[float, list[str]]:
    """A sweep through a proxy that misbehaves: how long training waited at most, and what is wrong afterwards."""
    kind, chance = case
    folder, proxy = victims.folder_of_a_sweep(root), Proxy(port)
    proxy.random = chance
    experiment = folder.name
    environment = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_address[1]}",
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "1" if kind == "hangs" else "15",
    }
    argv = (*victims.COMMAND, *victims.IN_PROCESS)
    proxy.mode = "refused" if kind == "refused all along" else "" if "comes back" in kind else kind
    if kind in ("hangs", "500", "nonsense", "refuses late", "404 of a proxy"):
        proxy.mode = chance.choice(["", kind])  # from the beginning, or from somewhere in the middle
    pid = victims.begin(folder, argv, lambda: os.environ.update(environment))
    if kind in ("refused, comes back", "hangs", "500", "nonsense", "refuses late", "404 of a proxy"):
        time.sleep(chance.uniform(0.3, 2.5))
        proxy.mode = kind.partition(",")[0]
        time.sleep(chance.uniform(0.5, 3.0))
        proxy.mode = ""
    code = victims.wait(pid)
    found = [] if code == 0 else [f"ended with {code}: {(folder / 'log').read_text()[-1500:]}"]
    proxy.mode = ""
    again = victims.begin(folder, (*argv, "--sync"), lambda: os.environ.update(environment))
    code = victims.wait(again)
    found += [] if code == 0 else [f"--sync ended with {code}: {(folder / 'log').read_text()[-1500:]}"]
    proxy.shutdown()
    proxy.server_close()
    found += victims.other_tables(folder, expected)
    found += victims.in_mlflow(folder.parent / "server.db", victims.committed(folder), experiment)
    if (waited := longest_wait(folder)) > 1.0:
        found.append(f"training waited {waited:.1f} s")
    return waited, [f"{kind}: {text}" for text in found]


def longest_wait(folder: Path) -> float:
    """The longest time that a lane waited between two epochs of a trial, in seconds."""
    longest = 0.0
    with victims.inside(folder):
        for name in ("tiny", "tiny@confirm"):
            table: pd.DataFrame = epochs_table(load_study(name, load_place().storage)[1])
            for _, epochs in table.groupby("trial"):
                ends = epochs["timestamp"].astype("int64") / 1000
                longest = max([longest, *(ends.diff() - epochs["seconds"]).dropna()])
    return float(longest)
