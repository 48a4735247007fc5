#!/usr/bin/env bash
# torch 2.13.0 (Python 3.11).
# One would guess: Optimizer.load_state_dict gives back the state that state_dict gave out, dtypes included.
# What happens: every tensor in the state of a floating-point parameter, integer and bool ones too, is cast to
#   the parameter's dtype; only the key "step" is spared. Under a bfloat16 parameter float32 moments lose
#   bits, row indices 257, 1001, 32003 become 256, 1000, 32000, and masks and 8-bit codes become bfloat16.
# Where it matters: state of low-rank optimizers beside bfloat16 weights (projectors in float32, chosen rows,
#   quantized moments): the run goes on after a restart with other state, in silence. Such optimizers need a
#   loading of their own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch

print("torch", torch.__version__)
weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
optimizer = torch.optim.SGD([weight], lr=0.1)
optimizer.state[weight] = {
    "step": torch.tensor(100001.0),
    "moment": torch.tensor([1.001]),
    "rows": torch.tensor([257, 1001, 32003]),
    "mask": torch.tensor([True, False]),
    "codes": torch.tensor([7], dtype=torch.uint8),
}
before = dict(optimizer.state[weight])
optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
after = optimizer.state[weight]
for name in before:
    old, new = before[name], after[name]
    print(f"{name}: {old.dtype} {old.tolist()} -> {new.dtype} {new.tolist()}")
cast = [name for name in before if after[name].dtype == torch.bfloat16 != before[name].dtype]
rows = after["rows"].tolist()
if cast != ["moment", "rows", "mask", "codes"] or rows != [256, 1000, 32000]:
    sys.exit(f"CHANGED: cast to the parameter's dtype: {cast}; row indices are now {rows}")
print("AS STATED: all but 'step' became bfloat16, and each of the three row indices names another row")
PYTHON
