"""What an optimizer does to a weight without a gradient, against torch's own class."""

import math

import pytest
import torch

from runner.files.optimizers import OPTIMIZERS

KNOWN = [name for name, optimizer in OPTIMIZERS.items() if optimizer.unused is not None]
RECIPES = [
    pytest.param({}, id="as it comes"),
    pytest.param({"nesterov": False}, id="heavy ball"),
    pytest.param({"momentum": 0.0, "nesterov": False}, id="plain"),
    pytest.param({"weight_decay": 0.0}, id="no decay"),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", KNOWN)
def test_a_weight_without_a_gradient_goes_where_torchs_own_optimizer_takes_it(name, recipe):
    optimizer = OPTIMIZERS[name]
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.05} | recipe
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    own = getattr(torch.optim, optimizer.name)([weight], lr=1.0, **optimizer.arguments(options))
    found, momentum = 1.0, 0.0
    for update in range(20):
        lr = own.param_groups[0]["lr"] = 0.3 * (1 + math.cos(update / 6))
        own.step()
        found, momentum = optimizer.unused(options, lr, found, momentum)
        assert found == pytest.approx(weight.item(), rel=1e-12, abs=0), update
    assert (found == 1.0) == (options["weight_decay"] == 0.0)
