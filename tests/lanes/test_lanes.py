"""Lanes: the same table with any number of them, and what happens when their workers die. Real processes, Ray, and a
real PostgreSQL server where there is one."""

import math
import multiprocessing
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient

from runner import sweep
from runner.export import best_schedules
from runner.files.document import SpecError
from runner.files.place import load_place
from runner.files.sweep_file import Data, Model, Train, load_sweep
from runner.files.trial import TrialConfig
from runner.lanes.lane import Lanes
from runner.lanes.open import open_lanes
from runner.lanes.stop import Stop
from runner.results.tables import trials_table
from runner.schedules import load
from runner.study.storage import hold
from runner.study.study import Study, load_study
from runner.training import data
from runner.training.checkpoint import Checkpoints
from runner.training.fast import engine
from runner.training.loop import Epoch

from ..conftest import TINY, epochs_on_record, free_port

OWN = """\
import os
from pathlib import Path

TRIED = 8  # updates of the training for which a function is tried when the file is read


def fine(t, T):
    return 1.0


def dies_once(t, T, *, mark):
    if T != TRIED and not Path(mark).exists() and t > 2:
        Path(mark).touch()
        os.kill(os.getpid(), 9)
    return 1.0


def always_dies(t, T):
    return 1.0 if T == TRIED else os._exit(1)


def needs_too_much(t, T):
    if T != TRIED:
        raise MemoryError("98 GiB")
    return 1.0


def is_wrong(t, T):
    if T != TRIED:
        raise ZeroDivisionError("a mistake of its author")
    return 1.0


class Rare(Exception):
    def __init__(self, what, how_much):
        super().__init__(f"{what}: {how_much}")


def raises_what_nobody_can_send(t, T):
    if T != TRIED:
        raise Rare("too little", 3)
    return 1.0


def turns_negative(t, T):
    return 1.0 if T == TRIED else 2.0 - t
"""


@pytest.fixture
def own(project, monkeypatch):
    """A sweep over custom schedules of a package in the project's folder; returns how to write one."""
    (project / "own_lanes.py").write_text(OWN)
    monkeypatch.syspath_prepend(project)

    def write(**schedules: str) -> list[str]:
        lines = "".join(
            f"    {name}: {{type: custom, function: own_lanes.{name}{rest}}}\n" for name, rest in schedules.items()
        )
        text = TINY[: TINY.index("  init_lr")] + f"  init_lr: 0.01\n  schedules:\n{lines}"
        text += f"search: {{trials: {len(schedules)}, sampler: grid}}\n"
        (project / "sweeps/tiny.yaml").write_text(text)
        return ["sweeps/tiny.yaml", "--device", "cpu", "--allow-plugin", "own_lanes."]

    return write


def outcomes() -> list[str]:
    return [r.outcome for r in load_study("tiny", load_place().storage)[1]]


def go_to(folder: Path, text: str, migrated: Path) -> None:
    """Make a project's folder with ``text`` as its sweep, and be there."""
    (folder / "sweeps").mkdir(parents=True)
    (folder / "sweeps" / "tiny.yaml").write_text(text)
    shutil.copy(migrated, folder / "mlflow.db")
    os.chdir(folder)


def table(name: str = "tiny") -> str:
    """The table of a sweep, without what is a matter of time and place."""
    records = load_study(name, load_place().storage)[1]
    return trials_table(records).drop(columns=["seconds", "run_id"]).to_csv()


def opened(wanted: str, device: str, most: int) -> Lanes:
    """Lanes that nobody stops, and whose trials keep nothing."""
    checkpoints = Checkpoints(Path("checkpoints"), math.inf, print)
    return open_lanes(wanted, device, most, stop=Stop(), checkpoints=checkpoints)


# --- the number of lanes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_two_and_four_lanes_give_the_same_table_byte_by_byte(project, migrated):
    """Twelve trials with a window of four: TPE has learnt from results by the end."""
    text = TINY.replace("trials: 3", "trials: 12, window: 4")
    tables = []
    for lanes in ("1", "2", "4"):
        go_to(project / lanes, text, migrated)
        assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", lanes]) == 0
        tables.append(table())
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].count("\n") == 13


@pytest.mark.slow
def test_two_lanes_give_the_table_of_none_byte_by_byte(swept, migrated):
    """None: the command's own thread."""
    expected = table()
    go_to(swept / "other", TINY, migrated)
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "2"]) == 0
    assert table() == expected


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_what_is_proposed_does_not_depend_on_which_trial_ends_first(sampler, sweep_file, tmp_path):
    sweep_, _ = load_sweep(sweep_file(search=f"search: {{trials: 20, window: 4, sampler: {sampler}}}"))
    seen = []
    for order in (
        lambda running: running[0],
        lambda running: running[-1],
        lambda running: running[len(running) // 2],
    ):
        study = Study(sweep_, f"sqlite:///{tmp_path / f'{len(seen)}.db'}")
        running = []
        while True:
            while len(running) < 4 and (trial := study.next()) is not None:
                running.append(trial)
            if not running:
                break
            trial = order(running)
            running.remove(trial)
            accuracy = 1 - abs(trial.schedule["init_lr"] - 0.05)
            study.commit(trial.number, 0, {"val/accuracy": accuracy, "val/loss": 1.0, "seconds": 1.0})
            study.tell(trial.number, "complete")
        seen.append([(r.number, dict(r.params)) for r in study.records()])
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 20


def pid_and_parent() -> tuple[int, int]:
    return os.getpid(), os.getppid()


def page_faults() -> int:
    """Of the eighth round that makes eight tensors of 16 to 64 MiB and forgets them."""
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones(n) for n in (2**22, 2**24, 2**23, 2**22)]
        kept = [tensor + 1 for tensor in kept]
        del kept
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="mallopt is glibc's own; elsewhere a worker leaves the allocator as it is",
)
def test_a_worker_takes_memory_from_the_machine_once_and_not_for_every_update():
    with opened("1", "cpu", 1) as worker:
        kept = worker.all[0].executor.submit(page_faults).result()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as plain:
        given_back = plain.submit(page_faults).result()
    assert kept < 0.5 * given_back


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux's")
def test_lanes_have_the_coordinators_images_and_no_copy_even_in_a_worker_that_is_begun_later(tmp_path, monkeypatch):
    (tmp_path / "own_grey.py").write_text(
        "import numpy as np\n\n\ndef grey():\n"
        "    return np.random.default_rng(0).integers(0, 256, (3000, 32, 32, 3), np.uint8), np.arange(3000) % 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Train(epochs=1, batch_size=32)
    config = TrialConfig(Data(source="custom", function="own_grey.grey"), Model(), recipe, load({"type": "linear"}))
    read = data.load(config.data, config.data_dir)
    maps = Path("/proc/self/maps").read_text  # of the process that calls it: addresses, and the inode that is there

    def inodes(text: str) -> set[str]:
        return set(re.findall(r" ([0-9]+) +/memfd:images", text))

    lanes = open_lanes("1", "cpu", 1, config=config, stop=Stop(), checkpoints=Checkpoints(tmp_path, math.inf, print))
    with lanes:
        for _ in range(2):
            executor = lanes.all[0].executor
            there = inodes(executor.submit(maps).result(timeout=60))
            assert len(there) == 3  # a split each
            assert there <= inodes(maps())
            os.kill(executor.submit(os.getpid).result(timeout=60), signal.SIGKILL)
            lanes.replace_worker(lanes.all[0])
    assert len(read.train) == 2160


def test_there_are_never_more_lanes_than_the_window_has_work_for(project):
    with opened("64", "cpu", 3) as lanes:
        assert len(lanes.all) == 3
    with opened("auto", "cpu", 1000) as lanes:
        assert len(lanes.all) == len(os.sched_getaffinity(0))


def test_gpu_lanes_are_threads_spread_over_the_gpus(monkeypatch):
    monkeypatch.setattr("runner.lanes.open._gpus", lambda: ["cuda:0", "cuda:1"])
    with opened("3", "cuda", 8) as lanes:
        assert [lane.device for lane in lanes.all] == ["cuda:0", "cuda:1", "cuda:0"]
    with opened("auto", "cuda", 8) as lanes:
        assert [lane.device for lane in lanes.all] == ["cuda:0", "cuda:1"]
    with opened("2", "cuda:1", 8) as lanes:
        assert [lane.device for lane in lanes.all] == ["cuda:1", "cuda:1"]


# --- dying -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_trained_again_with_the_same_result(own, project, capsys):
    mark = project / "mark"
    command = own(fine="", dies_once=f", params: {{mark: {mark}}}")
    assert sweep.main([*command, "--lanes", "1"]) == 0
    out = capsys.readouterr().out
    assert "trial 1 begins again: its worker died without a word" in out
    assert mark.exists()
    assert outcomes() == ["complete", "complete"]
    best = best_schedules("tiny")
    assert best["val_accuracy"][0] == best["val_accuracy"][1]  # both schedules are the same constant
    client = MlflowClient(tracking_uri=load_place().tracking_uri)
    for run_id in best["run_id"]:
        assert [m.step for m in client.get_metric_history(run_id, "val/accuracy")] == [0, 1]


@pytest.mark.slow
def test_a_trial_that_always_kills_its_worker_is_failed_at_the_third_time_and_the_others_go_on(own, capsys):
    command = own(fine="", always_dies="")
    assert sweep.main([*command, "--lanes", "2"]) == 0
    assert capsys.readouterr().out.count("trial 1 begins again") == 2
    assert outcomes() == ["complete", "failed"]
    assert load_study("tiny", load_place().storage)[1][1].cause.startswith("its worker exited with 1")


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="only on Linux are workers forked from one process; elsewhere each is spawned"
)
def test_workers_are_copies_of_one_process_and_another_stands_in_where_that_dies():
    with opened("2", "cpu", 2) as lanes:
        pids, parents = zip(*[lane._submit(pid_and_parent).result() for lane in lanes.all], strict=True)
        assert len(set(parents) - {os.getpid(), os.getppid()}) == 1
        os.kill(parents[0], signal.SIGKILL)
        for lane in lanes.all:
            assert isinstance(lane._submit(time.sleep, 30).exception(), BrokenExecutor)
            lanes.replace_worker(lane)
            while isinstance((answer := lane._submit(pid_and_parent)).exception(), BrokenExecutor):
                lanes.replace_worker(lane)  # the last moments of what was killed
            assert answer.result()[0] not in pids
            assert answer.result()[1] not in parents


@pytest.mark.parametrize(
    ("name", "words", "again"),
    [
        ("needs_too_much", "out of memory: 98 GiB; take smaller batches or fewer lanes", 2),
        ("is_wrong", "ZeroDivisionError: a mistake of its author", 0),
    ],
)
def test_the_cause_of_a_failure_is_on_record(own, capsys, name, words, again):
    command = own(fine="", **{name: ""})
    assert sweep.main([*command, "--lanes", "0"]) == 0
    assert capsys.readouterr().out.count("begins again") == again
    record = load_study("tiny", load_place().storage)[1][1]
    assert (record.outcome, record.cause) == ("failed", words)
    client = MlflowClient(tracking_uri=load_place().tracking_uri)
    assert client.get_run(record.run_id).data.tags["cause"] == words


def of_cuda(code: int, words: str) -> Exception:
    """As torch raises it."""
    error = torch.AcceleratorError(f"CUDA error: {words}")
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "code", "after"),
    [
        pytest.param(of_cuda(700, "an illegal memory access"), 4, [None], id="an illegal address"),
        pytest.param(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), 4, [None], id="a library's words"),
        pytest.param(of_cuda(9, "invalid configuration argument"), 5, ["failed"] * 3, id="what breaks nothing"),
    ],
)
def test_a_gpu_that_fails_ends_the_sweep_and_none_of_its_trials(error, code, after, project, capsys, monkeypatch):
    """Whatever is asked of it then fails too, in all threads of the process."""

    def epoch(*_):
        raise error

    command = ["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.Slot, "epoch", epoch)
        assert sweep.main(command) == code
    said = f"error: the GPU failed, and everything on it with it: {error} (CUDA_LAUNCH_BLOCKING=1 shows where)\n"
    assert (said in capsys.readouterr().err) == (code == 4)
    assert outcomes() == after
    if code == 4:
        assert sweep.main(command) == 0
        assert outcomes() == ["complete"] * 3


def test_a_lane_that_is_given_up_for_want_of_memory_is_named(own, capsys):
    command = own(fine="", needs_too_much="")
    assert sweep.main([*command, "--lanes", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("trial 1 begins again: out of memory") == 2
    assert out.count("(lanes left: 1)") == 1
    assert outcomes() == ["complete", "failed"]


def test_an_error_that_cannot_be_sent_to_another_process_fails_its_trial_alone(own):
    command = own(raises_what_nobody_can_send="", turns_negative="", fine="")
    assert sweep.main([*command, "--lanes", "1"]) == 5
    first, second, *_ = load_study("tiny", load_place().storage)[1]
    assert first.cause == "RuntimeError: Rare: too little: 3"
    said = "ScheduleError: function: own_lanes.turns_negative returned -1.0 at t=3, T=6; a factor is from 0 to 1e9"
    assert second.cause == said


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children] + [g for c in children for g in descendants(int(c))]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")
def test_workers_end_with_their_coordinator_and_a_second_one_takes_over(project, capsys):
    Path("sweeps/tiny.yaml").write_text(TINY.replace("epochs: 2", "epochs: 40").replace("trials: 3", "trials: 2"))
    command = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", "--device", "cpu", "--lanes", "2"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (lock := Path("optuna.db.tiny.lock")).exists() or not lock.read_text():
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
        assert sweep.main(command[3:]) == 2
        assert f"is being run by {socket.gethostname()} (pid {first.pid})" in capsys.readouterr().err
        while len(workers := descendants(first.pid)) < 4:  # two, the one that they are copied from, and a tracker
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcomes() == ["complete", "complete"]


def test_a_lane_does_not_wait_for_the_records_of_all_that_ended_before_it(project, monkeypatch):
    text = TINY.replace("trials: 3", "trials: 4, sampler: random")
    Path("sweeps/tiny.yaml").write_text(text)
    may_end, ended, begun = (defaultdict(threading.Event) for _ in range(3))
    numbers, commit, recorded = {}, Study.commit, []

    def train(config, device, state=None):  # epochs that end when they are told to
        trial = numbers[config.schedule.init_lr]
        for epoch in range(2):
            begun[trial, epoch].set()
            assert may_end[trial, epoch].wait(30)
            ended[trial, epoch].set()
            yield Epoch(epoch, (0.1,), 1.0, 1.0, 0.5, 1.0)

    def end(*trials):
        for trial in trials:
            may_end[trial, 0].set()
            assert ended[trial, 0].wait(30)
        time.sleep(0.2)  # until the coordinator can know

    def slowly(self, number, epoch, metrics, facts):  # as on a slow disk
        if (number, epoch) == (0, 0):
            end(1, 2)
        if (number, epoch) == (1, 0):
            end(3)
        if (number, epoch) == (2, 0):
            assert begun[3, 1].wait(10), "it waits for the record of another lane"
            for trial in range(4):
                may_end[trial, 1].set()
        recorded.append((number, epoch))
        return commit(self, number, epoch, metrics, facts)

    def begin(self, record, example):
        numbers[record.schedule["init_lr"]] = record.number
        if record.number == 3:
            may_end[0, 0].set()
        return took(self, record, example)

    took = Study.config
    monkeypatch.setattr(engine, "train", train)
    monkeypatch.setattr(Study, "config", begin)
    monkeypatch.setattr(Study, "commit", slowly)
    four = partial(Lanes, ["cpu"] * 4, lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr("runner.prepare.open_lanes", lambda *_, stop, checkpoints, **__: four(stop, checkpoints))
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu"]) == 0
    assert sorted(recorded) == [(trial, epoch) for trial in range(4) for epoch in range(2)]


# --- PostgreSQL ------------------------------------------------------------------------------------------------


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    which = shutil.which("initdb")
    return found[-1].parent if found else Path(which).parent if which else None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A real server of the tests' own, on loopback: its URL, and how it crashes and comes back."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL binaries here (apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("postgres")
    user: dict = {}
    if os.getuid() == 0:  # the server refuses to be root
        shutil.chown(folder, "postgres")
        for parent in folder.parents:
            if parent.name.startswith(("pytest-", "popen-")):
                parent.chmod(0o755)
        user = {"user": "postgres"}
    data, run = folder / "data", {"check": True, "capture_output": True, "cwd": folder, **user}
    subprocess.run([binaries / "initdb", "-D", data, "-U", "me", "--auth=trust", "--no-sync"], **run)
    port = free_port()
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    start = [binaries / "pg_ctl", "-D", data, "-w", "-o", settings, "-l", folder / "log", "start"]
    stop = [binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"]

    def crash(seconds: float) -> None:
        subprocess.run(stop, **run)
        time.sleep(seconds)
        subprocess.run(start, **run)

    subprocess.run(start, **run)
    yield SimpleNamespace(url=f"postgresql+psycopg://me@127.0.0.1:{port}/postgres", crash=crash)
    subprocess.run(stop, **run | {"check": False})  # it may be gone by now


@pytest.mark.slow
def test_a_study_in_postgresql_gives_the_table_of_one_in_sqlite(postgres, project, migrated, monkeypatch):
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]) == 0
    expected = table()
    go_to(project / "other", TINY, migrated)
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", postgres.url)
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]) == 0
    assert table() == expected
    assert not Path("optuna.db").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the driver's dead connections
def test_a_server_that_crashes_twice_in_mid_sweep_and_comes_back_changes_nothing(
    postgres, project, migrated, monkeypatch
):
    import psycopg

    text = TINY.replace("question: Does it run?", "question: Does it run?\nname: long").replace(
        "epochs: 2", "epochs: 12"
    )
    Path("sweeps/tiny.yaml").write_text(text)
    command = ["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]
    assert sweep.main(command) == 0
    expected = table("long")
    go_to(project / "other", text, migrated)
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", postgres.url)
    address = postgres.url.replace("+psycopg", "")

    def epochs_on_record() -> int:
        query = (
            "SELECT count(*) FROM trial_user_attributes JOIN trials USING (trial_id) JOIN studies USING (study_id) "
            "WHERE study_name = 'long' AND key LIKE 'epoch:%'"
        )
        with psycopg.connect(address) as database:
            try:
                return database.execute(query).fetchone()[0]
            except psycopg.errors.UndefinedTable:
                return 0

    def crashes() -> None:
        for n in (3, 20):
            while epochs_on_record() < n:
                time.sleep(0.05)
            postgres.crash(1.0)

    killer = threading.Thread(target=crashes)
    killer.start()
    assert sweep.main(command) == 0
    killer.join()
    assert table("long") == expected


def test_postgresql_has_one_coordinator_per_study(postgres):
    with hold("mine", postgres.url):
        with pytest.raises(SpecError, match=rf"'mine' is being run by {socket.gethostname()} \(pid {os.getpid()}\)"):
            hold("mine", postgres.url)
        hold("another", postgres.url).close()
    hold("mine", postgres.url).close()


def test_a_database_that_does_not_answer_is_named_without_its_password(project, monkeypatch, capsys):
    monkeypatch.setenv("RUNNER_STUDY_STORAGE", "postgresql+psycopg://me:s3cr3t@127.0.0.1:9/x")
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]) == 2
    err = capsys.readouterr().err
    assert "me:***@127.0.0.1:9/x cannot be used" in err
    assert "s3cr3t" not in err


def test_a_file_that_is_no_database_is_named(project, capsys):
    Path("optuna.db").write_text("not a database at all, but long enough to look like one" * 10)
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "0"]) == 2
    assert "optuna.db is no SQLite database (file is not a database); give another path" in capsys.readouterr().err


# --- Ray -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes on this machine, the head without a place for training."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'lr-sweep-runner[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [Path.cwd(), Path(__file__).parents[2]])))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    for node in [*made.worker_nodes, made.head_node]:
        made.remove_node(node, allow_graceful=False)  # a graceful end may wait for what is dead


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, in its threads
def test_a_ray_cluster_gives_the_same_table_even_when_a_node_is_killed_in_mid_trial(
    project, migrated, cluster, capsys
):
    text = TINY.replace("trials: 3", "trials: 4").replace("epochs: 2, batch_size: 32", "epochs: 20, batch_size: 4")
    Path("sweeps/tiny.yaml").write_text(text)
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--lanes", "2"]) == 0
    expected = table()
    go_to(project / "other", text, migrated)

    def kill_a_node() -> None:
        while not epochs_on_record("epoch:5"):
            time.sleep(0.1)
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    killer = threading.Thread(target=kill_a_node)
    killer.start()
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--ray", cluster.address]) == 0
    killer.join()
    assert "begins again: its worker died" in capsys.readouterr().out
    assert table() == expected


def test_ray_that_is_not_there_is_named(project, capsys):
    pytest.importorskip("ray", reason="Ray is an extra")
    assert sweep.main(["sweeps/tiny.yaml", "--device", "cpu", "--ray", "127.0.0.1:9"]) == 2
    assert "--ray 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("what", "code"), [("SIGTERM", 143), ("gcs_server", 4)])
def test_a_sweep_on_ray_is_stopped_by_a_signal_and_ends_with_a_sentence_where_ray_dies(project, what, code):
    pytest.importorskip("ray", reason="Ray is an extra")
    text = TINY.replace("trials: 3", "trials: 12").replace("epochs: 2", "epochs: 60")
    Path("sweeps/tiny.yaml").write_text(text)
    command = [sys.executable, "-m", "runner.sweep", "sweeps/tiny.yaml", "--device", "cpu", "--ray"]
    with Path("out.txt").open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as running:
        until = time.monotonic() + 120
        while not epochs_on_record():
            assert time.monotonic() < until, Path("out.txt").read_text()
            time.sleep(0.1)
        if what == "SIGTERM":
            running.terminate()
        else:
            mine = subprocess.run(
                ["pgrep", "-x", what, "-P", str(running.pid)], capture_output=True, text=True
            ).stdout
            os.kill(int(mine.split()[0]), signal.SIGKILL)
        assert running.wait(60) == code
    said = Path("out.txt").read_text()
    assert "continue with: python -m runner.sweep sweeps/tiny.yaml --device cpu --ray" in said
    assert "Traceback" not in said
    _, records = load_study("tiny", load_place().storage)
    assert "failed" not in {record.outcome for record in records}
