"""Every metric against scikit-learn's, and the fast engine's against the plain loop's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from runner.files.metrics import METRICS
from runner.files.sweep_file import Data, Model, Train
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
}


def test_every_metric_is_what_scikit_learn_gives():
    digits, network = data.load(DIGITS), build(Model(width=8), 10, 0)
    images = data.normalised(digits.val.images, digits.mean, digits.std)
    with torch.inference_mode():
        shares = network.eval()(images).double().softmax(1).numpy()
    labels = digits.val.labels.numpy()
    assert len(np.unique(shares.argmax(1))) > 1  # a network that says the same of all images tells nothing
    assert 0 < ORACLES["accuracy"](labels, shares) < 1
    found = loop.evaluate(network, digits.val, digits)
    assert list(found) == list(METRICS)
    assert found == {name: pytest.approx(ORACLES[name](labels, shares), abs=1e-5) for name in METRICS}


def test_the_fast_engine_reports_the_metrics_of_the_plain_loop():
    train = Train(epochs=1, batch_size=40, precision="fp32")
    schedule = load({"type": "cosine", "init_lr": 0.05, "warmup": 0.2})
    config = TrialConfig(DIGITS, Model(width=8), train, schedule)
    slow = next(loop.train(config, CPU)).metrics()
    fast = next(engine.train(replace(config, engine=Engine("fast", "fp32")), CPU)).metrics()
    assert list(fast) == list(slow)
    assert {f"val/{name}" for name in METRICS} == {name for name in slow if name.startswith("val/")}
    for name in METRICS:
        assert fast[f"val/{name}"] == pytest.approx(slow[f"val/{name}"], rel=1e-4), name
