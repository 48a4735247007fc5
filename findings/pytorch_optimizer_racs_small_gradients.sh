#!/usr/bin/env bash
# pytorch_optimizer 4.1.0, torch 2.13.0 (Python 3.11).
# One would guess: RACS, which divides the gradient by averages of its squares over rows and columns, takes
#   updates that do not depend on the gradient's scale, as Adam, Adafactor, Alice or Muon do.
# What happens: it divides by the roots of both averages, each of them as large as the gradient itself, and
#   nothing normalizes one against the other. So the update is as 1 / gradient: with gradients 1000 times smaller
#   it ends about 1000 times larger. It gets there slowly, since the limiter lets it grow by 1% an update: by 20
#   times from update 100 to update 400.
# Where it matters: gradients of language models are small, so a baseline's updates go on growing for hundreds of
#   updates, to a size that follows batch, loss scale and width. A learning rate found in a short run is not that
#   of a long one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 pytorch_optimizer==4.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import torch
from pytorch_optimizer import load_optimizer

version = importlib.metadata.version("pytorch_optimizer")
print("pytorch_optimizer", version, "torch", torch.__version__)
torch.set_num_threads(1)


def updates(name, scale, at=(100, 400, 1500)):
    """Frobenius norms of the updates at these steps, gradients being normal numbers times `scale`."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(16, 32))
    optimizer = load_optimizer(name)([weight], lr=1e-3)
    norms = []
    for step in range(1, at[-1] + 1):
        before = weight.detach().clone()
        weight.grad = torch.randn(16, 32) * scale
        optimizer.step()
        if step in at:
            norms.append((weight.detach() - before).norm().item())
    return norms


last = {}
for name in ("racs", "adafactor", "adamw"):
    for scale in (1.0, 1e-1, 1e-2, 1e-3):
        norms = updates(name, scale)
        last[name, scale] = norms
        print(f"{name}, gradients of {scale:g}: updates 100, 400, 1500 of norm", *(f"{n:.2g}" for n in norms))
ratio = {name: last[name, 1e-3][-1] / last[name, 1.0][-1] for name in ("racs", "adafactor", "adamw")}
print("gradients 1000 times smaller, update 1500:", {name: f"{r:.3g} times" for name, r in ratio.items()})
growth = last["racs", 1e-3][1] / last["racs", 1e-3][0]
if not (500 < ratio["racs"] < 2000 and 15 < growth < 25 and all(0.9 < ratio[n] < 1.1 for n in ("adafactor", "adamw"))):
    sys.exit("CHANGED: see the lines above")
print("AS STATED: RACS's updates are as 1 / gradient, reached by 1% an update")
PYTHON
