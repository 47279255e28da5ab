"""torchvision models by name, with a stem for small images and a width for small machines."""

from __future__ import annotations

import threading
from typing import cast

import torch
from torch import nn

from .document import SpecError, first_line
from .schedules import find_function
from .spec import Model
from .zoo import did_you_mean

_SEEDING = threading.Lock()  # torch's global generator is one for all threads


def build(config: Model, classes: int, seed: int) -> nn.Module:
    """The model with random weights of ``seed``, on the CPU; the same seed gives the same weights.

    Raises:
        SpecError: no such model, or a stem or a width for one that is no ResNet.
    """
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _network(config, classes)


def check(config: Model, classes: int, height: int, width: int) -> list[float]:
    """Build the model, and have it look at two images of this size; what it says, by which one's own is known again.

    Raises:
        SpecError: it cannot be built, cannot take such images, or does not give a number for each class.
    """
    network, name = build(config, classes, 0), config.function or config.name
    images = torch.linspace(-1, 1, 2 * 3 * height * width).view(2, 3, height, width)
    try:
        with _SEEDING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # of dropout
            given = network(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        if config.function is not None:
            raise  # its author wants to see where
        message = f"{name} takes no images of {height}x{width} pixels ({first_line(error)})"
        raise SpecError(f"{message}; a ResNet with stem: small does", key=("model", "name")) from None
    if not isinstance(given, torch.Tensor) or given.shape != (2, classes):
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise SpecError(
            f"{name} gives {shape} for two images, not (2, {classes}): a number for each class", key=("model",)
        )
    return given.flatten().tolist()


def _network(config: Model, classes: int) -> nn.Module:
    from torchvision.models import ResNet, get_model, list_models

    if config.function is not None:
        made = find_function(config.function, [config.function.partition(".")[0]])(classes)  # permitted when read
        if not isinstance(made, nn.Module):
            raise SpecError(f"{config.function}({classes}) gives {type(made).__name__}, not a torch.nn.Module")
        return made
    names = list_models(module=__import__("torchvision").models)
    if config.name not in names:
        raise SpecError(
            f"torchvision has no model {config.name!r}; {did_you_mean(config.name, names)}", key=("model",)
        )
    if config.name in ("googlenet", "inception_v3"):
        raise SpecError(f"{config.name} trains with auxiliary outputs, which this loop has not", key=("model",))
    with torch.device("cpu" if config.width == 64 else "meta"):  # another width replaces all that has weights
        network: nn.Module = get_model(config.name, weights=None, num_classes=classes)
    if not isinstance(network, ResNet):
        if config.stem == "small" or config.width != 64:
            raise SpecError(
                f"{config.name} has the stem and the width it comes with; set stem: imagenet and leave width out",
                key=("model", "stem"),
            )
        return network
    if config.width != 64:
        _widen(network, config.width)
    if config.stem == "small":
        network.conv1 = nn.Conv2d(3, config.width, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return cast("nn.Module", network)


def _widen(network: nn.Module, width: int) -> None:
    """Rebuild a torchvision ResNet with ``width`` channels in its first stage, by its own stage builder."""
    if width * network.base_width < 64:  # type: ignore[operator]
        raise SpecError(
            f"a width of {width} leaves the groups of this network without channels", key=("model", "width")
        )
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    network.inplanes = width  # type: ignore[assignment]
    network.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    for i, stage in enumerate(stages):
        block = type(stage[0])  # type: ignore[index]
        built = network._make_layer(block, width * 2**i, len(stage), stride=1 if i == 0 else 2)  # type: ignore[operator, arg-type]
        setattr(network, f"layer{i + 1}", built)
    network.fc = nn.Linear(network.inplanes, network.fc.out_features)  # type: ignore[arg-type, union-attr]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
