#!/usr/bin/env bash
# pytorch_optimizer 4.1.0, galore-torch 1.0, torch 2.13.0 (Python 3.11).
# One would guess: two implementations of GaLore with the same options take the same updates.
# What happens: pytorch_optimizer's agree with the authors' to rounding and then part for good: with
#   `update_proj_gap` T the authors renew the subspace at updates 1, T + 1, 2 T + 1, ... and
#   pytorch_optimizer's GaLore and Fira at 1, T, 2 T, ...: the first subspace lives one update less.
#   So T = 1 renews at each update in both, and T = 2 at 1, 2, 4, 6 beside 1, 3, 5, 7.
# Where it matters: a comparison of implementations over fewer than T updates shows nothing of it, and one
#   over more looks like an error of the arithmetic. The schedule is the only difference.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --no-deps pytorch_optimizer==4.1.0 galore-torch==1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.util
import sys
from importlib.metadata import version

import pytorch_optimizer
import torch

for package in ("pytorch_optimizer", "galore-torch", "torch"):
    print(package, version(package))

# The authors' projector alone: their package imports transformers and bitsandbytes at its top.
spec = importlib.util.find_spec("galore_torch")
place = spec.submodule_search_locations[0] + "/galore_projector.py"
spec = importlib.util.spec_from_file_location("galore_projector", place)
authors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(authors)

UPDATES, RANK = 13, 4


def gradients():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(24, 32, generator=generator) for _ in range(UPDATES)]


def renewals(bases):
    """The updates, from 1, at which the basis is another one than before."""
    return [i + 1 for i, basis in enumerate(bases) if i == 0 or not torch.equal(basis, bases[i - 1])]


def of_authors(gap):
    """As their AdamW calls it: with the number of updates done before."""
    projector, bases = authors.GaLoreProjector(RANK, update_proj_gap=gap, scale=0.25, proj_type="std"), []
    for done, gradient in enumerate(gradients()):
        projector.project(gradient, done)
        bases.append(projector.ortho_matrix.clone())
    return renewals(bases)


def of_package(name, gap):
    weight, bases = torch.nn.Parameter(torch.zeros(24, 32)), []
    options = {"rank": RANK, "update_proj_gap": gap, "scale": 0.25, "projection_type": "std"}
    optimizer = pytorch_optimizer.load_optimizer(name)([{"params": [weight], **options}], lr=1e-2)
    for gradient in gradients():
        weight.grad = gradient
        optimizer.step()
        bases.append(optimizer.state[weight]["projector"].ortho_matrix.clone())
    return renewals(bases)


expected = {
    1: ([*range(1, UPDATES + 1)], [*range(1, UPDATES + 1)]),
    2: ([1, 3, 5, 7, 9, 11, 13], [1, 2, 4, 6, 8, 10, 12]),
    5: ([1, 6, 11], [1, 5, 10]),
}
changed = False
for gap, (theirs, ours) in expected.items():
    seen = {"authors": of_authors(gap), "galore": of_package("galore", gap), "fira": of_package("fira", gap)}
    for who, at in seen.items():
        print(f"gap {gap}, {who:7}: renewed at updates {at}")
    changed |= seen != {"authors": theirs, "galore": ours, "fira": ours}
if changed:
    print("CHANGED: the lists above differ from", expected)
    sys.exit(1)
print("As stated: the package renews one update earlier, from the second renewal on.")
PYTHON
