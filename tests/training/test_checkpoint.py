"""Checkpoints: resuming changes nothing, damage is noticed, and nothing in a file is ever executed."""

import io
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch

from runner.files.sweep_file import Data, Model, Train
from runner.files.trial import Engine, Record, TrialConfig
from runner.lanes.open import open_lanes
from runner.lanes.stop import Stop
from runner.schedules import load
from runner.training import checkpoint
from runner.training import loop as train
from runner.training.checkpoint import Checkpoints, DamagedError, pack, unpack, verify
from runner.training.fast import engine

CPU = torch.device("cpu")
DATA = Data(source="digits", limit=160, val=0.25, augment={"pad": 1})
COSINE = load({"type": "cosine", "init_lr": 0.05, "warmup": 0.2})
PLATEAU = load({"type": "plateau", "init_lr": 0.05, "patience": 1, "gamma": 0.5})


def config(name: str = "fast", schedule=COSINE, **train) -> TrialConfig:
    recipe = Train(**{"epochs": 4, "batch_size": 32} | train)
    return TrialConfig(DATA, Model(width=8), recipe, schedule, engine=Engine(name, "fp32"), test=True)


def result(epochs) -> list:
    return [(e.number, e.lrs, e.train_loss, e.val_loss, e.val_accuracy, e.test_accuracy) for e in epochs]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", [COSINE, PLATEAU], ids=["cosine", "plateau"])
@pytest.mark.parametrize("name", ["reference", "fast"])
def test_a_trial_that_is_resumed_after_any_epoch_equals_one_that_was_not_bit_for_bit(name, schedule, optimizer):
    """Also on lanes that have trained something else meanwhile; the last state is compared, weights and all."""
    wanted = config(name, schedule, optimizer=optimizer)
    whole = [(epoch, epoch.state()) for epoch in engine.train_function(wanted)(wanted, CPU)]
    packed = []
    for epoch in engine.train_function(wanted)(wanted, CPU):
        packed.append(pack(wanted, epoch.state()))
    for content in packed:
        other = config(name, seed=7)
        next(engine.train_function(other)(other, CPU))
        resumed = list(engine.train_function(wanted)(wanted, CPU, unpack(content, wanted)))
        assert result(resumed) == result(epoch for epoch, _ in whole)
        if resumed[-1].state is not None:
            assert pack_of(resumed[-1].state()) == pack_of(whole[-1][1])


def pack_of(state) -> bytes:
    """All tensors and numbers of a state but the seconds that its epochs took."""
    timeless = dict(state) | {"epochs": [e | {"seconds": 0} for e in state["epochs"]]}
    buffer = io.BytesIO()
    torch.save(timeless, buffer)
    return buffer.getvalue()


def test_whatever_is_left_out_of_a_state_is_missed():
    """So that the test above can fail: without one of its parts a resumed trial is another."""
    wanted = config("fast", momentum=0.9)
    whole, states = [], []
    for epoch in engine.train(wanted, CPU):
        whole.append(epoch)
        states.append(unpack(pack(wanted, epoch.state()), wanted))
    for part, changed in {
        "weights": lambda s: s["weights"].zero_(),
        "buffers": lambda s: [b.zero_() for b in s["buffers"].values()],
        "optimizer": lambda s: [t.zero_() for o in s["optimizer"] for t in o.values()],
    }.items():
        state = states[1] if part == "weights" else unpack(pack(wanted, states[1]), wanted)
        state = unpack(pack(wanted, state), wanted)
        changed(state)
        assert result(engine.train(wanted, CPU, state)) != result(whole), part


@pytest.fixture(scope="module")
def content() -> bytes:
    return pack(config(), next(engine.train(config(), CPU)).state())


def test_every_single_flipped_bit_is_noticed(content):
    """Every bit of the head and the first of the state, and a thousand of the rest."""
    chance = random.Random(0)
    positions = [*range(300 * 8), *(chance.randrange(len(content) * 8) for _ in range(1000))]
    for bit in positions:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            verify(bytes(damaged), config())


def test_a_file_that_was_cut_off_or_is_empty_or_is_another_trials_is_noticed(content):
    chance = random.Random(0)
    for length in [0, 1, 28, 29, 93, 94, 160, *(chance.randrange(len(content)) for _ in range(50))]:
        with pytest.raises(DamagedError):
            verify(content[:length], config())
    with pytest.raises(DamagedError, match="is no checkpoint"):
        verify(b"PK\x03\x04", config())
    others = [
        config(seed=1),
        config(epochs=5),
        config(weight_decay=0.1),
        config("reference"),
        config(schedule=PLATEAU),
        config(schedule=load({"type": "cosine", "init_lr": 0.06, "warmup": 0.2})),
        replace(config(), data=DATA.model_copy(update={"limit": 200})),
        replace(config(), model=Model(width=16)),
    ]
    for other in others:
        with pytest.raises(DamagedError, match="of another trial"):
            verify(content, other)
    assert verify(content, config())


def test_nothing_in_a_file_is_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    for bomb in (Bomb(), {"epochs": [Bomb()]}):
        buffer = io.BytesIO()
        torch.save(bomb, buffer)
        body = checkpoint.identity(config()).encode() + b"\n" + buffer.getvalue()
        digest = checkpoint.hashlib.sha256(body).hexdigest().encode()
        with pytest.raises(pickle.UnpicklingError):
            unpack(checkpoint.MAGIC + digest + b"\n" + body, config())
    assert not (tmp_path / "executed").exists()


# --- files -----------------------------------------------------------------------------------------------------

RECORD = Record(3, "cosine", COSINE.to_json(), {})


def test_the_last_two_files_are_kept_and_the_one_before_a_damaged_one_is_used(tmp_path):
    said = []
    files = Checkpoints(tmp_path / "checkpoints", 0, said.append)
    contents = [pack(config(), epoch.state()) for epoch in engine.train(config(), CPU) if epoch.state]
    for n, packed in enumerate(contents, 1):
        files.keep(RECORD, n, packed)
    kept = sorted((tmp_path / "checkpoints/search-00003").iterdir())
    assert [path.name for path in kept] == [f"{n:06d}.ckpt" for n in (len(contents) - 1, len(contents))]
    assert files.latest(RECORD, config()) == contents[-1]
    kept[-1].write_bytes(contents[-1][:-1])
    assert files.latest(RECORD, config()) == contents[-2]
    assert len(said) == 1
    assert "is damaged; the one before it is used" in said[0]
    kept[0].write_bytes(b"")
    assert files.latest(RECORD, config()) is None
    files.drop(RECORD)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_files_that_were_of_no_use_do_not_push_out_those_of_the_trial_that_began_again(tmp_path):
    files = Checkpoints(tmp_path, 0, print)
    for n in (17, 18, 1, 2, 3):
        files.keep(RECORD, n, b"")
    assert sorted(path.stem for path in (tmp_path / "search-00003").iterdir()) == ["000002", "000003"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path):
    (tmp_path / "in the way").write_text("")
    said = []
    files = Checkpoints(tmp_path / "in the way", 0, said.append)
    files.keep(RECORD, 1, b"")
    files.keep(RECORD, 2, b"")
    assert len(said) == 1
    assert "training goes on without" in said[0]


def test_a_lane_keeps_what_it_has_every_so_often_and_goes_on_from_there(tmp_path):
    wanted, files = config(), Checkpoints(tmp_path, 0, pytest.fail)
    with open_lanes("0", "cpu", 1, stop=Stop(), checkpoints=files) as places:
        lane = places.all[0]
        lane.begin(RECORD, wanted)
        for _ in range(2):
            (lane,) = places.finished()
            lane.result()
            lane.advance()
        places.finished()
        names = [path.name for path in (tmp_path / "search-00003").iterdir()]
        assert sorted(names) == ["000001.ckpt", "000002.ckpt"]
        lane.release()
        lane.begin(RECORD, wanted)  # from the second epoch's state
        seen = []
        while True:
            (lane,) = places.finished()
            _, came = lane.result()
            seen.append(came.epoch)
            if came.outcome:
                break
            lane.advance()
    assert result(seen) == result(train_alone(wanted))


def train_alone(wanted: TrialConfig) -> list[train.Epoch]:
    return list(engine.train_function(wanted)(wanted, CPU))


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "huge"])
def test_what_is_no_checkpoint_is_set_aside_without_waiting_for_it_or_reading_it(tmp_path, kind, content):
    said = []
    checkpoints = Checkpoints(tmp_path, 0.0, said.append)
    record = Record(3, "cosine", {}, {})
    checkpoints.keep(record, 1, content)
    path, elsewhere = tmp_path / "search-00003" / "000002.ckpt", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"somebody's")
    if kind == "huge":  # of 3 TB, where the file system allows holes
        with path.open("wb") as file:
            file.write(checkpoint.MAGIC)
            file.truncate(3 * 2**40)
    else:
        {"pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(elsewhere), "folder": path.mkdir}[kind]()
    assert checkpoints.latest(record, config()) == content
    assert "000002.ckpt" in said[0]
    assert "the one before it is used" in said[0]
    assert elsewhere.read_bytes() == b"somebody's"
    assert checkpoints.latest(record, config()) == content  # and is not looked at again
    assert len(said) == 1
