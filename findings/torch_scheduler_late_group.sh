#!/usr/bin/env bash
# torch 2.13.0 (Python 3.11).
# One would guess: a parameter group that add_param_group adds after the learning rate scheduler was made either
#   follows the schedule from its own peak, or stays at its learning rate.
# What happens: it depends on the class. CosineAnnealingLR, LinearLR, ConstantLR, ExponentialLR and PolynomialLR
#   multiply what stands in the group by the ratio of two steps, so the new group is taken along relative to the
#   moment it came: added in a warm-up at its peak, it overshoots by what the warm-up still had to go (below 3.6
#   times, for good). LambdaLR, CyclicLR and CosineAnnealingWarmRestarts end with a ValueError of zip() at their
#   next step, OneCycleLR with KeyError.
# Where it matters: adding adapters, unfreezing or new factors in mid-run. Give the group its peak times the
#   present factor of the schedule, or make the scheduler anew with last_epoch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.optim import lr_scheduler

print("torch", torch.__version__)
schedules = {
    "LinearLR, warm-up": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=10),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=12, eta_min=0.1),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, 0.1 + 0.09 * step)),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 12),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=12),
}
seen = {}
for name, make in schedules.items():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    try:
        for step in range(12):
            if step == 2:
                optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0})
            optimizer.step()
            if step < 11:
                scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
        old, new = zip(*rates[2:])
        seen[name] = (round(old[-1], 2), round(new[-1], 2))
        print(f"{name}: after step 3 {old[0]:.2f} and {new[0]:.2f}, at the end {old[-1]:.2f} and {new[-1]:.2f}")
    except (ValueError, KeyError) as error:
        seen[name] = type(error).__name__
        print(f"{name}: {type(error).__name__}: {error}")
expected = {
    "LinearLR, warm-up": (1.0, 3.57),
    "ConstantLR": (1.0, 2.0),
    "CosineAnnealingLR": (0.12, 0.12),
    "LambdaLR": "ValueError",
    "CyclicLR": "ValueError",
    "CosineAnnealingWarmRestarts": "ValueError",
    "OneCycleLR": "KeyError",
}
if seen != expected:
    sys.exit(f"CHANGED: {seen}")
print("AS STATED: two overshoot their peak for good, four raise")
PYTHON
