#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.checkpoint on two gloo processes, CPU (Python 3.11).
# One would guess: of what each process holds for itself (a random state, a place in the data), dcp.save keeps
#   either every process's or all of one process's, and load gives it back to that one.
# What happens: entries of one name count as copies of one another, which is not compared, and each is saved by
#   the process that has the least to write so far. So one comes from process 0 and the next from process 1;
#   after loading all processes hold the same mixture: a random state of one beside a place in the data of
#   another, in silence.
# Where it matters: runs that save random states, readers of data, error feedback of compressed gradients or
#   other state of their own. After a restart all processes draw alike and read the same documents. Put the
#   rank into the name, as f"rng.{rank}".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > own_state.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()


def own(mark):
    """State of a process, each entry with the mark by which it is known again."""
    return {
        "random state": torch.full((5056,), mark, dtype=torch.uint8),
        "place in the data": torch.tensor([mark]),
        "error feedback": torch.full((64, 8), float(mark)),
        "documents read": torch.tensor([mark]),
        "named by rank": {f"rng.{rank}": torch.tensor([mark])},
    }


def mark_of(value):
    return int(next(iter(value.values()))[0]) if isinstance(value, dict) else int(value.flatten()[0])


dcp.save(own(rank), checkpoint_id="checkpoint")
loaded = own(99)
dcp.load(loaded, checkpoint_id="checkpoint")
marks = [None, None]
dist.all_gather_object(marks, {name: mark_of(value) for name, value in loaded.items()})
if rank == 0:
    print("torch", torch.__version__)
    for name in marks[0]:
        print(f"{name}: process 0 has that of {marks[0][name]}, process 1 that of {marks[1][name]}")
    shared = {name: marks[0][name] for name in marks[0] if name != "named by rank"}
    alike = all(marks[1][name] == mark for name, mark in shared.items())
    named = [m["named by rank"] for m in marks]
    with open(sys.argv[1], "w") as result:
        result.write(f"mixed {sorted(set(shared.values()))}, alike {alike}, named {named}")
sys.stdout.flush()
dist.barrier()
os._exit(0)  # while the interpreter closes, gloo's threads abort some finished processes
PYTHON
OMP_NUM_THREADS=1 timeout 120 venv/bin/torchrun --standalone --nproc-per-node 2 own_state.py result
if [ "$(cat result)" != "mixed [0, 1], alike True, named [0, 1]" ]; then
    echo "CHANGED: $(cat result)" >&2
    exit 1
fi
echo "AS STATED: both processes have the same mixture of both; what is named by rank is each one's own"
