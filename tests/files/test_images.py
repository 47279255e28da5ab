"""Images from files: with threads or without them the same, and what each shows."""

import io
import math
import os
import struct
import subprocess
import sys
import zlib
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
    ("where", "files", "most"),
    [
        ("0::/", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/a.slice/b.scope", {"a.slice/b.scope/cpu.max": "50000 100000\n"}, 1),
        ("0::/a.slice/b.scope", {"a.slice/cpu.max": "100000 100000\n"}, 1),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "100000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 1),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("0::/", {}, math.inf),
    ],
)
def test_a_quota_of_cpu_is_so_many_cores(tmp_path, where, files, most):
    texts = {"proc/self/cgroup": f"{where}\n"} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
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


@pytest.mark.slow
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


# --- what a file shows -------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    into = io.BytesIO()
    image.save(into, kind, **options)
    return into.getvalue()


def tiff(pixels: np.ndarray, photometric: int) -> bytes:
    """Uncompressed, little-endian, without Pillow: which writes neither many bands nor a white zero."""
    height, width, bands = (*pixels.shape, 1)[:3]
    data, bits = pixels.tobytes(), 8 * pixels.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: bands, 278: height}
    rows = [(tag, 3, 1, value) for tag, value in tags.items()] + [(273, 4, 1, 8), (279, 4, 1, len(data))]
    packed = b"".join(struct.pack("<HHII", *row) for row in sorted(rows))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(rows)) + packed + bytes(4)


def png(width: int, bits: int, kind: int, row: bytes, key: bytes) -> bytes:
    """One row of pixels, with a transparent colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    parts = (b"IHDR", head), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("top", [65535, 4095, 1000, 300])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_has_the_range_that_its_header_says(top, plain):
    values = np.array([0, top // 3, top // 2, top])
    pixels = " ".join(map(str, values)).encode() if plain else values.astype(">u2").tobytes()
    noted = []
    found = images.decode((b"P2" if plain else b"P5") + f" 4 1 {top}\n".encode() + pixels, noted=noted)
    assert np.abs(found[0, :, 0] - values * 255 / top).max() <= 1
    assert noted == [images.SCALED]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_composited_on_white(kind, mode):
    layer = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    image, noted = Image.fromarray(layer).convert(mode), []
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = images.decode(encoded(image, kind, **options), noted=noted)
    colour, alpha = np.asarray(image.convert("RGB"), float), np.asarray(image.getchannel("A"), float)[..., None] / 255
    assert np.abs(found - (colour * alpha + 255 * (1 - alpha))).max() <= 1
    assert noted == [images.ON_WHITE]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_has_an_alpha_channel_and_is_opaque_is_left_as_it_is(mode):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image, noted = Image.fromarray(colours).convert(mode if mode != "PA" else "P"), []
    found = images.decode(
        encoded(image, "PNG", **({"transparency": b"\xff" * 9} if mode == "PA" else {})), noted=noted
    )
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    assert noted == []


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        pytest.param(png(4, 2, 0, b"\x1b", b"\0\1"), [0, 255, 170, 255], id="2 bits"),
        pytest.param(png(2, 4, 0, b"\xf3", b"\0\x0f"), [255, 51], id="4 bits"),
        pytest.param(png(3, 8, 0, b"\x05\x06\xc8", b"\0\5"), [255, 6, 200], id="8 bits"),
        pytest.param(png(2, 16, 0, b"\1\1\x80\0", b"\1\1"), [255, 127], id="16 bits"),
        pytest.param(png(2, 8, 2, b"\1\1\1\7\7\7", b"\0\1\0\1\0\1"), [255, 7], id="colour"),
        pytest.param(png(2, 16, 2, b"\1\2" * 3 + b"\x90\0" * 3, b"\1\2" * 3), [255, 144], id="colour of 16 bits"),
    ],
)
def test_the_transparent_colour_of_a_png_is_compared_in_the_bits_of_its_file(data, shown):
    assert images.decode(data)[0, :, 0].tolist() == shown


def test_an_icon_whose_colour_is_black_everywhere_keeps_its_shape():
    alpha = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    icon = np.dstack([np.zeros((9, 9, 3), np.uint8), alpha])
    assert np.array_equal(images.decode(encoded(Image.fromarray(icon), "PNG"))[..., 0], 255 - alpha)


def test_a_tiff_whose_zero_is_white_is_not_shown_as_its_negative():
    ramp = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    white, black = (images.decode(tiff(ramp, photometric))[..., 0] for photometric in (0, 1))
    assert np.array_equal(white, 255 - black)
    assert np.array_equal(black, ramp // 257)


@pytest.mark.parametrize("bands", [2, 5, 13])
def test_a_tiff_of_other_bands_says_how_many_it_has_and_what_can_be_done(bands):
    (error,) = decode_all([tiff(np.zeros((4, 4, bands), np.uint16), 1)])
    assert f"a TIFF of {bands} bands of 16 bits" in str(error)
    assert "data.source: custom" in str(error)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken_and_that_is_noted(kind):
    first, second = (Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200))
    options = {"lossless": True} if kind == "WEBP" else {}
    noted = []
    several = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert images.decode(several, noted=noted).max() == 10
    assert noted == [images.FIRST]
    assert images.decode(encoded(first, kind, **options), noted=noted).max() == 10
    assert len(noted) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "not an image"),  # another program would draw it
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point numbers of 32 bits, whose"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"), "signed whole numbers of 32 bits, whose"),
    ],
)
def test_what_cannot_be_decoded_is_called_what_it_is(data, words):
    (error,) = decode_all([data])
    assert words in str(error)


def test_what_is_smaller_than_its_size_is_enlarged_and_that_is_noted():
    noted = []
    small, large = blobs(1)[0], encoded(Image.new("RGB", (40, 30)), "PNG")
    assert [one.shape for one in decode_all([small, large], 16, noted)] == [(16, 16, 3)] * 2
    assert noted == [images.ENLARGED]


# --- memory ------------------------------------------------------------------------------------------------------


def machine(root, cgroup: str, **files: str):
    """A folder that says of a machine's memory what Linux does: 8,000 kB are left."""
    said = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", "proc/self/cgroup": cgroup, **files}
    for name, text in said.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        pytest.param("0::/\n", {}, 8000 * 1024, id="no limit"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/memory.max": "max\n", "a/b/memory.current": "5\n", "a/memory.max": "1000\n"}
            | {"a/memory.current": "700\n", "a/memory.stat": "inactive_file 50\n"},
            350,
            id="of a group above",
        ),
        pytest.param("0::/\n", {"memory.max": "1000\n", "memory.current": "1200\n"}, 0, id="used up"),
        pytest.param(
            "5:cpu:/x\n4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "900\n", "memory/x/memory.usage_in_bytes": "100\n"},
            800,
            id="the first version",
        ),
    ],
)
def test_the_memory_at_hand_is_what_the_machine_and_every_control_group_leave(tmp_path, cgroup, files, free):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert images.free_memory(machine(tmp_path, cgroup, **files)) == free


def test_a_machine_that_says_nothing_about_its_memory_has_no_limit(tmp_path):
    assert images.free_memory(tmp_path) is None
