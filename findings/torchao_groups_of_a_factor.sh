#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0, CPU (Python 3.11).
# One would guess: quantize_ with groups of 128 treats a layer whose input width is no multiple of 128 in one
#   way, whatever the config, and a call that raises leaves the model as it was.
# What happens: Int4WeightOnlyConfig passes over such a layer in silence (a log line at level INFO) and
#   returns; its weight stays bfloat16. IntxWeightOnlyConfig and Int8WeightOnlyConfig with PerGroup(128) raise
#   AssertionError for the same layer, after the layers before it have been replaced: the model is quantized
#   up to there.
# Where it matters: factors, whose width is the rank (96, 160, ...): a model "in 4 bits" whose factors are
#   not; and a caller that catches the error and goes on without quantization evaluates a half quantized
#   model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet torchao==0.18.0
cd "$folder"
"$folder/venv/bin/python" - 2>messages.txt <<'PYTHON' || { tail -n 3 messages.txt >&2; exit 1; }
import sys
from importlib.metadata import version

import torch
from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

print("torchao", version("torchao"), "torch", torch.__version__)


def quantized(config, *widths):
    """On linear layers of these (in, out) widths: the error's name or None, which layers were quantized."""
    model = torch.nn.Sequential(*(torch.nn.Linear(*width) for width in widths)).to(torch.bfloat16)
    try:
        quantize_(model, config)
        error = None
    except Exception as raised:
        error = type(raised).__name__
    layers = [type(layer.weight) is not torch.nn.Parameter for layer in model]
    print(f"{type(config).__name__}, (in, out) {widths}: error {error}, quantized {layers}")
    return error, layers


factor = 96, 256  # rank 96
whole = 128, 96
passed_over = quantized(Int4WeightOnlyConfig(group_size=128), factor)
groups = PerGroup(128)
intx = quantized(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=groups), whole, factor, whole)
int8 = quantized(Int8WeightOnlyConfig(granularity=groups), whole, factor, whole)
halfway = "AssertionError", [True, False, False]
if passed_over != (None, [False]) or intx != halfway or int8 != halfway:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: one config passes over the factor in silence, two raise and leave the model half quantized")
PYTHON
