"""Images from files: by one process or by several, the same; and nothing is left of the others."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner import images
from runner.images import all_decoded


def blobs(n: int) -> list[bytes]:
    made = []
    for i in range(n):
        into = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i % 256, dtype=np.uint8)).save(into, "png")
        made.append(into.getvalue())
    return made


@pytest.fixture
def at_once(monkeypatch):
    """The other processes begin at once, and are two at least."""
    monkeypatch.setattr(images, "ALONE", 0.0)
    monkeypatch.setattr("runner.lanes.cores", lambda: 2)


def test_several_processes_give_what_one_gives_in_order_and_name_what_is_damaged(at_once, monkeypatch):
    sources = blobs(600)
    sources[417] = b"no image"
    by_several = list(all_decoded(sources))
    monkeypatch.setattr(images, "ALONE", 60.0)
    by_one = list(all_decoded(sources))
    assert str(by_several[417]) == str(by_one[417]) == "not an image"
    for i, (one, other) in enumerate(zip(by_several, by_one, strict=True)):
        assert i == 417 or (np.array_equal(one, other) and one[0, 0, 0] == i % 256)


def test_photos_are_read_from_their_paths_and_made_smaller_by_several_as_by_one(tmp_path, at_once):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.arange(i, 40 * 30 * 3 + i, dtype=np.uint8).reshape(40, 30, 3)).save(path)
    for path, found in zip(paths, all_decoded(paths, 16), strict=True):
        assert np.array_equal(found, images.decoded(path, 16))
        assert found.shape == (16, 16, 3)


FOREVER = """\
import sys
from pathlib import Path
from runner import images
import runner.lanes

if __name__ == "__main__":
    images.ALONE = 0.0
    runner.lanes.cores = lambda: 2
    list(images.all_decoded([Path(sys.argv[1])] * 1_000_000))
"""


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waited_for(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    return what()


def test_a_picture_whose_notes_are_damaged_is_an_error_of_its_own_and_no_bug():
    into, notes = io.BytesIO(), Image.Exif()
    notes[0x0112], notes[0x0100] = 6, 24  # turned; and a width
    Image.new("RGB", (24, 24)).save(into, "jpeg", exif=notes)
    whole = into.getvalue()
    assert next(all_decoded([whole])).shape == (24, 24, 3)
    width = whole.index(b"\x01\x00\x00", whole.index(b"Exif") + 14)
    damaged = whole[: width + 3] + b"\x02" + whole[width + 4 :]  # which is said to be a text
    (error,) = all_decoded([damaged])
    assert "required argument is not an integer" in str(error)  # of struct, somewhere in Pillow


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")


@needs_proc
def test_where_a_helper_dies_this_process_decodes_what_is_left(at_once):
    sources, before = blobs(3000), set(children(os.getpid()))
    with contextlib.closing(all_decoded(sources)) as found:
        first = [next(found) for _ in range(5)]
        helpers = set(children(os.getpid())) - before
        assert len(helpers) == 2
        os.kill(min(helpers), signal.SIGKILL)
        whole = [*first, *found]
    assert [int(one[0, 0, 0]) for one in whole] == [i % 256 for i in range(3000)]
    assert not any(map(alive, helpers))


@needs_proc
def test_nothing_is_left_of_the_helpers_where_somebody_stops_looking(at_once):
    before = set(children(os.getpid()))
    with contextlib.closing(all_decoded(blobs(3000))) as found:
        for _ in range(5):
            next(found)
    assert set(children(os.getpid())) == before


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_processes_that_decode_end_with_the_one_that_began_them(tmp_path, number):
    (tmp_path / "forever.py").write_text(FOREVER)
    (tmp_path / "a.png").write_bytes(blobs(1)[0])
    command = [sys.executable, str(tmp_path / "forever.py"), str(tmp_path / "a.png")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    how = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True, "env": environment}
    with subprocess.Popen(command, **how) as leader:
        assert waited_for(lambda: len(children(leader.pid)) == 2)
        helpers = children(leader.pid)
        os.killpg(leader.pid, number)  # as Ctrl-C does
        assert leader.wait(30) != 0
        assert waited_for(lambda: not any(map(alive, helpers)))
        assert leader.stderr.read().count("Traceback") == (number == signal.SIGINT)  # the script's own
