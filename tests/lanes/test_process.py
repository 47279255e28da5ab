"""A worker process as an executor: what it gives and raises, and that its death is noticed whatever it was doing."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import BrokenExecutor
from functools import partial

import pytest

from runner.lanes.process import ProcessExecutor

BOUND = 30.0
"""Seconds within which a death must be noticed: it takes milliseconds, and the machine may be busy."""


@pytest.fixture
def worker():
    executor = ProcessExecutor(multiprocessing.get_context("forkserver"), os.putenv, "STARTED", "yes")
    yield executor
    executor.shutdown()


def started() -> str:
    return os.popen("echo $STARTED").read().strip()


def wrong(text: str) -> None:
    raise ValueError(text)


def leave() -> None:
    raise SystemExit(3)


def lambda_of_its_own() -> object:
    return lambda: 0


def much(size: int) -> bytes:
    return bytes(size)


def test_jobs_are_done_in_their_order_after_what_comes_first(worker):
    futures = [worker.submit(partial(pow, 2), n) for n in range(20)]
    assert [future.result(BOUND) for future in futures] == [2**n for n in range(20)]
    assert worker.submit(started).result(BOUND) == "yes"
    assert worker.submit(os.getpid).result(BOUND) != os.getpid()


def test_an_error_comes_with_where_it_was_raised_and_the_worker_goes_on(worker):
    error = worker.submit(wrong, "no such thing").exception(BOUND)
    assert isinstance(error, ValueError)
    assert "in wrong" in error.__notes__[0]
    assert isinstance(worker.submit(leave).exception(BOUND), SystemExit)
    assert "cannot be sent" in str(worker.submit(lambda_of_its_own).exception(BOUND))
    assert worker.submit(abs, -1).result(BOUND) == 1


def test_a_result_larger_than_any_pipe_arrives_whole(worker):
    assert len(worker.submit(much, 50_000_000).result(BOUND)) == 50_000_000
    assert worker.submit(len, bytes(50_000_000)).result(BOUND) == 50_000_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_at_work_breaks_all_that_it_still_had_to_do(worker, number):
    pid = worker.submit(os.getpid).result(BOUND)
    futures = [worker.submit(time.sleep, 600), worker.submit(abs, -1)]
    os.kill(pid, number)
    for future in futures:
        assert isinstance(future.exception(BOUND), BrokenExecutor)
    with pytest.raises(BrokenExecutor):
        worker.submit(abs, -1)


def test_a_worker_that_is_killed_in_the_middle_of_a_result_is_noticed(worker, monkeypatch):
    """What is in the pipe by then is half a message, and nobody will send the rest."""
    from multiprocessing.connection import Connection

    pid = worker.submit(os.getpid).result(BOUND)
    real, begun = Connection._recv, []

    def slow(self, size, read=os.read):  # the coordinator is busy: the worker sleeps in its writing
        if size > 1_000_000 and not begun:
            begun.append(size)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        return real(self, size, read)

    monkeypatch.setattr(Connection, "_recv", slow)
    future = worker.submit(much, 50_000_000)
    assert isinstance(future.exception(BOUND), BrokenExecutor)
    assert begun


def test_a_worker_that_is_killed_in_the_middle_of_a_job_that_it_is_sent_is_noticed(worker):
    pid = worker.submit(os.getpid).result(BOUND)
    os.kill(pid, signal.SIGSTOP)
    future = worker.submit(len, bytes(50_000_000))  # which no pipe holds
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert isinstance(future.exception(BOUND), BrokenExecutor)


def test_a_worker_whose_own_children_outlive_it_is_noticed(worker):
    """They hold its end of the pipe open."""
    child = worker.submit(begin_a_child).result(BOUND)
    pid, future = worker.submit(os.getpid).result(BOUND), worker.submit(time.sleep, 600)
    os.kill(pid, signal.SIGKILL)
    try:
        assert isinstance(future.exception(BOUND), BrokenExecutor)
    finally:
        os.kill(child, signal.SIGKILL)


def begin_a_child() -> int:
    pid = os.fork()
    if not pid:
        time.sleep(60)
        os._exit(0)
    return pid


def test_what_is_wrong_with_the_start_of_a_worker_is_said_of_its_jobs():
    executor = ProcessExecutor(multiprocessing.get_context("forkserver"), wrong, "no such folder")
    with pytest.raises(ValueError, match="no such folder"):
        executor.submit(abs, -1).result(BOUND)
    executor.shutdown()


def test_a_worker_that_nobody_wants_any_more_ends_and_a_busy_one_is_not_waited_for_long(worker, monkeypatch):
    monkeypatch.setattr("runner.lanes.process.WAY_OUT", 0.5)
    pid = worker.submit(os.getpid).result(BOUND)
    worker.submit(time.sleep, 600)
    start = time.monotonic()
    worker.shutdown()
    assert time.monotonic() - start < 10
    assert not any(child.pid == pid for child in multiprocessing.active_children())


def test_a_worker_may_have_processes_of_its_own(worker):
    """As a loader of one's own images has."""
    assert worker.submit(exit_code_of_a_process_of_its_own).result(BOUND) == 7


def exit_code_of_a_process_of_its_own() -> int:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,))
    process.start()
    process.join()
    return process.exitcode
