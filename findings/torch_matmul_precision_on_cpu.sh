#!/usr/bin/env bash
# torch 2.13.0, CPU build with oneDNN (Python 3.11), on a processor with bfloat16 instructions (flag
#   avx512_bf16 or amx_bf16); on others the first part is skipped.
# One would guess: torch.set_float32_matmul_precision concerns CUDA products; on a CPU float32 products stay
#   float32.
# What happens: "high" changes nothing on the CPU, "medium" makes a 256 x 256 float32 product about as wrong
#   as a bfloat16 one (error 0.17 instead of 0.00004), but leaves a 16 x 16 product untouched. And once
#   torch.backends.mkldnn.matmul.fp32_precision was set, torch.get_float32_matmul_precision() raises
#   RuntimeError.
# Where it matters: factorizations and golden values computed on a CPU in a process that says "medium" for its
#   GPU. A test on small matrices does not see it. Code that saves and restores the setting fails where the
#   newer way was used.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pathlib
import sys

import torch

print("torch", torch.__version__)
cpuinfo = pathlib.Path("/proc/cpuinfo")
flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
has_bfloat16 = bool({"avx512_bf16", "amx_bf16"} & set(flags))


def error(order):
    """Largest error of a float32 product of this order, against float64."""
    torch.manual_seed(0)
    A, B = torch.randn(order, order), torch.randn(order, order)
    return (A @ B - A.double() @ B.double()).abs().max().item()


errors = {}
for precision in ("highest", "high", "medium"):
    torch.set_float32_matmul_precision(precision)
    errors[precision] = error(256), error(16)
    print("{}: error {:.2e} at 256 x 256, {:.2e} at 16 x 16".format(precision, *errors[precision]))
torch.set_float32_matmul_precision("highest")

if has_bfloat16:
    (exact, exact16), (high, _), (medium, medium16) = errors["highest"], errors["high"], errors["medium"]
    products = high < 1e-3 and exact < 1e-3 < 1e-2 < medium and medium16 < 1e-4 and exact16 < 1e-4
else:
    products = True
    print("SKIPPED for the products: this processor has no bfloat16 instructions")

torch.backends.mkldnn.matmul.fp32_precision = "bf16"
try:
    getter = torch.get_float32_matmul_precision()
except RuntimeError as failure:
    getter = None
    print("after mkldnn.matmul.fp32_precision was set, the getter raises:", str(failure)[:70])
if not products or getter is not None:
    sys.exit(f"CHANGED: errors (256, 16) {errors}; the getter returned {getter!r}")
print("AS STATED")
PYTHON
