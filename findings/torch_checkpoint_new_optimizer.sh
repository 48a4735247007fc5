#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint, one process (Python 3.11).
# One would guess: loading a saved {"model": ..., "optim": ...} into a new model and a new AdamW restores
#   both, or says that the moments in the file had nowhere to go.
# What happens: what decides is the dictionary that asks. A new AdamW has no state yet, so its learning rate
#   is restored and its moments are left in the file, in silence. A tensor of another dtype is filled with
#   cast values, in silence too: 1.5 becomes 1 in an int64 tensor. (Another shape is an error.)
# Where it matters: a restart with lr and weights right and moments at zero looks like a small bump of the
#   loss. State has to exist before loading (torch.distributed.checkpoint.state_dict makes it, or an optimizer
#   with eager state).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
import torch.distributed.checkpoint as dcp

warnings.simplefilter("ignore")  # one process without a process group: meant so
print("torch", torch.__version__)


def pair(lr):
    model = torch.nn.Linear(4, 4)
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


model, optimizer = pair(lr=0.1)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
saved = {"model": model.state_dict(), "optim": optimizer.state_dict(), "numbers": torch.tensor([1.5, 257.5])}
dcp.save(saved, checkpoint_id="checkpoint")
moments = len(saved["optim"]["state"])

new_model, new_optimizer = pair(lr=0.5)
asked = {
    "model": new_model.state_dict(),
    "optim": new_optimizer.state_dict(),
    "numbers": torch.zeros(2, dtype=torch.int64),
}
dcp.load(asked, checkpoint_id="checkpoint")
new_optimizer.load_state_dict(asked["optim"])
lr = new_optimizer.param_groups[0]["lr"]
same = torch.equal(model.weight, new_model.weight)
counts = f"saved {moments}, loaded {len(new_optimizer.state)}"
print(f"weights restored: {same}; lr {lr}; parameters with state: {counts}")
print("float32 [1.5, 257.5] into int64:", asked["numbers"].tolist())
lost = moments == 2 and len(new_optimizer.state) == 0
if not (same and lr == 0.1 and lost and asked["numbers"].tolist() == [1, 257]):
    sys.exit("CHANGED: see the two lines above")
print("AS STATED: weights and lr are back, the moments are not, and nothing was said")
PYTHON
