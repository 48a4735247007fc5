#!/usr/bin/env bash
# torch 2.13.0, CPU build with MKL (Python 3.11).
# One would guess: torch.linalg.eigh of a matrix with a NaN either always raises LinAlgError or always returns
#   NaN, and eigh and eigvalsh agree about it.
# What happens: up to order 25 eigh raises; from 26 on it returns in silence. With a NaN in one diagonal entry
#   all of its eigenvectors are then finite (one eigenvalue is NaN); with a NaN in one entry of G, G @ G.T has
#   a row of them and eigenvectors are NaN, in silence too. eigvalsh raises for each of these matrices. svd
#   raises for a NaN, but takes a 4 x 4 matrix with an inf and returns NaN; matrix_rank of that matrix is 0.
# Where it matters: a basis computed from a spoiled gradient's Gram matrix. A test on small matrices shows an
#   error that real sizes do not give, and finite eigenvectors prove nothing: inputs have to be checked.
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


EIGEN = torch.linalg.eigh, torch.linalg.eigvalsh
seen = {}
for order in (4, 16, 25, 26, 64, 128):
    torch.manual_seed(0)
    G = torch.randn(order, 3 * order)
    X = G @ G.T
    X[0, 0] = float("nan")
    G[1, 2] = float("nan")
    seen[order] = [outcome(function, A) for A in (X, G @ G.T) for function in EIGEN]
    entry, _, row, _ = seen[order]
    eigenvalues = " and ".join(map(str, seen[order][1::2]))
    print(f"order {order}: eigh (values, vectors not finite), NaN in an entry {entry}, in a row {row};")
    print(f"  eigvalsh {eigenvalues}")

torch.manual_seed(0)
Y = torch.randn(4, 4)
Y[0, 0] = float("inf")
svd_of_inf, rank_of_inf = outcome(torch.linalg.svd, Y), int(torch.linalg.matrix_rank(Y))
Y[0, 0] = float("nan")
svd_of_nan = outcome(torch.linalg.svd, Y)
print(f"4 x 4 with a NaN: svd {svd_of_nan}")
print(f"4 x 4 with an inf: svd (U, S, Vh not finite) {svd_of_inf}, matrix_rank {rank_of_inf}")

small = all(set(seen[order]) == {"raised"} for order in (4, 16, 25))
large = True
for order in (26, 64, 128):
    entry, entry_values, row, row_values = seen[order]
    large &= entry == (1, 0) and row != "raised" and row[1] > 0 and entry_values == row_values == "raised"
svd = svd_of_nan == "raised" and svd_of_inf != "raised" and sum(svd_of_inf) > 0 and rank_of_inf == 0
if not (small and large and svd):
    sys.exit(f"CHANGED: raises up to 25: {small}; returns from 26 on: {large}; svd as stated: {svd}")
print("AS STATED: eigh raises up to order 25 and returns finite eigenvectors from 26 on")
PYTHON
