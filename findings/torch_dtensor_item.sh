#!/usr/bin/env bash
# torch 2.13.0, DTensor (the parameters of FSDP2) on two gloo processes, CPU (Python 3.11).
# One would guess: item(), float() and bool() of a number computed from a sharded tensor give that number on
#   every process, as full_tensor() does, or refuse.
# What happens: it depends on the function. sum, mean, norm, max, count_nonzero and any leave their result
#   "partial": item() then gives what this process's rows alone make, another number on each process, without
#   an error; `if (G > 2).any():` goes both ways at once. std, median, argmax and the spectral norm give the
#   right number, and so does norm() as soon as anything is done with it: norm() + 0.
# Where it matters: norms of gradients and factors in logs, tests for NaN, thresholds of FSDP2 runs: processes
#   take different branches, and the next collective does not match. Call full_tensor() before item().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > numbers_of_shards.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
X = torch.randn(8, 6)
sharded = distribute_tensor(X, init_device_mesh("cpu", (2,)), [Shard(0)])
functions = {
    "sum": lambda A: A.sum(),
    "mean": lambda A: A.mean(),
    "norm": lambda A: A.norm(),
    "max": lambda A: A.max(),
    "count_nonzero": lambda A: A.count_nonzero(),
    "any above 2": lambda A: (A > 2).any(),
    "std": lambda A: A.std(),
    "median": lambda A: A.median(),
    "argmax": lambda A: A.argmax(),
    "spectral norm": lambda A: torch.linalg.matrix_norm(A, 2),
    "norm + 0": lambda A: A.norm() + 0,
}
wrong = []
for name, function in functions.items():
    right, result = function(X).item(), function(sharded)
    items = [None, None]
    dist.all_gather_object(items, result.item())
    full = result.full_tensor().item()
    good = [abs(item - right) <= 1e-5 * max(1, abs(right)) for item in items]
    if abs(full - right) > 1e-5 * max(1, abs(right)):
        wrong.append(name + " (full_tensor)")
    if not all(good):
        wrong.append(name)
    if dist.get_rank() == 0:
        shown = ", ".join(f"{item:.4g}" for item in items)
        print(f"{name}: right {right:.4g}; item() on the two processes {shown}; full_tensor() {full:.4g}")
if dist.get_rank() == 0:
    print("torch", torch.__version__, "- other than right on a process:", wrong)
    with open(sys.argv[1], "w") as result:
        result.write(",".join(wrong))
sys.stdout.flush()
dist.barrier()
os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
OMP_NUM_THREADS=1 timeout 120 venv/bin/torchrun --standalone --nproc-per-node 2 numbers_of_shards.py result
if [ "$(cat result)" != "sum,mean,norm,max,count_nonzero,any above 2" ]; then
    echo "CHANGED: other than right: $(cat result)" >&2
    exit 1
fi
echo "AS STATED: six functions give another number on at least one process, five the right one"
