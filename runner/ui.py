"""Browse sweeps in MLflow's own UI, on this machine only.

    python -m runner.ui                     start it, and print the page of every sweep
    python -m runner.ui digits              the page of this one
    python -m runner.ui --expose lab.example.org    for others too: whoever reaches this machine reads and writes all

MLflow's server has no users of its own, and by default answers to names that a hostile page can point at this
machine. So it listens on loopback, and answers to the names below and to no other.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence

from . import cli
from .files.document import SpecError, no_control, printable
from .files.place import Place, load_place
from .files.secrets import redacted
from .lanes.stop import exit_with
from .schedules.words import did_you_mean
from .tracking.client import make_database
from .tracking.views import pages

LOOPBACK = ("127.0.0.1", "localhost")


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
        wrong = f"ui.host is {ui.host}, which others can reach, and MLflow asks nobody who they are"
        raise SpecError(f"{wrong}; say --expose NAME, the name they use, if that is wanted")
    if expose is not None and not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", expose):
        raise SpecError(f"--expose takes the one name that others use for this machine, not {expose!r}")
    host = "0.0.0.0" if expose and ui.host in LOOPBACK else ui.host
    # with and without a port: `ssh -L 8080:localhost:5000` and a proxy have ports of their own
    names = [*LOOPBACK, *([expose] if expose else [])]
    hosts = [pattern for name in names for pattern in (name, f"{name}:*")]
    origins = [f"{scheme}://{name}{port}" for name in names for scheme in ("http", "https") for port in ("", ":*")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    return command, {  # each is set: what the environment says of them could open the server to everybody
        "MLFLOW_BACKEND_STORE_URI": place.tracking_uri,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "SAMEORIGIN",
        # options of the server behind it, such as another address to listen at; and a prefix, which no link has
        **dict.fromkeys(["MLFLOW_GUNICORN_OPTS", "MLFLOW_UVICORN_OPTS", "GUNICORN_CMD_ARGS"], ""),
        "MLFLOW_STATIC_PREFIX": "",
        "MLFLOW_DISABLE_TELEMETRY": "false" if place.file.telemetry else "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _check_port(port: int) -> None:
    """Raise SpecError where another program has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SpecError(f"port {port} cannot be had ({error.strerror}); another one: --port N") from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.parser("ui", __doc__)
    parser.add_argument("sweep", nargs="?", help="the name of a sweep (default: all)")
    cli.add_mlflow(parser)
    parser.add_argument("--port", type=int, metavar="N", help="instead of mlflow.yaml's ui.port")
    parser.add_argument("--expose", metavar="NAME", help="let others in, by this name of the machine")
    return cli.run(_serve, parser.parse_args(argv))


def _serve(args: argparse.Namespace) -> int:
    no_control([args.sweep or "", args.mlflow or ""])
    place = load_place(args.mlflow)
    command, environment = server(place, args.expose, args.port)
    sweeps, deleted = pages(place, args.port)
    if args.sweep and args.sweep not in sweeps:
        hint = did_you_mean(args.sweep, sorted(sweeps)) if sweeps else "it has none"
        if args.sweep in deleted:
            hint = f"it lies in MLflow's bin: python -m runner.sweep FILE --sync{place.option} brings it back"
        raise SpecError(f"MLflow has no sweep {args.sweep!r}; {hint}")
    _check_port(place.file.ui.port if args.port is None else args.port)
    for name, shown in sweeps.items():
        if args.sweep in (None, name):
            for what, page in shown.items():
                print(printable(f"{name}, {what}: {page}"))
    if deleted and not args.sweep:
        print(printable(f"in MLflow's bin: {', '.join(deleted)} (--sync of the sweep brings it back)"))
    make_database(place)
    print("starting; Ctrl-C ends it", flush=True)
    os.chdir(place.folder)
    return os.execve(command[0], command, os.environ | environment)


if __name__ == "__main__":
    exit_with(main)
