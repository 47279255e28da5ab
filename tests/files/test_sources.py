"""Where images come from: what is read pixel by pixel, and what is refused with the file and the remedy."""

import contextlib
import json
import os
import socket
import struct
import threading
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.transforms import functional as TF

from runner.files import sources
from runner.files.sources import DataError
from runner.files.sweep_file import Data
from runner.training.data import load

from .helpers import complaint, folder, parquet, pictures, png, samples, warned, write_classes, write_parquet, written

DIGITS = Data(source="digits")


# --- Parquet -----------------------------------------------------------------------------------------------------


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


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = pictures(40)[..., 0]
    write_parquet(tmp_path / "set" / "train.parquet", grey, np.arange(40) % 3)
    data = parquet(tmp_path)
    expected = written(np.repeat(grey[..., None], 3, axis=3), np.arange(40) % 3)
    assert samples(data.train, data.val, data.test) == expected


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


def test_what_is_hidden_beside_parquet_files_is_left_out(tmp_path):
    images, labels = pictures(40), np.arange(40) % 3
    write_parquet(tmp_path / "set" / "train.parquet", images, labels)
    write_parquet(tmp_path / "set" / ".cache" / "train.parquet", images, labels)
    data = parquet(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, labels)


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


def test_parquet_columns_that_hold_no_files_are_named(tmp_path):
    file = tmp_path / "set" / "train.parquet"
    file.parent.mkdir()
    pd.DataFrame({"image": [[1, 2], [3, 4]], "label": [0, 1]}).to_parquet(file)
    with complaint(file, "'image' must hold the bytes of image files", "ndarray in row 0"):
        parquet(tmp_path)


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


# --- folders of images -------------------------------------------------------------------------------------------


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


# --- what is left out, and said ----------------------------------------------------------------------------------


def test_a_link_back_to_a_folder_around_it_is_not_followed_and_every_image_is_read_once(tmp_path):
    images = write_classes(tmp_path / "set", ["ant", "bee"])
    for link, target in (("ant/loop", "."), ("ant/again", "."), ("bee/up", ".."), ("all", "."), ("bee/x", "../ant")):
        (tmp_path / "set" / link).symlink_to(target)
    data = folder(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, np.repeat([0, 1], 10))
    assert "left out: 5 links to a folder that is read already" in str(data)
    write_classes(tmp_path / "split" / "train", ["ant", "bee"])
    (tmp_path / "split" / "all").symlink_to(".")
    assert "2 classes; left out: 1 link to a folder that is read already" in str(folder(tmp_path, "split"))


def test_links_to_folders_and_to_images_elsewhere_are_followed(tmp_path):
    images = write_classes(tmp_path / "elsewhere", ["ant", "bee"])
    (tmp_path / "set" / "bee").mkdir(parents=True)
    (tmp_path / "set" / "ant").symlink_to(tmp_path / "elsewhere" / "ant")
    for file in (tmp_path / "elsewhere" / "bee").iterdir():
        (tmp_path / "set" / "bee" / file.name).symlink_to(file)
    data = folder(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, np.repeat([0, 1], 10))
    assert "left out" not in str(data)


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_pipes_sockets_devices_and_broken_links_are_never_opened_but_counted(tmp_path, source):
    if source == "folder":
        write_classes(tmp_path / "set", ["ant", "bee"])
        at, ending = tmp_path / "set" / "ant", "png"
    else:
        write_parquet(tmp_path / "set" / "train.parquet", pictures(20), [0, 1] * 10)
        at, ending = tmp_path / "set", "parquet"
    os.mkfifo(at / f"pipe.{ending}")
    (at / f"train-device.{ending}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(at):
        listening.bind(f"socket.{ending}")
    (at / f"train-broken.{ending}").symlink_to("nowhere")
    (at / f"train-itself.{ending}").symlink_to(f"train-itself.{ending}")
    found = []
    reading = threading.Thread(
        target=lambda: found.append(load(Data(source=source, path="set", size=8), str(tmp_path)))
    )
    reading.daemon = True
    reading.start()
    reading.join(30)
    assert "left out: 3 special files (pipe, socket or device), 2 broken links" in str(found[0])
    assert len(found[0].train) + len(found[0].val) + len(found[0].test) == 20


def test_files_of_other_endings_are_counted_and_pictures_among_them_warned_of(tmp_path):
    write_classes(tmp_path / "set", ["ant", "bee"])
    for n in range(30):
        (tmp_path / "set" / ("ant", "bee")[n % 2] / f"{n}.{('HEIC', 'jxl', 'txt')[n % 3]}").touch()
    (tmp_path / "set" / "ant" / "photo").touch()
    (tmp_path / "set" / "ant" / ".DS_Store").touch()
    (tmp_path / "set" / "ant" / "moves.\x1b[1A").touch()
    (tmp_path / "set" / "alone.png").write_bytes(png(pictures(1)[0]))
    data = folder(tmp_path)
    for words in ("10 .heic", "10 .jxl", "10 .txt", "1 file without an ending", "1 image outside the class folders"):
        assert words in str(data)
    assert "DS_Store" not in str(data)
    assert "1 .\\x1b[1a" in str(data)  # and no cursor
    assert warned(data, "10 .heic, 10 .jxl", "convert them to JPEG or PNG")
    assert not warned(data, ".txt")


@pytest.mark.parametrize("ending", ["jp2", "tga", "ico", "qoi", "pcx"])
def test_whatever_pillow_decodes_is_read(tmp_path, ending):
    for n, image in enumerate(pictures(20, 16)):
        file = tmp_path / "set" / ("ant", "bee")[n % 2] / f"{n}.{ending.upper() if n % 3 else ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, Image.registered_extensions()[f".{ending}"])
    data = folder(tmp_path, size=16)
    assert len(data.train) + len(data.val) + len(data.test) == 20


def test_a_second_folder_of_the_same_split_is_said(tmp_path):
    for name in ("train", "val", "validation"):
        write_classes(tmp_path / "set" / name, ["ant", "bee"], seed=len(name))
    assert "left out: 1 folder called validation" in str(folder(tmp_path))


@pytest.mark.parametrize("limit", [None, 20])
def test_all_that_is_damaged_is_named_at_once_unless_a_limit_leaves_it_out(tmp_path, limit):
    write_classes(tmp_path / "set" / "train", ["ant", "bee"], each=50, seed=1)
    write_classes(tmp_path / "set" / "test", ["ant", "bee"], seed=2)
    whole = folder(tmp_path, limit=20)
    used = set(samples(whole.train, whole.val))
    files = sorted((tmp_path / "set" / "train").rglob("*.png"))
    unused = [
        file for file in files if (np.asarray(Image.open(file)).tobytes(), file.parent.name == "bee") not in used
    ]
    for file in unused[:7]:
        file.write_bytes(file.read_bytes()[:90])
    load.cache_clear()
    if limit:
        assert folder(tmp_path, limit=limit).digest == whole.digest
    else:
        names = (f" {file.name}" for file in unused[:7])
        with complaint(tmp_path / "set", "7 files or images cannot be read (image file is truncated)", *names):
            folder(tmp_path)


def test_every_damaged_parquet_file_is_named_whatever_pyarrow_makes_of_it(tmp_path):
    chance, damaged = np.random.default_rng(0), set()
    for shard in range(30):
        file = write_parquet(tmp_path / "set" / f"train-{shard}.parquet", pictures(8, seed=shard), np.arange(8) % 2)
        whole = bytearray(file.read_bytes())
        if shard % 4 == 0:  # in the footer, where the schema and the places of the columns are
            for at in chance.integers(len(whole) - 900, len(whole) - 8, 40):
                whole[at] ^= 1 << int(chance.integers(8))
            file.write_bytes(whole)
            damaged.add(file.name)
    with complaint(tmp_path / "set", "cannot be read", *[f"{name} (" for name in sorted(damaged)[:5]]):
        parquet(tmp_path)


@pytest.mark.parametrize("one", ["NFC", "NFD"])
def test_class_folders_have_one_name_in_whatever_form_of_unicode_it_is(tmp_path, one):
    other = {"NFC": "NFD", "NFD": "NFC"}[one]
    images = write_classes(tmp_path / "set" / "train", [normalize(one, "Café"), "ant"], seed=1)
    held = write_classes(tmp_path / "set" / "test", [normalize(other, "Café"), "ant"], seed=2)
    data = folder(tmp_path)
    assert samples(data.train, data.val) == written(images, np.repeat([0, 1], 10))
    assert samples(data.test) == written(held, np.repeat([0, 1], 10))
    several = ["ant", normalize("NFC", "Café"), normalize("NFD", "Café")]
    images = write_classes(tmp_path / "one" / "train", several)
    data = folder(tmp_path, "one")
    assert data.classes == 2
    label = {
        name: n for n, name in reversed([*enumerate(dict.fromkeys(normalize("NFC", s) for s in sorted(several)))])
    }
    assert samples(data.train, data.val, data.test) == written(
        images, [label[normalize("NFC", name)] for name in several for _ in range(10)]
    )


@pytest.mark.parametrize("kind", ["test", "validation"])
@pytest.mark.parametrize("none", [-1, None])
def test_images_without_a_label_are_left_out_of_a_test_or_a_validation_split(tmp_path, kind, none):
    images, labels = pictures(60), np.arange(60) % 3
    write_parquet(tmp_path / "set" / "train.parquet", images[:40], labels[:40])
    column = pd.array([none, *labels[41:59], none], dtype="Int64")
    write_parquet(tmp_path / "set" / f"{kind}.parquet", images[40:], column)
    data = parquet(tmp_path)
    assert samples(data.test) == written(images[41:59], labels[41:59])
    assert f"left out: 2 images without a label in the {kind} split" in str(data)
    assert warned(data, f"2 images without a label in the {kind} split left out")


@pytest.mark.parametrize("source", ["parquet", "folder", "custom"])
def test_a_test_split_without_any_label_counts_as_none(tmp_path, monkeypatch, source):
    images = write_classes(tmp_path / "set" / "train", ["ant", "bee"], each=20)
    others = pictures(10, seed=9)
    if source == "folder":
        (tmp_path / "set" / "test").mkdir()
        for n, image in enumerate(others):
            (tmp_path / "set" / "test" / f"{n}.png").write_bytes(png(image))
    if source == "parquet":
        write_parquet(tmp_path / "set" / "train.parquet", images, [0] * 20 + [1] * 20)
        write_parquet(tmp_path / "set" / "test.parquet", others, [-1] * 10)
    given = {"path": "set"}
    if source == "custom":
        np.save(tmp_path / "train.npy", images)
        code = f"images = np.load({str(tmp_path / 'train.npy')!r})\n"
        pairs = "(images, np.repeat([0, 1], 20)), (images[:10], np.full(10, -1))"
        code += f"\n\ndef pairs():\n    return {pairs}\n"
        (tmp_path / "own_pairs.py").write_text(f"import numpy as np\n\n{code}")
        monkeypatch.syspath_prepend(tmp_path)
        given = {"function": "own_pairs.pairs"}
    data = load(Data(source=source, size=8, **given), str(tmp_path))
    assert samples(data.train, data.val, data.test) == written(images, [0] * 20 + [1] * 20)
    assert "left out: 10 images without a label in the test split" in str(data)


def test_an_unlabelled_image_for_training_is_refused_and_other_labels_that_are_none_everywhere(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(40), np.arange(40) % 3)
    file = write_parquet(tmp_path / "set" / "test.parquet", pictures(3), [0, 1, -2])
    with complaint(file, "not -2 as in row 2"):
        parquet(tmp_path)


def test_row_groups_of_a_parquet_file_are_read_in_parts_and_only_where_images_are_used(tmp_path, monkeypatch):
    images, labels = pictures(90), np.arange(90) % 3
    column = [{"bytes": png(image), "path": None} for image in images]
    file = tmp_path / "set" / "train.parquet"
    file.parent.mkdir()
    pd.DataFrame({"image": column, "label": labels}).to_parquet(file, row_group_size=40)
    monkeypatch.setattr(sources, "AT_ONCE", 1000)  # bytes: a few rows
    data = parquet(tmp_path)
    assert samples(data.train, data.val, data.test) == written(images, labels)
    few = parquet(tmp_path, limit=20)
    assert set(samples(few.train, few.val)) <= set(samples(data.train, data.val))
    assert samples(few.test) == samples(data.test)


def test_classes_are_called_as_hugging_face_calls_them(tmp_path):
    file = write_parquet(
        tmp_path / "set" / "train.parquet", [*np.zeros((20, 8, 8, 3), np.uint8), *pictures(20)], [1] * 20 + [0] * 20
    )
    table = pq.read_table(file)
    names = {"info": {"features": {"label": {"names": ["bee", "ant"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), file)
    assert warned(parquet(tmp_path), "1 of 2 classes (ant)", "a single colour")


# --- one's own function ------------------------------------------------------------------------------------------


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


def mirrored():
    pixels = np.arange(40 * 8 * 8 * 3, dtype=np.uint8).reshape(40, 8, 8, 3)
    return pixels[:, :, ::-1, ::-1], (np.arange(40) % 4)[::-1]


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


def test_arrays_that_are_views_of_others_turned_round_are_read(tmp_path, monkeypatch):
    (tmp_path / "own_mirrored.py").write_text(OWN_IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    data = load(Data(source="custom", function="own_mirrored.mirrored"))
    pixels = np.arange(40 * 8 * 8 * 3, dtype=np.uint8).reshape(40, 8, 8, 3)[:, :, ::-1, ::-1]
    found = np.concatenate([split.images.numpy() for split in (data.train, data.val, data.test)])
    assert sorted(map(bytes, found)) == sorted(map(bytes, np.ascontiguousarray(pixels)))


def test_arrays_that_nobody_may_write_to_and_labels_of_any_whole_type_are_read(tmp_path, monkeypatch):
    (tmp_path / "own_unsigned.py").write_text(OWN_IMAGES)
    monkeypatch.syspath_prepend(tmp_path)
    data = load(Data(source="custom", function="own_unsigned.unsigned"))  # a warning would be an error here
    assert data.classes == 4
    assert len(data.train) + len(data.val) + len(data.test) == 40


# --- sizes -------------------------------------------------------------------------------------------------------


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


# --- data sets of torchvision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cifar10", "cifar10/plain_text"])
def test_cifar10_is_found_offline_as_parquet_files_in_its_folder(tmp_path, place):
    images, labels = pictures(60, 32), np.arange(60) % 10
    write_parquet(tmp_path / place / "train.parquet", images[:40], labels[:40])
    write_parquet(tmp_path / place / "test.parquet", images[40:], labels[40:])
    data = load(Data(source="cifar10"), str(tmp_path))
    assert samples(data.train, data.val) == written(images[:40], labels[:40])
    assert samples(data.test) == written(images[40:], labels[40:])


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
