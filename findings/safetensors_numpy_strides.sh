#!/usr/bin/env bash
# safetensors 0.8.0 (numpy 2.4.6, Python 3.11).
# One would guess: safetensors.numpy.save_file, given a transposed or sliced array, either saves its values or
#   refuses it, as safetensors.torch.save_file does ("non contiguous tensor").
# What happens: it saves the array's shape with the bytes that lie in memory behind its first element. No
#   error, no warning; the file is well formed and holds other numbers.
# Where it matters: factors and projectors are often transposed views (P.T, U[:, :r]); an export by way of
#   numpy writes a scrambled matrix of the right shape. numpy.ascontiguousarray before saving avoids it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

print("safetensors", safetensors.__version__, "numpy", numpy.__version__)
matrix = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
cases = {"transposed": matrix.T, "every second column": matrix[:, ::2]}
wrong = 0
for name, array in cases.items():
    safetensors.numpy.save_file({"a": array}, "numpy.safetensors")
    loaded = safetensors.numpy.load_file("numpy.safetensors")["a"]
    print(f"{name}: saved {array.tolist()}, loaded {loaded.tolist()}")
    wrong += not numpy.array_equal(array, loaded)

safetensors.numpy.save_file({"a": numpy.ascontiguousarray(matrix.T)}, "numpy.safetensors")
copied = safetensors.numpy.load_file("numpy.safetensors")["a"]
print("transposed, made contiguous first: right values:", numpy.array_equal(copied, matrix.T))
try:
    safetensors.torch.save_file({"a": torch.from_numpy(matrix).T}, "torch.safetensors")
    refused = False
except ValueError as error:
    refused = True
    print("the torch function refuses the same view:", str(error)[:62])
if wrong != len(cases) or not refused or not numpy.array_equal(copied, matrix.T):
    sys.exit(f"CHANGED: {wrong} of {len(cases)} arrays came back wrong; torch refused: {refused}")
print("AS STATED: both arrays came back with other values, in silence")
PYTHON
