#!/usr/bin/env bash
# torch 2.13.0, FSDP2 and DTensor on two gloo processes, CPU (Python 3.11).
# One would guess: a weight that is created sharded (on "meta", then to_empty, then reset_parameters with one
#   seed on all processes) is a random matrix like an unsharded one, as it is on a GPU.
# What happens: on a CPU every process draws its own rows from its own generator, which stands at the same seed,
#   so all shards hold the same rows: a 64 x 64 weight of rank 32. A warning says that random operators may not
#   be fully supported; what it leads to is not said. uniform_, normal_, trunc_normal_, randn_like and dropout's
#   mask are alike; orthogonal_ is right. With other seeds the rows differ.
# Where it matters: tests of sharded training on CPUs, and CPU-initialized models: ranks, spectra and losses of
#   low-rank methods are those of another model. Draw first and shard then, or seed by rank.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > draws_of_shards.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

torch.set_num_threads(1)
dist.init_process_group("gloo")
with torch.device("meta"):
    layer = nn.Linear(64, 64, bias=False)
fully_shard(layer)
layer.to_empty(device="cpu")
sharded = layer.weight
draws = {
    "reset_parameters": lambda: layer.reset_parameters(),
    "normal_": lambda: nn.init.normal_(sharded),
    "trunc_normal_": lambda: nn.init.trunc_normal_(sharded),
    "randn_like": lambda: torch.randn_like(sharded),
    "dropout": lambda: nn.functional.dropout(torch.ones_like(sharded)),
    "orthogonal_": lambda: nn.init.orthogonal_(sharded),
}
alike = []
for name, draw in draws.items():
    torch.manual_seed(0)
    drawn = draw()
    W = (sharded if drawn is None else drawn).detach().full_tensor()
    same = torch.equal(W[:32], W[32:])
    if dist.get_rank() == 0:
        print(f"{name}: rank {torch.linalg.matrix_rank(W).item()} of 64, rows of both processes alike: {same}")
    if same:
        alike.append(name)
torch.manual_seed(dist.get_rank())
W = nn.init.normal_(sharded).detach().full_tensor()
if torch.equal(W[:32], W[32:]):
    alike.append("normal_ with a seed for each process")
if dist.get_rank() == 0:
    print("torch", torch.__version__, "- alike on both processes:", alike)
    with open(sys.argv[1], "w") as result:
        result.write(",".join(alike))
sys.stdout.flush()
dist.barrier()
os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
OMP_NUM_THREADS=1 timeout 120 venv/bin/torchrun --standalone --nproc-per-node 2 draws_of_shards.py result
if [ "$(cat result)" != "reset_parameters,normal_,trunc_normal_,randn_like,dropout" ]; then
    echo "CHANGED: alike on both processes: $(cat result)" >&2
    exit 1
fi
echo "AS STATED: five draws give both processes the same rows, orthogonal_ does not"
