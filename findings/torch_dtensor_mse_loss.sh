#!/usr/bin/env bash
# torch 2.13.0, DTensor (the parameters of FSDP2) on two gloo processes, CPU (Python 3.11).
# One would guess: mse_loss(W, V) of sharded W and V is ((W - V) ** 2).mean(), with its gradients.
# What happens: the gradients of mse_loss, huber_loss, smooth_l1_loss and soft_margin_loss are too large by the
#   number of processes, in silence, while the value is right. Where the rows do not divide among the processes
#   (5 on 2: 3 and 2) the value is wrong too, a mean of the processes' means, as is that of
#   binary_cross_entropy_with_logits, and the factors are 5/3 and 5/2, by row. square().mean(), l1_loss and
#   reduction="sum" are right.
# Where it matters: distances between weights under FSDP2: a pull towards the base, a factor towards another one.
#   Its share of the loss grows with the number of processes; the logged loss shows nothing of it. Write
#   (W - V).square().mean().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > losses_of_shards.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
losses = {
    "mse_loss": F.mse_loss,
    "huber_loss": F.huber_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "soft_margin_loss": F.soft_margin_loss,
    "cross_entropy": lambda W, V: F.binary_cross_entropy_with_logits(W, V.sigmoid()),
    "l1_loss": F.l1_loss,
    "sum": lambda W, V: F.mse_loss(W, V, reduction="sum"),
    "square().mean()": lambda W, V: (W - V).square().mean(),
}
seen = []
for rows in (6, 5):
    torch.manual_seed(0)
    W, V = torch.randn(rows, 8), torch.randn(rows, 8)
    for name, loss in losses.items():
        whole, sharded = W.clone().requires_grad_(), distribute_tensor(W, mesh, [Shard(0)]).requires_grad_()
        right, got = loss(whole, V), loss(sharded, distribute_tensor(V, mesh, [Shard(0)]))
        right.backward()
        got.backward()
        value = got.full_tensor().item() / right.item()
        first, last = (sharded.grad.full_tensor() / whole.grad)[[0, -1], 0].tolist()
        line = f"{rows} rows, {name}: value times {value:.3f}, gradient times {first:.2f} (first row), {last:.2f}"
        if dist.get_rank() == 0:
            print(line)
        if max(abs(x - 1) for x in (value, first, last)) > 1e-3:
            seen.append(f"{name} {rows}: {first:.2f} {last:.2f}")
if dist.get_rank() == 0:
    print("torch", torch.__version__)
    with open(sys.argv[1], "w") as result:
        result.write(", ".join(seen))
sys.stdout.flush()
dist.barrier()
os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
OMP_NUM_THREADS=1 timeout 120 venv/bin/torchrun --standalone --nproc-per-node 2 losses_of_shards.py result
expected="mse_loss 6: 2.00 2.00, huber_loss 6: 2.00 2.00, smooth_l1_loss 6: 2.00 2.00, soft_margin_loss 6: 2.00 2.00"
expected="$expected, mse_loss 5: 1.67 2.50, huber_loss 5: 1.67 2.50, smooth_l1_loss 5: 1.67 2.50"
expected="$expected, soft_margin_loss 5: 1.67 2.50, cross_entropy 5: 1.00 1.00"
if [ "$(cat result)" != "$expected" ]; then
    echo "CHANGED: other than right: $(cat result)" >&2
    exit 1
fi
echo "AS STATED: the gradients of four losses grow with the number of processes, in silence"
