"""Splits, augmentation tables and file formats, against torchvision's transforms and images written by hand."""

import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import functional as TF

from runner.data import (
    DataError,
    Dataset,
    Split,
    Tables,
    augmented,
    batches,
    load,
    normalised,
    padded,
)
from runner.document import SpecError
from runner.spec import Augment, Data, Train

DIGITS = Data(source="digits")


def pictures(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """``n`` different images, ``[n, size, size, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(file: Path, images, labels, image: str = "img", label: str = "label") -> Path:
    """A Parquet file as the Hugging Face hub has them; an image may also be bytes as they are."""
    blobs = [i if isinstance(i, bytes) else png(i) for i in images]
    column = [{"bytes": blob, "path": f"{n}.png"} for n, blob in enumerate(blobs)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({image: column, label: list(labels)}).to_parquet(file)
    return file


def write_classes(folder: Path, classes, each: int = 10, size: int = 8, seed: int = 0) -> np.ndarray:
    """``folder/<class>/<n>.png``; the images that it wrote, class by class."""
    images = pictures(each * len(classes), size, seed)
    for n, image in enumerate(images):
        file = folder / classes[n // each] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(image))
    return images


def samples(*splits: Split) -> list[tuple[bytes, int]]:
    """Every (pixels, label) of the splits, sorted: two sets hold the same samples where these are equal."""
    return sorted((i.numpy().tobytes(), int(n)) for s in splits for i, n in zip(s.images, s.labels, strict=True))


def written(images, labels) -> list[tuple[bytes, int]]:
    return sorted((i.tobytes(), int(n)) for i, n in zip(images, labels, strict=True))


def parquet(tmp_path: Path, name: str = "set", **settings) -> Dataset:
    return load(Data(source="parquet", path=name, **settings), str(tmp_path))


def folder(tmp_path: Path, name: str = "set", size: int = 8, **settings) -> Dataset:
    return load(Data(source="folder", path=name, size=size, **settings), str(tmp_path))


@contextmanager
def complaint(*names: object):
    """A DataError on one line that says all of ``names``: the file, and what to do."""
    with pytest.raises(DataError) as info:
        yield
    said = str(info.value)
    assert "\n" not in said
    assert [str(name) for name in names if str(name) not in said] == [], said


# --- splits ----------------------------------------------------------------------------------------------------


def test_the_three_splits_of_the_digits_are_disjoint_and_cover_everything():
    images, labels = load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    data = load(DIGITS)
    assert samples(data.train, data.val, data.test) == written(np.repeat(grey, 3, axis=3), labels)
    assert data.classes == 10


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param({}, (1294, 144, 359), id="a tenth and a fifth"),
        pytest.param({"val": 0.25, "test": 0.5}, (674, 225, 898), id="chosen"),
        pytest.param({"limit": 200}, (180, 20, 359), id="limit"),
    ],
)
def test_val_and_test_have_the_share_that_was_asked_for(settings, sizes):
    data = load(Data(source="digits", **settings))
    assert (len(data.train), len(data.val), len(data.test)) == sizes


def test_the_same_settings_give_the_same_splits_whatever_was_drawn_before():
    first = load(DIGITS)
    load.cache_clear()
    torch.manual_seed(1)
    second = load(DIGITS)
    assert second is not first
    assert second.digest == first.digest
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(first, name).images, getattr(second, name).images)
        assert torch.equal(getattr(first, name).labels, getattr(second, name).labels)


def test_another_split_seed_gives_other_splits_of_the_same_images():
    one, other = load(DIGITS), load(Data(source="digits", split_seed=1))
    assert samples(one.test) != samples(other.test)
    assert samples(one.train, one.val, one.test) == samples(other.train, other.val, other.test)


def test_a_limit_leaves_the_test_split_alone():
    whole, limited = load(DIGITS), load(Data(source="digits", limit=100))
    assert samples(limited.test) == samples(whole.test)
    assert set(samples(limited.train, limited.val)) <= set(samples(whole.train, whole.val))


def test_data_are_read_once_per_process():
    assert load(DIGITS) is load(Data(source="digits"))


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(60) // np.array([1, 2, 5], np.uint8), [0, 1] * 30)
    data = parquet(tmp_path)
    pixels = data.train.images.double().reshape(-1, 3)
    torch.testing.assert_close(data.mean, pixels.mean(0).float())
    torch.testing.assert_close(data.std, pixels.std(0, correction=0).float())


def test_normalised_training_images_have_mean_0_and_deviation_1():
    data = load(DIGITS)
    images = normalised(data.train.images, data.mean, data.std)
    assert images.shape == (len(data.train), 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_black_images_are_normalised_to_numbers(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", np.zeros((40, 8, 8, 3), np.uint8), [0, 1] * 20)
    data = parquet(tmp_path)
    assert normalised(data.train.images, data.mean, data.std).isfinite().all()


def test_the_digest_changes_with_a_single_pixel_and_with_a_single_label(tmp_path):
    images, labels = pictures(40), [0, 1] * 20
    write_parquet(tmp_path / "same" / "train.parquet", images, labels)
    write_parquet(tmp_path / "again" / "train.parquet", images, labels)
    write_parquet(tmp_path / "label" / "train.parquet", images, [1, *labels[1:]])
    images[7, 3, 2, 1] ^= 1
    write_parquet(tmp_path / "pixel" / "train.parquet", images, labels)
    same, again, label, pixel = (parquet(tmp_path, n).digest for n in ("same", "again", "label", "pixel"))
    assert same == again
    assert len({same, label, pixel}) == 3


def test_too_few_images_to_split_are_refused(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(2), [0, 1])
    with complaint("too few"):
        parquet(tmp_path)


def test_data_stay_where_they_are_on_the_cpu():
    data = load(DIGITS)
    moved = data.to(torch.device("cpu"))
    assert moved.train.images is data.train.images
    assert moved.digest == data.digest


def test_padded_images_are_made_once_for_every_device_and_margin(monkeypatch):
    images, real, made = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.nn.functional.pad, []

    def slowly(*args):
        made.append(args)
        time.sleep(0.1)
        return real(*args)

    monkeypatch.setattr(torch.nn.functional, "pad", slowly)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: padded(images, 2), range(4)))
    elsewhere = images.to("meta")
    there = padded(elsewhere, 2)
    assert {id(each) for each in found} == {id(padded(images, 2))}
    assert padded(elsewhere, 2) is there
    assert len(made) == 2
    assert padded(images, 1).shape == (2, 6, 6, 3)
    assert padded(images, 0) is images


@pytest.mark.cuda
def test_data_stay_where_they_are_if_they_do_not_fit_with_their_margins(monkeypatch):
    data, device = load(DIGITS), torch.device("cuda")
    size = sum(s.images.nbytes + s.labels.nbytes for s in (data.train, data.val, data.test))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size, 2 * size))
    assert data.to(device).train.images.is_cuda
    assert not data.to(device, 1).train.images.is_cuda


@pytest.mark.cuda
def test_data_move_to_the_gpu_and_every_batch_is_the_same_there():
    data, augment = load(DIGITS), Augment(pad=2, flip=True)
    moved = data.to(torch.device("cuda"))
    images, labels = batches(data.train, augment, 0, 3, 64)(1)
    there, answers = batches(moved.train, augment, 0, 3, 64)(1)
    assert there.is_cuda
    assert torch.equal(there.cpu(), images)
    assert torch.equal(answers.cpu(), labels)


# --- augmentation ----------------------------------------------------------------------------------------------


def by_hand(image: torch.Tensor, margin: int, dy: int, dx: int, flip: bool) -> torch.Tensor:
    """One ``[H, W, C]`` image padded, cropped and mirrored by torchvision."""
    height, width = image.shape[:2]
    picture = TF.pad(image.permute(2, 0, 1), [margin] * 4)
    picture = TF.crop(picture, int(dy), int(dx), height, width)
    return (TF.hflip(picture) if flip else picture).permute(1, 2, 0)


@pytest.mark.parametrize(("margin", "flip"), [(0, False), (0, True), (1, False), (3, True)])
def test_augmented_images_equal_pad_crop_and_flip_one_by_one(margin, flip):
    images = torch.from_numpy(pictures(200))[:, :, :5]  # 8 x 5, so that rows and columns cannot be mixed up
    tables = Tables.draw(200, Augment(pad=margin, flip=flip), seed=3, epoch=1)
    found = augmented(padded(images, margin), tables.order, tables.dy, tables.dx, tables.flip, margin)
    shifts = zip(tables.order, tables.dy, tables.dx, tables.flip, strict=True)
    expected = torch.stack([by_hand(images[i], margin, dy, dx, bool(mirror)) for i, dy, dx, mirror in shifts])
    assert torch.equal(found, expected)


def test_batches_are_slices_of_the_epochs_order_augmented():
    data, augment = load(DIGITS).train, Augment(pad=2, flip=True)
    tables = Tables.draw(len(data), augment, seed=5, epoch=7)
    batch = batches(data, augment, 5, 7, 50)
    for n in (0, 3, 24):
        images, labels = batch(n)
        at = range(50 * n, 50 * n + 50)
        assert torch.equal(labels, data.labels[tables.order[list(at)]])
        for k, image in zip(at, images, strict=True):
            i = tables.order[k]
            assert torch.equal(image, by_hand(data.images[i], 2, tables.dy[k], tables.dx[k], bool(tables.flip[k])))


def test_without_padding_and_mirroring_an_epoch_shows_every_image_once_as_it_is():
    data = load(DIGITS).train
    batch = batches(data, Augment(), 0, 0, 2)
    seen = [batch(i) for i in range(len(data) // 2)]
    shown = Split(torch.cat([images for images, _ in seen]), torch.cat([labels for _, labels in seen]))
    assert samples(shown) == samples(data)


def test_batches_of_two_sets_in_turn_come_from_their_own_set():
    data = load(DIGITS)
    for split in (data.train, data.val, data.train):
        images, labels = batches(split, Augment(pad=1), 0, 0, 20)(0)
        tables = Tables.draw(len(split), Augment(pad=1), 0, 0)
        assert torch.equal(labels, split.labels[tables.order[:20]])
        assert torch.equal(images[0], by_hand(split.images[tables.order[0]], 1, tables.dy[0], tables.dx[0], False))


def equal(a: Tables, b: Tables) -> list[bool]:
    return [torch.equal(getattr(a, name), getattr(b, name)) for name in ("order", "dy", "dx", "flip")]


def test_tables_depend_on_seed_and_epoch_alone():
    augment = Augment(pad=4, flip=True)
    first = Tables.draw(500, augment, seed=2, epoch=9)
    torch.manual_seed(123)
    torch.rand(17)
    before = torch.get_rng_state()
    assert all(equal(first, Tables.draw(500, augment, seed=2, epoch=9)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((0, 0), (0, 1), id="epochs"),
        pytest.param((0, 0), (1, 0), id="seeds"),
        pytest.param((0, 1), (1, 0), id="swapped"),
        pytest.param((1, 11), (11, 1), id="same digits"),
    ],
)
def test_tables_differ_between_epochs_and_between_seeds(one, other):
    augment = Augment(pad=4, flip=True)
    assert not any(equal(Tables.draw(500, augment, *one), Tables.draw(500, augment, *other)))


def test_the_order_of_the_images_is_the_same_with_and_without_augmentation():
    with_it, without = Tables.draw(500, Augment(pad=4, flip=True), 1, 2), Tables.draw(500, Augment(), 1, 2)
    assert torch.equal(with_it.order, without.order)
    assert sorted(without.order.tolist()) == list(range(500))


def test_shifts_cover_the_whole_range_evenly_and_half_the_images_are_mirrored():
    tables = Tables.draw(7000, Augment(pad=3, flip=True), seed=0, epoch=0)
    for shifts in (tables.dy, tables.dx):
        counts = torch.bincount(shifts)
        assert len(counts) == 7
        assert counts.min() > 850  # of 1000 expected
        assert counts.max() < 1150
    assert tables.flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(tables.dy, tables.dx)


def test_nothing_is_shifted_or_mirrored_unless_asked_for():
    tables = Tables.draw(1000, Augment(), seed=0, epoch=0)
    assert not tables.dy.any()
    assert not tables.dx.any()
    assert not tables.flip.any()


@pytest.mark.parametrize(("n", "size", "updates"), [(100, 10, 10), (109, 10, 10), (10, 10, 1), (3, 10, 1)])
def test_an_epoch_is_as_many_whole_batches_as_there_are_and_at_least_one(n, size, updates):
    assert Train(epochs=1, batch_size=size).updates(n) == updates


# --- Parquet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "label"), ("img", "fine_label")])
def test_parquet_files_of_the_hugging_face_layout_are_read_pixel_by_pixel(tmp_path, image, label):
    images, labels = pictures(60), np.arange(60) % 4
    write_parquet(tmp_path / "set" / "train.parquet", images[:40], labels[:40], image, label)
    write_parquet(tmp_path / "set" / "test.parquet", images[40:], labels[40:], image, label)
    data = parquet(tmp_path)
    assert samples(data.train, data.val) == written(images[:40], labels[:40])
    assert samples(data.test) == written(images[40:], labels[40:])
    assert data.classes == 4


def test_shards_of_a_split_belong_together(tmp_path):
    images, labels = pictures(60), np.arange(60) % 3
    for shard in (0, 1):
        at = slice(shard * 20, shard * 20 + 20)
        write_parquet(tmp_path / "set" / "data" / f"train-0000{shard}-of-00002.parquet", images[at], labels[at])
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", images[40:], labels[40:])
    data = parquet(tmp_path)
    assert samples(data.train, data.val) == written(images[:40], labels[:40])
    assert samples(data.test) == written(images[40:], labels[40:])


def test_a_validation_file_is_the_test_split_where_there_is_no_test_file(tmp_path):
    images, labels = pictures(60), np.arange(60) % 3
    write_parquet(tmp_path / "set" / "train.parquet", images[:40], labels[:40])
    write_parquet(tmp_path / "set" / "validation.parquet", images[40:], labels[40:])
    assert samples(parquet(tmp_path).test) == written(images[40:], labels[40:])


def test_a_test_split_is_held_back_where_the_parquet_files_bring_none(tmp_path):
    images, labels = pictures(100), np.arange(100) % 3
    write_parquet(tmp_path / "set" / "train.parquet", images, labels)
    data = parquet(tmp_path, test=0.3)
    assert len(data.test) == 30
    assert samples(data.train, data.val, data.test) == written(images, labels)


@pytest.mark.parametrize("name", ["mine.parquet", "valley.parquet", "test_shots.parquet"])
def test_a_single_parquet_file_may_be_named(tmp_path, name):
    images, labels = pictures(40), np.arange(40) % 3
    write_parquet(tmp_path / name, images, labels)
    data = parquet(tmp_path, name)
    assert samples(data.train, data.val, data.test) == written(images, labels)


def test_a_file_in_a_folder_called_test_is_what_it_is_named_for(tmp_path):
    write_parquet(tmp_path / "test" / "all.parquet", pictures(40), np.arange(40) % 3)
    data = parquet(tmp_path, "test/all.parquet")
    assert len(data.train) + len(data.val) + len(data.test) == 40


@pytest.mark.parametrize("labels", [[0, 1, None], [0, 1, 10**12], [0, 1, -1], [0, 1, 0.5]], ids=str)
def test_labels_that_number_no_classes_are_refused(tmp_path, labels):
    column = pd.array(labels, dtype="Float64" if 0.5 in labels else "Int64")
    file = write_parquet(tmp_path / "set" / "train.parquet", pictures(3), column)
    with complaint(file, "label"):
        parquet(tmp_path)


def test_a_test_split_of_another_size_is_refused_before_anything_is_trained(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(40), np.arange(40) % 3)
    write_parquet(tmp_path / "set" / "test.parquet", pictures(40, 16), np.arange(40) % 3)
    with complaint("8x8 and 16x16 pixels", "data.size"):
        parquet(tmp_path)
    assert parquet(tmp_path, size=8).size == (8, 8)


OWN_IMAGES = """\
import numpy as np

images = np.zeros((40, 8, 8, 3), np.uint8)


def signs():
    return images, np.resize([-1, 1], 40)


def three():
    return [(images, np.arange(40) % 4)] * 3


def telephone():
    return images, np.arange(40) + 2_025_550_100


def empty():
    return (images, np.arange(40) % 4), (images[:0], np.arange(0))


def one_by_one():
    yield images
    yield np.arange(40) % 4
    yield images


def several():
    return list(images), [0] * 39


def nothing():
    return None


def named():
    return {"train": (images, np.arange(40) % 4)}


class Loader:
    def __len__(self):
        return 2

    def __getitem__(self, n):
        return [(images[:20], np.arange(20)), (images[20:], np.arange(20))][n]


def looped():
    return Loader()


def away():
    raise RuntimeError("the database is away")


def unsigned():
    images.setflags(write=False)
    return images, (np.arange(40) % 4).astype(np.uint16)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "from 0") for name in ("signs", "empty", "telephone", "several")),
        ("signs", "torch.int64 [40] from -1 to 1"),
        ("looped", "but a Loader"),
        ("away", "failed: RuntimeError: the database is away ("),
        ("three", "3 pairs"),
        *((name, "wanted: images uint8 [N, H, W, 3]") for name in ("one_by_one", "nothing", "named")),
    ],
)
def test_what_an_own_function_gives_is_checked(tmp_path, monkeypatch, name, words):
    (tmp_path / "own_images.py").write_text(OWN_IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    with complaint(f"own_images.{name}()", words):
        load(Data(source="custom", function=f"own_images.{name}"))


def test_arrays_that_nobody_may_write_to_and_labels_of_any_whole_type_are_read(tmp_path, monkeypatch):
    (tmp_path / "own_unsigned.py").write_text(OWN_IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    data = load(Data(source="custom", function="own_unsigned.unsigned"))  # a warning would be an error here
    assert data.classes == 4
    assert len(data.train) + len(data.val) + len(data.test) == 40


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = pictures(40)[..., 0]
    write_parquet(tmp_path / "set" / "train.parquet", grey, np.arange(40) % 3)
    data = parquet(tmp_path)
    expected = written(np.repeat(grey[..., None], 3, axis=3), np.arange(40) % 3)
    assert samples(data.train, data.val, data.test) == expected


@pytest.mark.parametrize("place", ["cifar10", "cifar10/plain_text"])
def test_cifar10_is_found_offline_as_parquet_files_in_its_folder(tmp_path, place):
    images, labels = pictures(60, 32), np.arange(60) % 10
    write_parquet(tmp_path / place / "train.parquet", images[:40], labels[:40])
    write_parquet(tmp_path / place / "test.parquet", images[40:], labels[40:])
    data = load(Data(source="cifar10"), str(tmp_path))
    assert samples(data.train, data.val) == written(images[:40], labels[:40])
    assert samples(data.test) == written(images[40:], labels[40:])


def test_a_missing_parquet_folder_is_named(tmp_path):
    with complaint(tmp_path / "nowhere", "train.parquet"):
        parquet(tmp_path, "nowhere")


def test_a_folder_with_a_test_file_alone_lacks_its_training_file(tmp_path):
    write_parquet(tmp_path / "set" / "test.parquet", pictures(20), [0, 1] * 10)
    with complaint(tmp_path / "set", "no train*.parquet"):
        parquet(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: whole[:-100], id="cut off"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"hello" * 99, id="text"),
    ],
)
def test_a_damaged_parquet_file_is_named(tmp_path, damage):
    file = write_parquet(tmp_path / "set" / "train.parquet", pictures(40), [0, 1] * 20)
    file.write_bytes(damage(file.read_bytes()))
    with complaint(file, "cannot be read", "fetch it again"):
        parquet(tmp_path)


@pytest.mark.parametrize(
    "blob", [pytest.param(b"", id="empty"), pytest.param(b"no image", id="text"), pytest.param(None, id="cut off")]
)
def test_a_damaged_image_in_a_parquet_file_is_named_with_its_row(tmp_path, blob):
    images = [png(i) for i in pictures(40)]
    images[23] = images[23][:90] if blob is None else blob
    file = write_parquet(tmp_path / "set" / "train.parquet", images, [0, 1] * 20)
    with complaint(file, "row 23", "cannot be decoded"):
        parquet(tmp_path)


def test_parquet_images_of_different_sizes_need_a_size(tmp_path):
    images = [*pictures(20), *pictures(20, size=9)]
    file = write_parquet(tmp_path / "set" / "train.parquet", images, [0, 1] * 20)
    with complaint(file, "differ in size", "set data.size"):
        parquet(tmp_path)
    assert parquet(tmp_path, size=8).size == (8, 8)


@pytest.mark.parametrize(("image", "label"), [("img", "answer"), ("scan", "label")])
def test_parquet_columns_that_are_missing_are_named_beside_those_that_are_there(tmp_path, image, label):
    file = write_parquet(tmp_path / "set" / "train.parquet", pictures(40), [0, 1] * 20, image, label)
    with complaint(file, f"it has {image}, {label}"):
        parquet(tmp_path)


# --- folders of images -----------------------------------------------------------------------------------------


def test_class_folders_are_read_and_labelled_in_the_order_of_their_names(tmp_path):
    images = write_classes(tmp_path / "set", ["ant", "bee", "cat"])
    data = folder(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, np.repeat([0, 1, 2], 10))
    assert data.classes == 3
    assert len(data.test) == 6


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_a_folder_beside_train_is_the_test_split(tmp_path, name):
    images = write_classes(tmp_path / "set" / "train", ["ant", "bee"], seed=1)
    held = write_classes(tmp_path / "set" / name, ["ant", "bee"], each=3, seed=2)
    data = folder(tmp_path)
    assert samples(data.train, data.val) == written(images, np.repeat([0, 1], 10))
    assert samples(data.test) == written(held, np.repeat([0, 1], 3))


def test_what_programs_keep_for_themselves_beside_images_is_left_out(tmp_path):
    images = write_classes(tmp_path / "set", ["ant", "bee"], seed=1)
    for hidden in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        write_classes(tmp_path / "set" / "ant" / hidden, ["x"], seed=2)
    data = folder(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, np.repeat([0, 1], 10))
    write_classes(tmp_path / "other", ["ant", "bee", ".cache"])
    with complaint("without an image", ".cache"):
        folder(tmp_path, "other")


def test_what_is_hidden_beside_parquet_files_is_left_out(tmp_path):
    images, labels = pictures(40), np.arange(40) % 3
    write_parquet(tmp_path / "set" / "train.parquet", images, labels)
    write_parquet(tmp_path / "set" / ".cache" / "train.parquet", images, labels)
    data = parquet(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, labels)


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("training", "testing"), ("train", "dev"), ("TRAIN", "val", "test")]
)
def test_splits_of_any_case_and_name_are_those_that_the_data_bring(tmp_path, names):
    brought = {
        name: written(write_classes(tmp_path / "set" / name, ["ant", "bee"], each=20, seed=n), [0] * 20 + [1] * 20)
        for n, name in enumerate(names)
    }
    data = folder(tmp_path)
    assert samples(data.test) == brought[names[-1]]
    if len(names) > 2:  # a validation split of their own
        assert (samples(data.train), samples(data.val)) == (brought["TRAIN"], brought["val"])
    else:
        assert samples(data.train, data.val) == brought[names[0]]


def test_splits_without_one_to_train_on_are_refused(tmp_path):
    for name in ("test", "val"):
        write_classes(tmp_path / "set" / name, ["ant", "bee"])
    with complaint("are splits, not classes", "name one of them train"):
        folder(tmp_path)


def test_a_class_called_train_is_not_taken_for_a_split(tmp_path):
    write_classes(tmp_path / "set", ["bus", "car"])
    write_classes(tmp_path / "set" / "train", ["steam", "diesel"])
    with complaint(tmp_path / "set", "train stands beside bus, car", "a split beside classes"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("my_train", "my_test"),
        ("train-0", "eval-0"),
        ("trainset", "testset"),
        ("train/0", "testing/0"),
        ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"),
    ],
    ids=lambda names: names[0],
)
def test_parquet_files_are_of_the_split_that_their_names_say(tmp_path, names):
    brought = []
    for n, name in enumerate(names):
        images, labels = pictures(40, seed=n), np.arange(40) % 3
        write_parquet(tmp_path / "set" / f"{name}.parquet", images, labels)
        brought.append(written(images, labels))
    data = parquet(tmp_path)
    assert samples(data.test) == brought[-1]
    if len(names) > 2:
        assert (samples(data.train), samples(data.val)) == (brought[0], brought[1])
    else:
        assert samples(data.train, data.val) == brought[0]


def test_training_files_in_several_folders_are_not_mixed(tmp_path):
    for name in ("full", "mini"):
        write_parquet(tmp_path / "set" / name / "train-0.parquet", pictures(40), np.arange(40) % 3)
    with complaint(tmp_path / "set", "several folders (full, mini)", "data.path"):
        parquet(tmp_path)
    assert len(parquet(tmp_path, "set/mini").test) == 8


def test_an_empty_shard_is_no_damage(tmp_path):
    images, labels = pictures(40), np.arange(40) % 3
    write_parquet(tmp_path / "set" / "train-0.parquet", images, labels)
    write_parquet(tmp_path / "set" / "train-1.parquet", images[:0], [])
    data = parquet(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, labels)
    empty = write_parquet(tmp_path / "none" / "train.parquet", images[:0], [])
    with complaint(empty, "no row"):
        parquet(tmp_path, "none")


def test_a_label_that_numbers_no_class_is_shown_with_its_row(tmp_path):
    file = write_parquet(tmp_path / "set" / "train.parquet", pictures(40), ["cat", *map(str, range(39))])
    with complaint(file, "not 'cat' as in row 0"):
        parquet(tmp_path)


def test_there_are_as_many_classes_as_the_data_have_whatever_the_limit_is(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(60), np.arange(60))
    assert parquet(tmp_path, limit=20).classes == parquet(tmp_path, split_seed=1).classes == 60


def test_shifts_that_leave_nothing_of_an_image_are_refused():
    with pytest.raises(SpecError, match="shifts of up to 8 pixels take images of 8 out of sight") as info:
        load(Data(source="digits", augment=Augment(pad=8)))
    assert info.value.key == ("data", "augment", "pad")


def test_animations_and_palettes_are_read_without_a_word(tmp_path):
    for n, image in enumerate(pictures(40)):
        file = tmp_path / "set" / ("ant", "bee")[n % 2] / f"{n}.{('gif', 'jfif', 'png')[n % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            Image.fromarray(image).quantize(8).save(file, transparency=bytes(range(8)))  # of which Pillow warns
        else:
            Image.fromarray(image).save(file, {".gif": "GIF", ".jfif": "JPEG"}[file.suffix])
    data = folder(tmp_path)  # a warning would be an error here
    assert len(data.train) + len(data.val) + len(data.test) == 40


def test_parquet_columns_that_hold_no_files_are_named(tmp_path):
    file = tmp_path / "set" / "train.parquet"
    file.parent.mkdir()
    pd.DataFrame({"image": [[1, 2], [3, 4]], "label": [0, 1]}).to_parquet(file)
    with complaint(file, "'image' must hold the bytes of image files", "ndarray in row 0"):
        parquet(tmp_path)


def test_a_train_folder_alone_is_split(tmp_path):
    images = write_classes(tmp_path / "set" / "train", ["ant", "bee"])
    data = folder(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, np.repeat([0, 1], 10))


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["ant", "cat"], "(missing: bee; extra: cat)"),
        (["ant"], "(missing: bee; extra: none)"),
        (["ant", "bee", *"abcdefg"], "(missing: none; extra: a, b, c, d, e, ...)"),
    ],
)
def test_other_classes_in_test_than_in_train_are_named(tmp_path, classes, words):
    write_classes(tmp_path / "set" / "train", ["ant", "bee"])
    write_classes(tmp_path / "set" / "test", classes, each=1)
    with complaint(tmp_path / "set" / "test", "other classes", words):
        folder(tmp_path)


@pytest.mark.parametrize("root", ["set", "set/train"])
def test_class_folders_without_an_image_are_named(tmp_path, root):
    write_classes(tmp_path / root, ["ant", "bee"])
    for name in ("blank", "void"):
        (tmp_path / root / name).mkdir()
        (tmp_path / root / name / "photo.heic").touch()
    with complaint(tmp_path / root, "without an image: blank, void;", ".png", "remove them"):
        folder(tmp_path)


@pytest.mark.parametrize("source", ["folder", "parquet", "custom"])
def test_data_that_are_too_few_are_called_by_their_place(tmp_path, monkeypatch, source):
    images = write_classes(tmp_path / "set", ["ant", "bee"], each=1)
    write_parquet(tmp_path / "set" / "train.parquet", images, [0, 1])
    (tmp_path / "own_pair.py").write_text(
        "import numpy as np\n\ndef pair():\n    return np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {"function": "own_pair.pair"} if source == "custom" else {"path": "set"}
    with complaint("own_pair.pair" if source == "custom" else tmp_path / "set", "too few to split"):
        load(Data(source=source, size=8, **given), str(tmp_path))


def test_images_of_a_single_class_are_refused(tmp_path):
    write_classes(tmp_path / "one" / "train", ["ant"])
    with complaint(tmp_path / "one", "all 10 images are of one class", "two at least"):
        folder(tmp_path, "one")
    write_parquet(tmp_path / "set" / "train.parquet", pictures(20), [3] * 20)
    write_parquet(tmp_path / "set" / "test.parquet", pictures(20), [0, 3] * 10)
    with complaint(tmp_path / "set", "all 20 images are of one class"):
        parquet(tmp_path)


def test_a_corrupt_image_in_a_folder_is_named(tmp_path):
    write_classes(tmp_path / "set", ["ant", "bee"])
    file = tmp_path / "set" / "bee" / "13.png"
    file.write_bytes(file.read_bytes()[:90])
    with complaint(file, "cannot be decoded"):
        folder(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda folder: None, id="missing"),
        pytest.param(lambda folder: folder.mkdir(), id="empty"),
        pytest.param(lambda folder: (folder / "ant").mkdir(parents=True), id="a class without images"),
    ],
)
def test_a_folder_without_images_is_named_with_what_belongs_there(tmp_path, make):
    make(tmp_path / "set")
    with complaint(tmp_path / "set", "cats/1.jpg"):
        folder(tmp_path)


# --- sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 12])
def test_size_resizes_as_torchvision_does(tmp_path, size):
    images = pictures(40)
    labels = np.arange(40)  # so that every image is known again
    write_parquet(tmp_path / "set" / "train.parquet", images, labels)
    data = parquet(tmp_path, size=size)
    for split in (data.train, data.val, data.test):
        assert split.images.shape[1:] == (size, size, 3)
        for image, label in zip(split.images, split.labels, strict=True):
            expected = TF.resize(Image.fromarray(images[int(label)]), [size, size])
            assert np.array_equal(image, np.asarray(expected))
    whole, small = load(DIGITS).train.images, load(Data(source="digits", size=size)).train.images
    expected = TF.resize(whole.permute(0, 3, 1, 2).float(), [size, size], antialias=True).permute(0, 2, 3, 1)
    assert (small.float() - expected).abs().max() <= 0.5 + 1e-3


def test_images_that_have_the_size_already_are_left_alone():
    assert load(Data(source="digits", size=8)).digest == load(DIGITS).digest


def test_images_of_sixteen_bits_keep_their_shades_and_those_of_unknown_range_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for n in range(20):
        file = tmp_path / "set" / ("ant", "bee")[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp).save(file)
    (image, *_) = folder(tmp_path).train.images
    assert np.abs(image[..., 0].numpy().astype(int) - ramp // 257).max() == 0
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(file.with_suffix(".tif"))
    load.cache_clear()
    with complaint(file.with_suffix(".tif"), "whose range nobody knows"):
        folder(tmp_path)


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255  # bright on the right
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise: bright at the bottom
    for n in range(20):
        file = tmp_path / "set" / ("ant", "bee")[n % 2] / f"{n}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=95, exif=turned)
    (image, *_) = folder(tmp_path, size=16).train.images.float()
    assert image[12:].mean() > 250
    assert image[:4].mean() < 5


@pytest.mark.parametrize("source", ["folder", "parquet", "custom"])
def test_images_are_cut_to_their_middle_square(tmp_path, monkeypatch, source):
    wide = np.full((40, 16, 48, 3), (255, 0, 0), np.uint8)  # red at both ends
    labels = np.arange(40) % 2
    wide[:, :, 16:32] = np.array([(0, 0, 255), (0, 255, 0)])[labels][:, None, None]
    if source == "custom":
        np.save(tmp_path / "wide.npy", wide)
        saved = str(tmp_path / "wide.npy")
        code = f"import numpy as np\n\n\ndef wide():\n    return np.load({saved!r}), np.arange(40) % 2\n"
        (tmp_path / "own_wide.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        data = load(Data(source="custom", function="own_wide.wide", size=16))
    else:
        turned = [image if n % 4 > 1 else image.transpose(1, 0, 2) for n, image in enumerate(wide)]
        write_parquet(tmp_path / "parquet" / "train.parquet", turned, labels)
        for n, (image, label) in enumerate(zip(turned, labels, strict=True)):
            file = tmp_path / "folder" / ("ant", "bee")[label] / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
        data = load(Data(source=source, path=source, size=16), str(tmp_path))
    for split in (data.train, data.val, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert image.unique(dim=0).unique(dim=1).flatten().tolist() == ([0, 255, 0] if label else [0, 0, 255])


# --- data sets of torchvision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "fashion_mnist", "mnist", "svhn"])
def test_a_missing_data_set_without_a_network_says_where_to_put_it(tmp_path, monkeypatch, source):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.delenv("no_proxy", raising=False)
    with complaint(tmp_path / source, "cannot be downloaded", "--data-dir"):
        load(Data(source=source), str(tmp_path))


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_files_of_torchvision_are_found_offline(tmp_path, source, name):
    images, labels = pictures(60, 28)[..., 0], np.arange(60) % 10
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    for split, at in (("train", slice(40)), ("t10k", slice(40, 60))):
        n = len(labels[at])
        head = struct.pack(">4i", 0x803, n, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + images[at].tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, n) + labels[at].astype(np.uint8).tobytes()
        )
    data = load(Data(source=source), str(tmp_path))
    grey = np.repeat(images[..., None], 3, axis=3)
    assert samples(data.train, data.val) == written(grey[:40], labels[:40])
    assert samples(data.test) == written(grey[40:], labels[40:])


def test_a_folder_that_is_called_train_keeps_its_test_images_apart(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for name, n in (("train", 40), ("test", 20)):
        write_parquet(folder / f"{name}.parquet", pictures(n, 8), np.arange(n) % 4)
    data = load(Data(source="parquet", path="train"), str(tmp_path))
    assert len(data.train) + len(data.val) == 40
    assert len(data.test) == 20


@pytest.mark.parametrize("labels", [["a", "b"], [0, -1], [0, None], [0.5, 1]])
def test_labels_that_are_no_class_numbers_are_named(tmp_path, labels):
    write_parquet(tmp_path / "train.parquet", pictures(2, 8), labels)
    with pytest.raises(DataError, match="must be whole numbers from 0"):
        load(Data(source="parquet", path="."), str(tmp_path))
