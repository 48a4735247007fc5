#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0 on two gloo processes of torchrun, CPU (Python 3.11).
# One would guess: Accelerator(cpu=True, fsdp_plugin=...) shards the model, as torch's fully_shard does on the
#   same two processes, or says that it does not on a CPU.
# What happens: the plugin is dropped without an error or a warning. distributed_type is MULTI_CPU, the model
#   is wrapped in DistributedDataParallel, no parameter is a DTensor and every process holds all weights and
#   all of AdamW's state; so too with ACCELERATE_USE_FSDP=true. Without cpu=True, where there is no GPU, each
#   process trains alone as number 0 of 1.
# Where it matters: a test of sharded training on CPU tests DDP and passes: it sees nothing of sharded
#   checkpoints, norms or optimizers. Assert distributed_type, or that there is a DTensor, or call
#   fully_shard.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0
cd "$folder"
cat > sharded.py <<'PYTHON'
import os
import sys

import accelerate
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

way, path = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
if way == "fully_shard of torch":
    dist.init_process_group("gloo")
    model = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    kind, place = "-", (dist.get_rank(), dist.get_world_size())
else:
    plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    on_cpu = {} if way == "without cpu=True" else {"cpu": True}
    accelerator = accelerate.Accelerator(fsdp_plugin=plugin, **on_cpu)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    kind = accelerator.distributed_type.value
    place = (accelerator.process_index, accelerator.num_processes)
model(torch.randn(2, 64)).sum().backward()
optimizer.step()


def held(tensors):
    """Numbers that this process holds."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


moments = [state["exp_avg"] for state in optimizer.state.values()]
sharded = sum(isinstance(p, DTensor) for p in model.parameters())
line = f"{way}: {kind}, {place[0]} of {place[1]}, {type(model).__name__}, {sharded} DTensors, "
line += f"{held(model.parameters())} weights, {held(moments)} moments"
with open(f"{path}.{os.environ['RANK']}", "w") as result:
    print(line, file=result)
if dist.is_initialized():
    dist.barrier()
    os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
versions='print("accelerate", accelerate.__version__, "torch", torch.__version__)'
venv/bin/python -c "import accelerate, torch; $versions"
seen() {
    CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 timeout 120 \
        venv/bin/torchrun --standalone --nproc-per-node 2 sharded.py "$1" part >>said 2>&1
    cat part.0 part.1
}
seen "fully_shard of torch" | tee result
seen "cpu=True" | tee -a result
ACCELERATE_USE_FSDP=true seen "cpu=True and variable" | tee -a result
seen "without cpu=True" | tee -a result
echo "lines about FSDP or sharding in what all of them said: $(grep -ciE 'fsdp|shard' said || true)"
cat > expected <<'TEXT'
fully_shard of torch: -, 0 of 2, FSDPSequential, 4 DTensors, 4160 weights, 4160 moments
fully_shard of torch: -, 1 of 2, FSDPSequential, 4 DTensors, 4160 weights, 4160 moments
cpu=True: MULTI_CPU, 0 of 2, DistributedDataParallel, 0 DTensors, 8320 weights, 8320 moments
cpu=True: MULTI_CPU, 1 of 2, DistributedDataParallel, 0 DTensors, 8320 weights, 8320 moments
cpu=True and variable: MULTI_CPU, 0 of 2, DistributedDataParallel, 0 DTensors, 8320 weights, 8320 moments
cpu=True and variable: MULTI_CPU, 1 of 2, DistributedDataParallel, 0 DTensors, 8320 weights, 8320 moments
without cpu=True: NO, 0 of 1, Sequential, 0 DTensors, 8320 weights, 8320 moments
without cpu=True: NO, 0 of 1, Sequential, 0 DTensors, 8320 weights, 8320 moments
TEXT
if ! cmp -s result expected || grep -qiE 'fsdp|shard' said; then
    cat said >&2
    echo "CHANGED: see the lines above" >&2
    exit 1
fi
echo "AS STATED: the plugin changes nothing, and nothing is said"
