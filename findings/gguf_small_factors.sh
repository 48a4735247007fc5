#!/usr/bin/env bash
# gguf 0.19.0 (numpy 2.4.6, Python 3.11).
# One would guess: Q8_0 has a scale per block of 32 numbers, so its relative error does not depend on the
#   scale of the matrix, and it is always far better than Q4_0.
# What happens: the scale is a float16 number, and it is the largest number of the block divided by 127. For
#   numbers of about 1e-5 it has a few bits left, at 1e-6 hardly any. The relative error is 0.5% at scale 1,
#   9% at 1e-5 (Q4_0: 8.6%), 100% at 1e-6 (Q4_0: 11%), with no warning. BF16 keeps its 0.2%.
# Where it matters: the factors of B A can be scaled against each other without changing the product. A pair
#   out of balance, as a small start of B leaves it, is exported to zeros; balance the factors
#   first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy
from gguf import GGMLQuantizationType, quants

print("gguf", version("gguf"), "numpy", numpy.__version__)
normal = numpy.random.default_rng(0).standard_normal((64, 256)).astype(numpy.float32)


def error(kind, scale):
    """The relative error of writing and reading normal numbers of this scale."""
    X = normal * numpy.float32(scale)
    back = quants.dequantize(quants.quantize(X, kind), kind)
    return float(numpy.linalg.norm(back - X) / numpy.linalg.norm(X))


kinds = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16
seen = {kind.name: {scale: error(kind, scale) for scale in (1.0, 1e-4, 1e-5, 1e-6)} for kind in kinds}
for name, errors in seen.items():
    print(name, "relative error:", ", ".join(f"{e:.4f} at scale {scale:g}" for scale, e in errors.items()))
q8, q4, bf16 = seen["Q8_0"], seen["Q4_0"], seen["BF16"]
steady = max(bf16.values()) < 0.003 and max(q4.values()) < 0.2
if not (steady and q8[1.0] < 0.01 and q8[1e-5] > q4[1e-5] and q8[1e-6] > 0.9):
    sys.exit("CHANGED: see the lines above")
print("AS STATED: at 1e-5 the 8 bits are worse than 4, at 1e-6 nothing is left")
PYTHON
