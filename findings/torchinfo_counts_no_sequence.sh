#!/usr/bin/env bash
# torchinfo 1.8.0, torch 2.13.0 (Python 3.11).
# One would guess: the "total mult-adds" of torchinfo.summary are those of the input it was given, and "total
#   params" counts a weight that two modules share once, as sum(p.numel() for p in model.parameters()) does.
# What happens: for nn.Linear it multiplies by the batch and not by the sequence: [2, 128, 64] costs as [2, 64]
#   does. Factors that are nn.Parameters of a module of its own cost nothing, though they are counted as
#   parameters. A tied head is counted twice. No warning.
# Where it matters: costs of dense and low-rank language models in papers and model cards: the same low-rank pair
#   costs 0, 1/128 or all of itself by the way it is written. Count with FlopCounterMode on "meta" tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchinfo==1.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print("torchinfo", torchinfo.__version__, "torch", torch.__version__)


class PairOfParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.ones(8, 64)), nn.Parameter(torch.ones(64, 8))

    def forward(self, x):
        return x @ self.A.T @ self.B.T


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def costs(model, x):
    with FlopCounterMode(display=False) as counter:
        model(x)
    seen = torchinfo.summary(model, input_data=x, verbose=0)
    return seen.total_mult_adds, counter.get_total_flops() // 2, seen.total_params


models = {
    "nn.Linear": nn.Linear(64, 64, bias=False),
    "a pair of nn.Linear": nn.Sequential(nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)),
    "a pair of nn.Parameter": PairOfParameters(),
}
seen = []
for name, model in models.items():
    for shape in ((2, 64), (2, 128, 64)):
        told, right, _ = costs(model, torch.ones(shape))
        print(f"{name}, input {list(shape)}: torchinfo {told} mult-adds, counted {right}")
        seen.append(told)
tied = Tied()
params, right = costs(tied, torch.ones(2, 8, dtype=torch.long))[2], sum(p.numel() for p in tied.parameters())
print(f"tied embedding and head: torchinfo {params} parameters, the model has {right}")
if seen != [8192, 8192, 2048, 2048, 0, 0] or params != 2 * right:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: no sequence length, nothing for factors of one's own, tied weights twice")
PYTHON
