#!/usr/bin/env bash
# torchdata 0.11.0, torch 2.13.0 (Python 3.11).
# One would guess: a StatefulDataLoader that loads its state in the middle of an epoch gives, from there on, what
#   the uninterrupted one gives: shuffled orders of later epochs too.
# What happens: with a generator of one's own (the way to seed the order) and no workers, the rest of the epoch is
#   right and every later epoch has another order, in silence. With workers, or without a generator, all epochs
#   are right. The rest of the epoch is what a test of resuming looks at.
# Where it matters: runs over several epochs of a small corpus, resumed: no error, no document lost, but other
#   batches than the run that was not interrupted, which is taken for noise of the optimizer. Use a worker, or
#   a sampler that draws from (seed, epoch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torchdata==0.11.0
cd "$folder"
cat > orders.py <<'PYTHON'
import copy
import importlib.metadata
import sys

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

torch.set_num_threads(1)


def loader(seeded, workers):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0) if seeded else None
    return StatefulDataLoader(range(8), batch_size=1, shuffle=True, generator=generator, num_workers=workers)


def resumed(seeded, workers):
    """Three epochs uninterrupted, and the same from a new loader with the state after three batches."""
    whole, whole_loader, state = [], loader(seeded, workers), None
    for _ in range(3):
        whole.append([])
        for batch in whole_loader:
            whole[-1].append(batch.item())
            if state is None and len(whole[-1]) == 3:
                state = copy.deepcopy(whole_loader.state_dict())
    second = loader(seeded, workers)
    second.load_state_dict(state)
    return whole, [[batch.item() for batch in second] for _ in range(3)]


if __name__ == "__main__":
    print("torchdata", importlib.metadata.version("torchdata"), "torch", torch.__version__)
    same = {}
    for seeded in (True, False):
        for workers in (0, 2):
            whole, rest = resumed(seeded, workers)
            name = f"{'a generator' if seeded else 'no generator'}, {workers} workers"
            same[name] = [rest[0] == whole[0][3:], *(a == b for a, b in zip(whole[1:], rest[1:]))]
            print(f"{name}: second epoch {whole[1]}, resumed {rest[1]}")
            print(f"  rest of the first epoch, second, third are the same: {same[name]}")
    wrong = {name: s for name, s in same.items() if not all(s)}
    if wrong != {"a generator, 0 workers": [True, False, False]}:
        sys.exit(f"CHANGED: other than uninterrupted: {wrong}")
    print("AS STATED: with a generator and no workers, later epochs have another order")
PYTHON
venv/bin/python orders.py
