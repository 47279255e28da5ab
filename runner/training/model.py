"""torchvision models by name, with a stem for small images and a width for small machines."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..files.document import SpecError, first_line
from ..files.sweep_file import Model
from ..schedules.plugins import find_function
from ..schedules.words import did_you_mean

_SEEDING = threading.Lock()  # the global generators are one for all threads


@contextmanager
def rng_of_seed(seed: int) -> Iterator[None]:
    """torch's, NumPy's and Python's random numbers of ``seed`` inside, and the caller's own again after."""
    mine = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(mine[0])
        np.random.set_state(mine[1])
        random.setstate(mine[2])


def build(config: Model, classes: int, seed: int) -> nn.Module:
    """The model with random weights of ``seed``, on the CPU; raises SpecError where there is none such, or a stem or
    a width for one that is no ResNet. The weights of 2D convolutions have channels last in memory, nothing else: what
    one's own module does with a parameter of its own may need it as it is."""
    with _SEEDING, rng_of_seed(seed):
        network = _network(config, classes)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
    return network


def has_random_layers(network: nn.Module) -> bool:
    """Whether one of torchvision's networks has dropout or stochastic depth."""
    return any(getattr(module, "p", 0.0) for module in network.modules())


def check(config: Model, classes: int, height: int, width: int) -> dict[str, list[float]]:
    """What the model makes of two images of this size, by which one's own is known again: ``network`` in training,
    then ``network in evaluation``. Raises SpecError where it cannot be built, cannot take such images, or does not
    give a number for each class."""
    network, name = build(config, classes, 0), config.function or config.name
    images = torch.linspace(-1, 1, 2 * 3 * height * width).view(2, 3, height, width)
    try:
        with _SEEDING, rng_of_seed(0):  # of dropout
            given, then = network(images), network.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        if config.function is not None:
            raise  # its author wants to see where
        message = f"{name} takes no images of {height}x{width} pixels ({first_line(error)})"
        raise SpecError(f"{message}; a ResNet with stem: small does", key=("model", "name")) from None
    for answer in (given, then):
        if not isinstance(answer, torch.Tensor) or answer.shape != (2, classes):
            shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            wrong = f"{name} gives {shape} for two images, not (2, {classes}): a number for each class"
            raise SpecError(wrong, key=("model",))
    return {"network": given.flatten().tolist(), "network in evaluation": then.flatten().tolist()}


def _network(config: Model, classes: int) -> nn.Module:
    from torchvision import models

    if config.function is not None:
        made = find_function(config.function, [config.function.partition(".")[0]])(classes)  # permitted when read
        if not isinstance(made, nn.Module):
            raise SpecError(f"{config.function}({classes}) gives {type(made).__name__}, not a torch.nn.Module")
        if any(map(is_lazy, [*made.parameters(), *made.buffers()])):
            wrong = "has lazy modules, whose weights are not there yet: give them their sizes"
            raise SpecError(f"{config.function} {wrong}")
        return made
    names = models.list_models(module=models)
    if config.name not in names:
        hint = did_you_mean(config.name, names)
        raise SpecError(f"torchvision has no model {config.name!r}; {hint}", key=("model", "name"))
    if config.name in ("googlenet", "inception_v3"):
        raise SpecError(
            f"{config.name} trains with auxiliary outputs, which this loop has not", key=("model", "name")
        )
    with torch.device("cpu" if config.width == 64 else "meta"):  # another width replaces all that has weights
        network: nn.Module = models.get_model(config.name, weights=None, num_classes=classes)
    if not isinstance(network, models.ResNet):
        if config.stem == "small" or config.width != 64:
            wrong = f"{config.name} has the stem and the width it comes with; set stem: imagenet and leave width out"
            raise SpecError(wrong, key=("model", "stem"))
        return network
    if config.width != 64:
        _widen(network, config.width)
    if config.stem == "small":
        network.conv1 = nn.Conv2d(3, config.width, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return cast("nn.Module", network)


def _widen(network: Any, width: int) -> None:
    """Rebuild a torchvision ResNet with ``width`` channels in its first stage, by its own stage builder."""
    if width * network.base_width < 64:
        wrong = f"a width of {width} leaves the groups of this network without channels"
        raise SpecError(wrong, key=("model", "width"))
    network.inplanes = width
    network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    for i, stage in enumerate([network.layer1, network.layer2, network.layer3, network.layer4]):
        built = network._make_layer(type(stage[0]), width * 2**i, len(stage), stride=1 if i == 0 else 2)
        setattr(network, f"layer{i + 1}", built)
    network.fc = nn.Linear(network.inplanes, network.fc.out_features)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
