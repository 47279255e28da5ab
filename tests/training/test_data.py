"""Splits, batches and augmentation tables, against torchvision's transforms and images written by hand."""

import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms import functional as TF

from runner.files.document import SpecError
from runner.files.sweep_file import Augment, Data, Train
from runner.training import data as datasets
from runner.training.data import Split, Tables, augmented, batches, load, normalised, padded

from ..files.helpers import (
    complaint,
    folder,
    parquet,
    pictures,
    samples,
    warned,
    write_classes,
    write_parquet,
    written,
)

DIGITS = Data(source="digits")


# --- splits ------------------------------------------------------------------------------------------------------


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


def test_a_test_split_of_another_size_is_refused_before_anything_is_trained(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(40), np.arange(40) % 3)
    write_parquet(tmp_path / "set" / "test.parquet", pictures(40, 16), np.arange(40) % 3)
    with complaint("8x8 and 16x16 pixels", "data.size"):
        parquet(tmp_path)
    assert parquet(tmp_path, size=8).size == (8, 8)


def test_there_are_as_many_classes_as_the_data_have_whatever_the_limit_is(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", pictures(60), np.arange(60))
    assert parquet(tmp_path, limit=20).classes == parquet(tmp_path, split_seed=1).classes == 60


def test_shifts_that_leave_nothing_of_an_image_are_refused():
    with pytest.raises(SpecError, match="shifts of up to 8 pixels take images of 8 out of sight") as info:
        load(Data(source="digits", augment=Augment(pad=8)))
    assert info.value.key == ("data", "augment", "pad")


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


def test_data_that_another_process_is_given_are_the_same():
    read = load(DIGITS)
    pickled = pickle.dumps(read.to_arrays())  # to a stranger, by value
    assert len(pickled) > read.train.images.nbytes
    datasets.preload(DIGITS, "elsewhere", pickle.loads(pickled))
    given = load(DIGITS, "elsewhere")
    assert (given.digest, given.classes, str(given)) == (read.digest, read.classes, str(read))
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(given, name).images, getattr(read, name).images)
        assert torch.equal(getattr(given, name).labels, getattr(read, name).labels)


def test_data_stay_where_they_are_on_the_cpu():
    data = load(DIGITS)
    moved = data.to(torch.device("cpu"))
    assert moved.train.images is data.train.images
    assert moved.digest == data.digest


def test_padded_images_are_made_once_for_a_device_and_a_margin_and_never_on_a_cpu(monkeypatch):
    images, real, made = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.nn.functional.pad, []
    elsewhere = images.to("meta")

    def slowly(*args):
        made.append(args)
        time.sleep(0.1)
        return real(*args)

    monkeypatch.setattr(torch.nn.functional, "pad", slowly)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: padded(elsewhere, 2), range(4)))
    assert {id(each) for each in found} == {id(padded(elsewhere, 2))}
    assert padded(images, 2) is images
    assert len(made) == 1
    assert padded(elsewhere, 1).shape == (2, 6, 6, 3)
    assert padded(elsewhere, 0) is elsewhere


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


# --- splits of few images, and what is noticed about images ------------------------------------------------------


def test_the_splits_of_data_without_a_fault_are_those_of_earlier_builds(tmp_path):
    """Studies remember the digest, and refuse to go on with other images."""
    assert load(DIGITS).digest == "9b558101144680d074cbaf0a26a2af20f8ff7b078c50cf51bba43d24b2d3ec7d"
    assert (
        load(Data(source="digits", limit=200)).digest
        == "3e894956a26d5f7f1322f86e48f16114a6091a97c25dad5e7058fb345392ab76"
    )
    write_parquet(tmp_path / "set" / "train.parquet", pictures(100), np.arange(100) % 2)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    data, images = parquet(tmp_path, limit=60), pictures(100)
    for split, numbers in ((data.test, order[:20]), (data.val, order[20:26]), (data.train, order[26:80])):
        assert torch.equal(split.images, torch.from_numpy(images)[numbers])
        assert torch.equal(split.labels, numbers % 2)


@pytest.mark.parametrize("shares", [{}, {"val": 0.2}, {"val": 0.3, "test": 0.3}])
@pytest.mark.parametrize("each", [3, 5])
def test_every_class_has_an_image_in_every_split_where_it_has_three(tmp_path, shares, each):
    images, labels = pictures(40 * each), np.repeat(np.arange(40), each)
    write_parquet(tmp_path / "set" / "train.parquet", images, labels)
    data = parquet(tmp_path, **shares)
    for split in (data.train, data.val, data.test):
        assert split.labels.unique().tolist() == list(range(40))
    assert samples(data.train, data.val, data.test) == written(images, labels)
    assert "split class by class" in str(data)
    assert not warned(data, "image of")


def test_a_rare_class_is_in_every_split_and_the_shares_are_kept(tmp_path):
    labels = np.array([0] * 300 + [1] * 290 + [2] * 10)
    write_parquet(tmp_path / "set" / "train.parquet", pictures(600), labels)
    for seed in range(5):
        data = parquet(tmp_path, split_seed=seed)
        assert (len(data.train), len(data.val), len(data.test)) == (432, 48, 120)
        counts = torch.stack([split.labels.bincount(minlength=3) for split in (data.train, data.val, data.test)])
        assert counts.min() >= 1
        assert (counts[2] - torch.tensor([60, 58, 2])).abs().max() <= (1 if "class by class" in str(data) else 20)


def test_a_class_that_a_split_lacks_is_named(tmp_path):
    labels = np.array([0] * 50 + [1] * 50 + [2])
    write_parquet(tmp_path / "set" / "train.parquet", pictures(101), labels)
    data = parquet(tmp_path)
    assert 2 in data.train.labels
    assert warned(data, "no validation image of 1 of 3 classes (2)", "three or more")
    assert warned(data, "no test image of 1 of 3 classes (2)")
    write_parquet(tmp_path / "set" / "test.parquet", pictures(20, seed=1), [0, 1] * 10)
    load.cache_clear()
    assert warned(parquet(tmp_path), "no test image of 1 of 3 classes (2): the data bring none")


def test_identical_images_are_counted_and_those_across_splits_are_warned_of_with_an_example(tmp_path):
    images = write_classes(tmp_path / "set" / "train", ["ant", "bee"], each=20)
    write_classes(tmp_path / "set" / "val", ["ant", "bee"], each=20, seed=1)
    write_classes(tmp_path / "set" / "test", ["ant", "bee"], each=20, seed=2)
    assert "identical" not in str(folder(tmp_path))
    for n in range(3):
        shutil.copy(tmp_path / f"set/train/ant/{n}.png", tmp_path / f"set/test/ant/copy-{n}.png")
    shutil.copy(tmp_path / "set/train/bee/20.png", tmp_path / "set/train/bee/copy.png")
    Image.fromarray(images[25]).save(tmp_path / "set/val/ant/same.bmp")  # the same pixels in another file
    load.cache_clear()
    data = folder(tmp_path)
    assert "5 identical to another image (1 in validation and training, 3 in test and training)" in str(data)
    places = "train/ant/0.png and", "test/ant/copy-0.png"
    assert warned(data, "3 test images are in the training split, too", *places)
    assert warned(
        data, "1 validation image is in the training split, too", "train/bee/25.png and", "val/ant/same.bmp"
    )
    assert warned(data, "1 image is identical to one of another class")


def test_classes_whose_images_show_nothing_are_named(tmp_path):
    for name, colour in (("ant", "black"), ("bee", None), ("cat", "noise")):
        for n, noise in enumerate(pictures(20)):
            file = tmp_path / "set" / name / f"{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = {"black": np.full((8, 8, 3), n, np.uint8), "noise": noise}.get(colour, pictures(1, seed=5)[0])
            Image.fromarray(picture).save(file)
    data = folder(tmp_path)
    assert warned(data, "every image of 1 of 3 classes (ant) is of a single colour")
    assert warned(data, "all images of 1 of 3 classes (bee) are identical")
    assert not warned(data, "cat")


def test_what_was_changed_is_counted_beside_the_images(tmp_path):
    write_classes(tmp_path / "set", ["ant", "bee"])
    for n in range(6):
        layer = np.random.default_rng(n).integers(0, 256, (4, 4, 4), dtype=np.uint8)
        Image.fromarray(layer).save(tmp_path / "set" / "ant" / f"layer-{n}.png")
    assert "6 smaller than data.size, enlarged, 6 transparent, composited on white" in str(folder(tmp_path))


def test_images_that_do_not_fit_into_memory_are_refused_and_many_are_warned_of(tmp_path, monkeypatch):
    write_classes(tmp_path / "set", ["ant", "bee"])
    for file in (tmp_path / "set").rglob("*.png"):
        for n in range(100):
            (file.parent / f"{file.stem}-{n}.png").symlink_to(file)
    monkeypatch.setattr(datasets, "free_memory", lambda: 10**9)  # as a container may have
    with complaint(tmp_path / "set", "2020 images of 1000x1000 pixels take 6.1 GB of memory, of which 1.0 GB"):
        folder(tmp_path, size=1000)
    monkeypatch.setattr(datasets, "free_memory", lambda: 9 * 10**6)
    found = folder(tmp_path, size=30)
    assert "in memory" not in str(found)  # so little is not said
    monkeypatch.setattr(datasets, "LARGE", 10**6)
    load.cache_clear()
    found = folder(tmp_path, size=30)
    assert "5 MB in memory, which all lanes share" in str(found)
    assert warned(found, "5 MB of memory, of which 9 MB are free; lower data.size or data.limit, or use fewer lanes")


# --- augmentation ------------------------------------------------------------------------------------------------


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
