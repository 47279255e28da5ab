"""Every metric against scikit-learn's, and the fast engine's against the plain loop's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from runner.files.metrics import ALWAYS, METRICS
from runner.files.sweep_file import Data, Model, Objective, Train
from runner.files.trial import Engine, TrialConfig
from runner.schedules import load
from runner.training import data, loop
from runner.training.fast import engine
from runner.training.model import build

CPU = torch.device("cpu")
DIGITS = Data(source="digits", limit=200, val=0.4)
ORACLES = {
    "loss": lambda labels, shares: log_loss(labels, shares, labels=range(10)),
    "accuracy": lambda labels, shares: accuracy_score(labels, shares.argmax(1)),
    "top5": lambda labels, shares: top_k_accuracy_score(labels, shares, k=5, labels=range(10)),
    "macro_f1": lambda labels, shares: f1_score(labels, shares.argmax(1), average="macro"),
    "balanced_accuracy": lambda labels, shares: balanced_accuracy_score(labels, shares.argmax(1)),
    "auroc": lambda labels, shares: roc_auc_score(labels, shares, multi_class="ovr", average="macro"),
}


def judged_by(name: str) -> Objective:
    return Objective(metric=f"val/{name}")


class Fixed(torch.nn.Module):
    """Gives these logits, whatever the images are."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, images):
        self.at += len(images)
        return self.logits[self.at - len(images) : self.at]


def measured(name: str, labels, logits) -> float:
    """A metric of a data set that has these labels, and of a network that has these logits."""
    digits = data.load(DIGITS)
    split = data.Split(digits.val.images[:1].expand(len(labels), -1, -1, -1), torch.as_tensor(labels))
    several = replace(digits, val=split, classes=logits.shape[1])
    return loop.evaluate(Fixed(torch.as_tensor(logits).float()), split, several, judged_by(name))[name]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_what_scikit_learn_gives(name):
    digits, network = data.load(DIGITS), build(Model(width=8), 10, 0)
    images = data.normalised(digits.val.images, digits.mean, digits.std)
    with torch.inference_mode():
        shares = network.eval()(images).double().softmax(1).numpy()
    labels = digits.val.labels.numpy()
    assert len(np.unique(shares.argmax(1))) > 1  # a network that says the same of all images tells nothing
    assert 0 < ORACLES["accuracy"](labels, shares) < 1
    found = loop.evaluate(network, digits.val, digits, judged_by(name))
    assert list(found) == list(dict.fromkeys([*ALWAYS, name]))  # nobody pays for what nobody asked for
    assert found == {each: pytest.approx(ORACLES[each](labels, shares), abs=1e-5) for each in found}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_more_images_than_are_evaluated_at_once_is_that_of_all_of_them(name):
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 10, 1300), rng.normal(size=(1300, 10))
    expected = ORACLES[name](labels, torch.tensor(logits).softmax(1).numpy())
    assert measured(name, labels, logits) == pytest.approx(expected, abs=1e-6)


def test_of_two_classes_auroc_is_the_binary_one_and_the_top_five_are_all():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 60), rng.normal(size=(60, 2)).astype(np.float32)
    assert measured("auroc", labels, logits) == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert measured("top5", labels, logits) == 1.0


@pytest.mark.filterwarnings("default:y_pred contains classes not in y_true")  # of the oracle alone
def test_a_class_without_an_image_leaves_auroc_undefined_and_the_others_as_scikit_learn_has_them(recwarn):
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 9, 60), rng.normal(size=(60, 10))
    assert 9 in logits.argmax(1)
    found = {name: measured(name, labels, logits) for name in METRICS}
    assert not recwarn
    assert math.isnan(found.pop("auroc"))
    shares = torch.tensor(logits).softmax(1).numpy()
    assert found == {name: pytest.approx(ORACLES[name](labels, shares), abs=1e-6) for name in found}


def test_more_classes_than_half_of_the_images_are_no_reason_for_a_warning(recwarn):
    labels = np.arange(40) % 30
    for name in METRICS:
        assert 0 <= measured(name, labels, np.eye(30)[labels]) < 3
    assert not recwarn


@pytest.mark.parametrize("name", ["macro_f1", "balanced_accuracy", "auroc"])
def test_logits_that_are_no_numbers_have_no_metric(name):
    logits = np.eye(10)[np.arange(60) % 10]
    assert measured(name, np.arange(60) % 10, logits) == 1.0
    logits[7, 3] = math.nan
    assert math.isnan(measured(name, np.arange(60) % 10, logits))


@pytest.mark.parametrize("name", METRICS)
def test_the_fast_engine_reports_the_metrics_of_the_plain_loop(name):
    train = Train(epochs=1, batch_size=40, precision="fp32")
    schedule = load({"type": "cosine", "init_lr": 0.05, "warmup": 0.2})
    config = TrialConfig(DIGITS, Model(width=8), train, schedule, objective=judged_by(name))
    slow = next(loop.train(config, CPU)).metrics()
    fast = next(engine.train(replace(config, engine=Engine("fast", "fp32")), CPU)).metrics()
    assert list(fast) == list(slow)
    assert {f"val/{each}" for each in (*ALWAYS, name)} == {each for each in slow if each.startswith("val/")}
    for each in filter(lambda each: each.startswith("val/"), slow):
        margin = 1e-3 if each == "val/auroc" else 1e-4  # rounding may rank two images the other way round
        assert fast[each] == pytest.approx(slow[each], rel=margin), each


def test_a_diverged_epoch_has_no_value_of_the_metric():
    train, schedule = Train(epochs=3, batch_size=40, weight_decay=10), load({"type": "constant", "init_lr": 100})
    config = TrialConfig(DIGITS, Model(width=8), train, schedule, objective=judged_by("top5"))
    for epochs in (loop.train(config, CPU), engine.train(config, CPU)):
        with pytest.raises(loop.DivergedError) as caught:
            list(epochs)
        assert math.isnan(caught.value.epoch.metrics()["val/top5"])


@pytest.mark.cuda
@pytest.mark.parametrize("name", METRICS)
def test_a_graph_on_a_gpu_gives_the_metric_of_every_epoch_that_it_is_replayed_for(name):
    train, schedule = Train(epochs=3, batch_size=40, precision="fp32"), load({"type": "cosine", "init_lr": 0.05})
    config = TrialConfig(DIGITS, Model(width=8), train, schedule, objective=judged_by(name))
    config, device = replace(config, engine=Engine("fast", "fp32")), torch.device("cuda")
    for epoch in engine.train(config, device):
        slot = engine.slot_of(config, device)
        plain = loop.evaluate(slot.network, slot.dataset.val, slot.dataset, judged_by(name))
        assert epoch.metrics()[f"val/{name}"] == pytest.approx(plain[name], rel=1e-3)
