#!/usr/bin/env bash
# torch 2.13.0, FSDP2 and DTensor on two gloo processes, CPU (Python 3.11).
# One would guess: W[4].zero_(), W[:2].mul_(0), W[4, 2] = 9 and W.diagonal().zero_() change a sharded W as they
#   change any tensor, or are refused, as W[4] = 0 and W[rows] = 0 are.
# What happens: nothing, in silence, where the view cuts the dimension that is sharded: the view is a gathered
#   copy, and the write goes there. Along the other dimension, W[:, 2].zero_(), it works; W[i, j] = x is always
#   lost. torch's own code meets it: nn.Embedding(padding_idx=0), sharded on "meta" and then drawn by its
#   reset_parameters, has a padding row of random numbers. Reported as pytorch issue 147570 for view().
# Where it matters: cutting a rank by zeroing rows of a factor, pruning, padding rows, resetting dead rows, in an
#   FSDP2 run; a test on one process shows nothing. Multiply by a mask that is sharded alike, or write to
#   W.to_local().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > writes_into_views.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
writes = {
    "W[4].zero_()": lambda W: W[4].zero_(),
    "W[:2].mul_(0)": lambda W: W[:2].mul_(0),
    "W[4, 2] = 9": lambda W: W.__setitem__((4, 2), 9),
    "W.diagonal().zero_()": lambda W: W.diagonal().zero_(),
    "W[:, 2].zero_()": lambda W: W[:, 2].zero_(),
    "W.zero_()": lambda W: W.zero_(),
}
lost = []
for name, write in writes.items():
    whole, sharded = torch.ones(6, 8), distribute_tensor(torch.ones(6, 8), mesh, [Shard(0)])
    write(whole)
    write(sharded)
    changed = int((sharded.full_tensor() != 1).sum())
    if changed != int((whole != 1).sum()):
        lost.append(f"{name} ({changed} changed)")
    if dist.get_rank() == 0:
        print(f"{name}: {int((whole != 1).sum())} numbers change in a tensor, {changed} in a sharded one")

with torch.device("meta"):
    embedding = nn.Embedding(6, 4, padding_idx=0)
fully_shard(embedding)
embedding.to_empty(device="cpu")
embedding.reset_parameters()
row = embedding.weight.full_tensor()[0]
if bool((row != 0).any()):
    lost.append("padding row")
if dist.get_rank() == 0:
    print("padding row after reset_parameters:", [round(x, 2) for x in row.tolist()])
    print("torch", torch.__version__)
    with open(sys.argv[1], "w") as result:
        result.write("; ".join(lost))
sys.stdout.flush()
dist.barrier()
os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
OMP_NUM_THREADS=1 timeout 120 venv/bin/torchrun --standalone --nproc-per-node 2 writes_into_views.py result
expected="W[4].zero_() (0 changed); W[:2].mul_(0) (0 changed); W[4, 2] = 9 (0 changed)"
expected="$expected; W.diagonal().zero_() (0 changed); padding row"
if [ "$(cat result)" != "$expected" ]; then
    echo "CHANGED: lost writes: $(cat result)" >&2
    exit 1
fi
echo "AS STATED: four writes and the padding row are lost, in silence; a column and the whole are written"
