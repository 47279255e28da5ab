#!/usr/bin/env bash
# accelerate 1.15.0 (torch 2.14.1): the param groups of an optimizer, and its learning rate as a tensor, after prepare.
#
# One would guess: Accelerator.prepare(optimizer) wraps it, so a param group that was kept is still the optimizer's, and
# so is the tensor that was given as lr.
# What happens: prepare loads the optimizer's own state_dict into it, which puts copies in their place. A learning rate
# that is set by hand through the kept group, or filled into the tensor (as compiled optimizers want it), is written
# where nobody reads. Nothing is said; the training keeps the rate that it had at prepare. Ask for param_groups anew.
#
# Seen on 2026-11-30:
#   the group is the one from before: False ; its lr is the tensor from before: False
#   set to 0.25 by the group and to 0.5 by the tensor; one step of SGD on a gradient of 1 moved by 1.0
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy accelerate==1.15.0
"$folder/venv/bin/python" - <<'PY'
import torch
from accelerate import Accelerator

weight = torch.nn.Parameter(torch.ones(1))
rate = torch.tensor(1.0)
optimizer = torch.optim.SGD([weight], lr=rate)
group = optimizer.param_groups[0]
prepared = Accelerator(cpu=True).prepare(optimizer)

group["lr"] = torch.tensor(0.25)  # by the group that was kept
rate.fill_(0.5)  # and by the tensor, as compiled optimizers want it
weight.grad = torch.ones(1)
prepared.step()
moved = 1.0 - weight.item()
same = prepared.param_groups[0] is group, prepared.param_groups[0]["lr"] is rate
print("the group is the one from before:", same[0], "; its lr is the tensor from before:", same[1])
print("set to 0.25 by the group and to 0.5 by the tensor; one step of SGD on a gradient of 1 moved by", moved)
assert same == (False, False) and moved == 1.0, "it has changed"
PY
