#!/usr/bin/env bash
# torch 2.13.0, CPU (Python 3.11).
# One would guess: FlopCounterMode counts scaled_dot_product_attention, forward and backward, whatever computes it.
# What happens: on a CPU it counts nothing for it, in silence, causal or masked, in every dtype. The same call on
#   "meta" tensors, with dropout, or with the kernel that is plain products (SDPBackend.MATH) is counted. Reported
#   as pytorch issue 195460.
# Where it matters: FLOPs of a dense and a low-rank model, counted on a CPU for a fixed budget: the part that low
#   rank does not shorten is missing from both, so the ratio is too good, the more the longer the sequence. Count
#   on "meta", or with SDPBackend.MATH.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
torch.set_num_threads(1)


def attend(device="cpu", dtype=torch.float32, **options):
    q = torch.ones(1, 2, 16, 8, device=device, dtype=dtype, requires_grad=True)
    scaled_dot_product_attention(q, q, q, **options).sum().backward()


def attend_by_products():
    with sdpa_kernel(SDPBackend.MATH):
        attend(is_causal=True)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


mask = torch.ones(16, 16, dtype=torch.bool).tril()
counts = {
    "cpu": counted(lambda: attend(is_causal=True)),
    "cpu, mask": counted(lambda: attend(attn_mask=mask)),
    "cpu, bfloat16": counted(lambda: attend(dtype=torch.bfloat16, is_causal=True)),
    "meta": counted(lambda: attend("meta", is_causal=True)),
    "cpu, MATH": counted(attend_by_products),
}
for name, count in counts.items():
    print(f"{name}: {count} FLOPs")


def block(device, rank, length=512, width=64):
    """Attention and its four maps, of full rank or as pairs of factors, forward."""
    x = torch.ones(1, length, width, device=device)
    for _ in range(4):
        for rows, columns in [(width, width)] if rank is None else [(rank, width), (width, rank)]:
            x = linear(x, torch.ones(rows, columns, device=device))
    q = x.view(1, length, 4, width // 4).transpose(1, 2)
    scaled_dot_product_attention(q, q, q, is_causal=True)


ratios = [counted(lambda: block(d, 8)) / counted(lambda: block(d, None)) for d in ("cpu", "meta")]
print("rank 8 of 64, FLOPs against full rank: on the CPU {:.0%}, on meta {:.0%}".format(*ratios))
products = 2 * 1 * 2 * 16 * 16 * 8  # of one of the two products of the forward pass
whole = all(counts[name] >= 6 * products for name in ("meta", "cpu, MATH"))
if any(count for name, count in counts.items() if name in list(counts)[:3]) or not whole or ratios[0] != 0.25:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: attention on the CPU counts nothing")
PYTHON
