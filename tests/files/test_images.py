"""Images from files: with threads or without them, the same."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.files import images
from runner.files.images import decode_all


def blobs(n: int) -> list[bytes]:
    made = []
    for i in range(n):
        into = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), i % 256, dtype=np.uint8)).save(into, "png")
        made.append(into.getvalue())
    return made


@pytest.fixture(params=[0.0, 60.0], ids=["threads", "no threads"])
def several(request, monkeypatch):
    """Every image is worth a thread, of which there are two; or none is."""
    used, real = [], images.ThreadPoolExecutor

    def pool(n):
        used.append(n)
        return real(n)

    monkeypatch.setattr(images, "SLOW", request.param)
    monkeypatch.setattr(images, "cores", lambda: 2)
    monkeypatch.setattr(images, "ThreadPoolExecutor", pool)
    yield
    assert used == ([2] if request.param == 0.0 else [])


@pytest.mark.usefixtures("several")
def test_all_images_are_what_each_is_alone_in_order_and_what_is_damaged_is_named():
    sources = blobs(600)
    sources[3] = sources[417] = b"no image"
    found = list(decode_all(sources))
    assert str(found.pop(417)) == str(found.pop(3)) == "not an image"
    numbers = [i for i in range(600) if i not in (3, 417)]
    for i, one in zip(numbers, found, strict=True):
        assert np.array_equal(one, images.decode(sources[i]))
        assert one[0, 0, 0] == i % 256


@pytest.mark.usefixtures("several")
def test_photos_are_read_from_their_paths_and_made_smaller_as_each_is_alone(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        pixels = np.arange(i, 40 * 30 * 3 + i) % 256
        Image.fromarray(pixels.astype(np.uint8).reshape(40, 30, 3)).save(path)
    for path, found in zip(paths, decode_all(paths, 16), strict=True):
        assert np.array_equal(found, images.decode(path, 16))
        assert found.shape == (16, 16, 3)


@pytest.mark.usefixtures("several")
def test_a_picture_whose_notes_are_damaged_is_an_error_of_its_own_and_no_bug():
    into, notes = io.BytesIO(), Image.Exif()
    notes[0x0112], notes[0x0100] = 6, 24  # turned; and a width
    Image.new("RGB", (24, 24)).save(into, "jpeg", exif=notes)
    whole = into.getvalue()
    assert images.decode(whole).shape == (24, 24, 3)
    width = whole.index(b"\x01\x00\x00", whole.index(b"Exif") + 14)
    damaged = whole[: width + 3] + b"\x02" + whole[width + 4 :]  # which is said to be a text
    *before, first, last = decode_all([whole] * 20 + [damaged] * 2)
    assert all(one.shape == (24, 24, 3) for one in before)
    for error in (first, last):
        assert "required argument is not an integer" in str(error)  # of struct, somewhere in Pillow


@pytest.mark.usefixtures("several")
def test_whoever_stops_looking_gets_no_more():
    found = decode_all(blobs(300))
    assert [int(next(found)[0, 0, 0]) for _ in range(20)] == [*range(20)]
    found.close()


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_containers_quota_of_cpu_is_so_many_cores(tmp_path, files, most):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert images.cores(tmp_path) == min(len(os.sched_getaffinity(0)), most)


WHERE = """
import os
from runner.files.images import cores
given = len(os.sched_getaffinity(0))
from runner.lanes.open import open_lanes
from runner.lanes.stop import Stop
from runner.training.checkpoint import Checkpoints
from pathlib import Path
if __name__ == "__main__":
    import torch
    torch.ones(8).sum()
    with open_lanes("auto", "cpu", 99, stop=Stop(), checkpoints=Checkpoints(Path("x"), 60, print)) as lanes:
        masks = [lane.executor.submit(os.sched_getaffinity, 0).result() for lane in lanes.all]
    print(given, cores(), len(lanes.all), [len(mask) for mask in masks])
"""


def test_openmp_that_binds_threads_leaves_every_lane_all_cores(tmp_path):
    """torch's OpenMP would give the first thread of every process the first core."""
    (tmp_path / "where.py").write_text(WHERE)
    environment = os.environ | {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    environment["PYTHONPATH"] = str(Path(images.__file__).parents[2])
    command = [sys.executable, str(tmp_path / "where.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=True)
    given, cores, lanes, masks = done.stdout.split(maxsplit=3)
    assert given == cores == lanes
    assert masks.strip() == str([int(given)] * int(given))
