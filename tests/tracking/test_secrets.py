"""Secrets, planted wherever a user may have one, are nowhere in what is written or said."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from runner import sweep, ui
from runner.files.document import SpecError
from runner.files.place import load_place
from runner.files.secrets import redacted
from runner.tracking import sender
from runner.ui import server

from ..conftest import HERE, TINY, free_port, runs, served

SECRET = "s3cr3t-canary"


def everything(folder: Path) -> list[str]:
    """The files below a folder in which the secret stands."""
    return [
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()
    ]


PLANTED = {
    "a tracking server's password in its address": {"MLFLOW_TRACKING_URI": f"http://ann:{SECRET}@127.0.0.1:9"},
    "a token in its query": {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:9/?token={SECRET}"},
    "an unknown scheme": {"MLFLOW_TRACKING_URI": f"htp://ann:{SECRET}@127.0.0.1:9"},
    "a database for MLflow": {"MLFLOW_TRACKING_URI": f"postgresql://ann:{SECRET}@127.0.0.1:9/x"},
    "a driver that is not there": {"MLFLOW_TRACKING_URI": f"mysql+nothing://ann:{SECRET}@127.0.0.1:9/x"},
    "the study's database": {"RUNNER_STUDY_STORAGE": f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:9/x"},
    "the study's driver": {"RUNNER_STUDY_STORAGE": f"postgresql+nothing://ann:{SECRET}@127.0.0.1:9/x"},
    "the password in a variable": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_TRACKING_USERNAME": "ann",
                                   "MLFLOW_TRACKING_PASSWORD": SECRET},
    "the token in a variable": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_TRACKING_TOKEN": SECRET},
    "a password with odd characters": {"RUNNER_STUDY_STORAGE": f"postgresql+psycopg://ann:%40{SECRET}%2F@127.0.0.1:9/x"},
}  # fmt: skip


@pytest.mark.parametrize("variables", PLANTED.values(), ids=PLANTED.keys())
def test_a_secret_in_the_environment_is_nowhere_in_what_a_sweep_says_and_writes(
    project, variables, capfd, monkeypatch
):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("trials: 3", "trials: 1"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sender, "PATIENCE", 1.0)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # else it tries for minutes, and all others wait
    code = sweep.main(["sweeps/tiny.yaml", *HERE])
    said = "".join(capfd.readouterr())
    assert code in (0, 2)
    assert SECRET not in said
    assert "Traceback" not in said
    assert everything(project) == []


def test_a_bugs_traceback_is_shown_without_the_secret_in_it(project, capsys, monkeypatch):
    address = f"postgresql://ann:{SECRET}@host/x"
    monkeypatch.setattr(sweep, "load_place", lambda _: (_ for _ in ()).throw(RuntimeError(f"cannot reach {address}")))
    assert sweep.main(["sweeps/tiny.yaml"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "postgresql://ann:***@host/x" in said
    assert SECRET not in said


def test_a_file_that_is_shared_is_no_place_for_a_secret(project, capsys):
    for text in (
        f"server: {{mlflow_tracking_uri: 'http://ann:{SECRET}@host'}}\n",
        f"study: {{storage: 'postgresql://ann:{SECRET}@host/x'}}\n",
        f"tracking: {{run: {{tags: {{note: 'http://ann:{SECRET}@host'}}}}}}\n",
    ):
        Path("mlflow.yaml").write_text(text)
        assert sweep.main(["sweeps/tiny.yaml"]) == 2
        said = capsys.readouterr().err
        assert "put the whole address into the environment variable instead" in said
        assert SECRET not in said


def test_a_sweep_file_with_a_secret_is_refused_because_it_is_kept(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("Does it run?", f"'see http://ann:{SECRET}@host'"))
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    said = capsys.readouterr().err
    assert "line 1: question: holds a password or a token; this file is kept with the sweep's runs" in said
    assert SECRET not in said
    assert not Path("optuna.db").exists()


@pytest.mark.parametrize(
    "comment",
    [
        f"# postgresql://ann:{SECRET}@host/x",
        f"# MLFLOW_TRACKING_TOKEN={SECRET}",
        f"# curl -H 'Authorization: Bearer {SECRET}-1'",
        f"# password: {SECRET}1",
        "# ghp_" + "a1b2c3d4" * 4,
    ],
)
def test_a_secret_in_a_comment_is_refused_with_its_line(project, capsys, comment):
    Path("sweeps/tiny.yaml").write_text(f"{TINY}{comment}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    said = capsys.readouterr().err
    assert f"line {TINY.count(chr(10)) + 1}: holds a password or a token" in said
    assert SECRET not in said
    Path("sweeps/tiny.yaml").write_text(TINY)
    Path("mlflow.yaml").write_text(f"telemetry: false\n{comment}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    assert "mlflow.yaml, line 2: holds a password or a token" in capsys.readouterr().err
    assert not Path("optuna.db").exists()


@pytest.mark.parametrize(
    "key", ["token", "db_password", "api-key", "lab.secret", "AUTH", "secret_key", "dbPassword", "passphrase"]
)
def test_a_tag_that_is_called_a_secret_is_refused(project, capsys, key):
    Path("mlflow.yaml").write_text(f"tracking:\n  run:\n    tags: {{{key}: {SECRET}}}\n")
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    said = capsys.readouterr().err
    assert f"line 3: tracking.run.tags.{key}: holds a password or a token" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "key", ["mlflow.user", "mlflow.parentRunId", "mlflow.source.git.commit", "sweep.id", "trial.number", "outcome"]
)
def test_a_tag_that_mlflow_or_the_sweep_writes_is_nobody_elses(project, capsys, key):
    for section in ("run: {tags", "experiment: {create_experiment_kwargs: {tags"):
        text = f"tracking:\n  {section}: {{{key}: root}}{'}' * section.count('{')}\n"
        Path("mlflow.yaml").write_text(text)
        assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
        assert f"{key} is a tag that MLflow or the sweep writes itself" in capsys.readouterr().err


@pytest.mark.slow
def test_a_token_in_the_address_of_a_checkout_is_on_no_run(project):
    """MLflow's own tag has that address, as git has it."""
    for command in (["init", "-q"], ["remote", "add", "origin", f"https://host/x.git?access_token={SECRET}"]):
        subprocess.run(["git", *command], check=True)
    commit = ["-c", "user.name=a", "-c", "user.email=a@host", "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run(["git", *commit], check=True)
    Path("run.py").write_text(
        f"from runner import sweep\nraise SystemExit(sweep.main(['sweeps/tiny.yaml', *{HERE}]))\n"
    )
    assert subprocess.run([sys.executable, "run.py"], timeout=120, check=False).returncode == 0
    (parent,) = runs("tags.`sweep.role` = 'study'")
    assert parent.data.tags["mlflow.source.git.repoURL"] == "https://host/x.git?access_token=***"
    for run in runs():
        assert not any(SECRET in value for value in run.data.tags.values())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Basic YW5uOnMzY3IzdC13MHJk", "Authorization: Basic ***"),
        ("authorization: bearer eyJhbGciOiJIUzI1NiJ9.e30.abc", "authorization: bearer ***"),
        ('{"password": "hunter2"}', '{"password": "***"}'),
        ("X-Api-Key: abc123def", "X-Api-Key: ***"),
        ("Cookie: session=1; other=2", "Cookie: ***"),
        ("the token: a word, and 3 passes: 2 of them", "the token: a word, and 3 passes: 2 of them"),
        ("Basic understanding of bearer instruments", "Basic understanding of bearer instruments"),
        ("at http://me:a@b:c@host/x and http://host", "at http://me:***@host/x and http://host"),
    ],
)
def test_what_a_request_says_of_its_sender_is_masked(text, shown):
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "piece", ["a", "://a:", "token=x ", "https://", "Bearer ", "pass", "://b: ", "Basic YTpi ", "@:"]
)
def test_a_megabyte_is_looked_through_in_no_time_whatever_it_is_made_of(piece):
    """Twice the text takes about twice as long: no pattern begins again at every letter."""

    def seconds(size: int) -> float:
        text, start = (piece * size)[:size], time.perf_counter()
        for word in (text, " ".join(text[i : i + 1_900] for i in range(0, size, 1_900))):
            redacted(word)
        return time.perf_counter() - start

    once = min(seconds(50_000) for _ in range(2))
    assert min(seconds(200_000) for _ in range(2)) < 12 * once + 0.2


BAD_ADDRESSES = [
    ("RUNNER_STUDY_STORAGE", "postgresql+psycopg://h:54x/d", "is no address"),
    ("RUNNER_STUDY_STORAGE", "sqlite+pysqlite:///optuna.db", "SQLite's address is sqlite:///"),
    ("RUNNER_STUDY_STORAGE", "postgresql+nothing://h/d", "is no address"),
    ("RUNNER_STUDY_STORAGE", "sqlite:///sweeps", "the path of a file"),
    ("MLFLOW_TRACKING_URI", "http://[::1", "is no address"),
    ("MLFLOW_TRACKING_URI", "http://h:abc", "is no address"),
    ("MLFLOW_TRACKING_URI", "http://h:99999999", "is no address"),
    ("MLFLOW_TRACKING_URI", "mssql://x", "needs a driver that is not installed (pyodbc)"),
    ("MLFLOW_TRACKING_URI", "sqlite:///sweeps", "the path of a file"),
]


@pytest.mark.parametrize(("variable", "address", "words"), BAD_ADDRESSES)
def test_an_address_that_cannot_be_is_refused_before_anything_begins(
    project, capsys, monkeypatch, variable, address, words
):
    monkeypatch.setenv(variable, address)
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {variable}: ")
    assert words in said
    assert not Path("optuna.db").exists()


def test_what_the_environment_holds_is_taken_out_of_any_text(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", "postgresql://ann:p%40ss-w0rd@host/x")
    assert redacted(f"Authorization: Bearer {SECRET}") == "Authorization: Bearer ***"
    assert redacted("password p@ss-w0rd or p%40ss-w0rd") == "password *** or ***"


@pytest.mark.parametrize(
    "text",
    [
        f"https://{SECRET}@host/x",  # a token in the user's place
        f"http://host/?access_token={SECRET}&x=1",
        f"postgresql://host/x?sslpassword={SECRET}",
        f"host=h password='{SECRET} with spaces' user=ann",
        f"API_KEY={SECRET}",
        f"http://host/?api-key={SECRET}&sig={SECRET}&pass={SECRET}",
        f"postgresql://ann:{SECRET}@host/x",
    ],
)
def test_a_secret_is_known_by_where_it_stands(text):
    assert SECRET not in redacted(text)
    assert "with spaces" not in redacted(text)
    assert "host" in redacted(text) or "API_KEY" in redacted(text)


def test_what_is_no_secret_stays():
    for text in ("postgresql://ann@host/x", "sqlite:///folder/a.db", "tokens: 5", "http://host/?page=2"):
        assert redacted(text) == text


# --- the UI ----------------------------------------------------------------------------------------------------


def test_the_ui_is_for_this_machine_alone_unless_somebody_says_so(project, monkeypatch):
    command, environment = server(load_place())
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"] == "127.0.0.1,127.0.0.1:*,localhost,localhost:*"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    Path("mlflow.yaml").write_text("ui: {host: 0.0.0.0}\n")
    with pytest.raises(SpecError, match="say --expose NAME"):
        server(load_place())
    command, environment = server(load_place(), "lab.example.org", 5001)
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"].endswith(",lab.example.org,lab.example.org:*")
    assert "https://lab.example.org" in environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    for port in (-1, 0, 99_999):
        with pytest.raises(SpecError, match="a port is 1 to 65535"):
            server(load_place(), port=port)
    for wrong in ("*", "a,b", "", "http://x"):
        with pytest.raises(SpecError, match="takes the one name"):
            server(load_place(), wrong)
    Path("mlflow.yaml").write_text("{}\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://ann:{SECRET}@host/x")
    command, environment = server(load_place())
    assert not any(SECRET in argument for argument in command)  # which everybody on the machine can read
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{SECRET}@host")
    with pytest.raises(SpecError, match=r"http://ann:\*\*\*@host is a server already"):
        server(load_place())


@pytest.mark.slow
def test_the_ui_answers_to_its_own_name_and_to_no_other(project):
    """A page somewhere may give its name the address of this machine (DNS rebinding)."""
    import http.client

    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    port = free_port()
    with served([sys.executable, "-m", "runner.ui", "tiny", "--port", str(port)], port, Path("ui.log")):
        assert Path("ui.log").read_text().startswith(f"tiny, curves: http://127.0.0.1:{port}/#/experiments/1/runs?")

        def asked(host: str) -> int:
            path = "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0"
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", path, headers={"Host": host})
                with closing(connection.getresponse()) as answer:
                    return answer.status

        assert asked(f"127.0.0.1:{port}") == 200
        assert asked("10.evil.example") == 403
        assert asked(f"localhost:{port}") == 200


def test_the_ui_stays_closed_whatever_mlflows_own_variables_say(project, monkeypatch):
    """Each of them would open it to every page that a browser on this machine shows."""
    import mlflow.environment_variables as known

    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    monkeypatch.setenv("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*")
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "*")
    _, environment = server(load_place())
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert known.MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE.get() == "false"
    assert "*" not in known.MLFLOW_SERVER_CORS_ALLOWED_ORIGINS.get().split(",")
    assert "*" not in known.MLFLOW_SERVER_ALLOWED_HOSTS.get().split(",")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8080", True),  # ssh -L 8080:localhost:5000
        ("127.0.0.1:5000", True),
        ("localhost", True),
        ("lab.example.org", True),  # behind a proxy
        ("lab.example.org:5000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("lab.example.org.evil.example:5000", False),
    ],
)
def test_the_ui_answers_to_its_names_on_any_port(project, monkeypatch, host, allowed):
    from mlflow.server import security_utils

    _, environment = server(load_place(), "lab.example.org")
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert security_utils.is_allowed_host_header(security_utils.get_allowed_hosts_from_env(), host) == allowed
    origins = security_utils.get_allowed_origins_from_env()
    for scheme in ("http", "https"):
        assert security_utils.should_block_cors_request(f"{scheme}://{host}", "POST", origins) != allowed


def test_the_ui_of_a_sweep_that_is_not_there_names_those_that_are(project, capsys):
    assert ui.main(["nothing"]) == 2
    assert "MLflow has no sweep 'nothing'; it has none" in capsys.readouterr().err


def test_mlflow_sends_no_telemetry_unless_asked(project, monkeypatch):
    from runner.tracking.client import make_client

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    make_client(load_place())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    Path("mlflow.yaml").write_text("telemetry: true\n")
    make_client(load_place())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


# --- what a person or a spreadsheet may be shown ---------------------------------------------------------------


def test_what_a_sweep_is_called_and_asks_cannot_be_markup_in_mlflow(project):
    Path("sweeps/tiny.yaml").write_text(
        TINY.replace("Does it run?", "'<img src=x onerror=alert(1)> [click](http://evil.example) `code`'")
    )
    assert sweep.main(["sweeps/tiny.yaml", *HERE]) == 0
    with closing(sqlite3.connect("mlflow.db")) as database:
        (note,) = database.execute("SELECT value FROM tags WHERE key = 'mlflow.note.content'").fetchone()
    assert "<img" not in note
    assert "](http" not in note
