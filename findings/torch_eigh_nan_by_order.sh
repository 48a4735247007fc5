#!/usr/bin/env bash
# torch 2.13.0, CPU build with MKL (Python 3.11).
# One would guess: torch.linalg.eigh of a matrix with a NaN either always raises LinAlgError or always returns
#   NaN, and eigh and eigvalsh agree about it.
# What happens: up to order 25 eigh raises; from 26 on it returns in silence. With a NaN in one diagonal entry
#   all of its eigenvectors are then finite (one eigenvalue is NaN). eigvalsh raises for each of these
#   matrices. svd raises for a NaN, but takes a 4 x 4 matrix with an inf and returns NaN; matrix_rank of that
#   matrix is 0, in silence.
# Where it matters: a basis computed from a spoiled gradient's Gram matrix. A test on small matrices shows an
#   error that real sizes do not give, and a check of the eigenvectors alone finds nothing: inputs have to be
#   checked.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

print("torch", torch.__version__)
if not torch.backends.mkl.is_available():
    print("SKIPPED: this build has no MKL; the limit between the two behaviours belongs to it")
    sys.exit(0)


def outcome(function, X):
    """'raised', or how many entries of each result are not finite."""
    try:
        results = function(X)
    except torch.linalg.LinAlgError:
        return "raised"
    results = (results,) if isinstance(results, torch.Tensor) else results
    return tuple(int((~result.isfinite()).sum()) for result in results)


seen = {}
for order in (4, 16, 25, 26, 64, 128):
    torch.manual_seed(0)
    G = torch.randn(order, 3 * order)
    X = G @ G.T
    X[0, 0] = float("nan")
    seen[order] = outcome(torch.linalg.eigh, X), outcome(torch.linalg.eigvalsh, X)
    vectors, values = seen[order]
    print(f"order {order}, one NaN: eigh (values, vectors not finite) {vectors}, eigvalsh {values}")

torch.manual_seed(0)
Y = torch.randn(4, 4)
Y[0, 0] = float("inf")
svd_of_inf, rank_of_inf = outcome(torch.linalg.svd, Y), int(torch.linalg.matrix_rank(Y))
Y[0, 0] = float("nan")
svd_of_nan = outcome(torch.linalg.svd, Y)
print(f"4 x 4 with a NaN: svd {svd_of_nan}")
print(f"4 x 4 with an inf: svd (U, S, Vh not finite) {svd_of_inf}, matrix_rank {rank_of_inf}")

small = all(seen[order] == ("raised", "raised") for order in (4, 16, 25))
large = all(seen[order] == ((1, 0), "raised") for order in (26, 64, 128))
svd = svd_of_nan == "raised" and svd_of_inf != "raised" and sum(svd_of_inf) > 0 and rank_of_inf == 0
if not (small and large and svd):
    sys.exit(f"CHANGED: raises up to 25: {small}; finite vectors from 26 on: {large}; svd as stated: {svd}")
print("AS STATED: eigh raises up to order 25 and returns finite eigenvectors from 26 on")
PYTHON
