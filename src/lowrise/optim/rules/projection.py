"""What GaLore, Fira and APOLLO share about their bases: which side, when a new one, made how.

For a gradient G (m x n) a side has a basis with columns: "left" P (m x r), R = P^T G; "right" P (n x r),
R = G P; "both" R = P^T G Q. So a product with the other side's basis is left out, and no matrix is ever
transposed.

| proj_type | tall and square (m >= n) | wide (m < n) |
|---|---|---|
| "std": the smaller dimension is projected away | right | left |
| "reverse_std" | left | right |
| "left", "right", "full" | that side; "full": both | the same |

A basis is renewed at the updates with 0-based number 0, T, 2T, ... (T = update_proj_gap); with `stagger`
every matrix has an offset in [0, T) of its own, in proportion to the cost of the matrices before it, so that
after update 0 no update pays for all.

| projection | basis |
|---|---|
| "svd" | leading singular vectors of G (`linalg.subspace.leading_left`) |
| "range_finder" | the same by a randomized range finder, 16 test vectors more than the rank, 2 power steps |
| "warm" | "svd" at update 0, then one block power step from the basis before (`linalg.subspace.followed`) |
| "random" | normal numbers, a function of (seed, parameter name, number of the update) |
| callable(G, rank, side, step) | what it returns: d x r for the projected dimension d |

Random numbers of APOLLO have variance 1/r, those of GaLore and Fira are made orthonormal. A callable gets one
matrix G, `side` "left" or "right", and the 0-based number of the update.

Columns are aligned in sign with the basis before (which starts as the first columns of the identity). A
gradient that is zero or not finite leaves the basis as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entry
from lowrise.linalg.precision import full_precision_matmul
from lowrise.linalg.subspace import align_signs, followed, leading_left, range_finder, uniform_basis
from lowrise.rng import counter_normals, key_of

Projection = Literal["svd", "warm", "random", "range_finder"] | Callable[[Tensor, int, str, int], Tensor]
ProjType = Literal["std", "reverse_std", "left", "right", "full"]

PROJECTIONS = ("svd", "warm", "random", "range_finder")
OVERSAMPLING = 16


def sides_of(proj_type: str, shape: Sequence[int]) -> tuple[str, ...]:
    """("left",), ("right",) or ("left", "right")."""
    if proj_type == "full":
        return ("left", "right")
    if proj_type in ("left", "right"):
        return (proj_type,)
    tall = shape[-2] >= shape[-1]
    return ("right",) if tall == (proj_type == "std") else ("left",)


def project(G: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """R = P^T G Q, the factors for the sides that `bases` has."""
    R = bases["left"].mT @ G if "left" in bases else G
    return R @ bases["right"] if "right" in bases else R


def back(N: Tensor, bases: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """P N Q^T (batch, m, n) as the two factors of its last product."""
    if "left" not in bases:
        return N, bases["right"].mT
    return bases["left"], N @ bases["right"].mT if "right" in bases else N


def offsets_of(group: Mapping[str, Any]) -> list[int]:
    """Per parameter of a group, by how many updates its renewals come later than those of parameter 0."""
    params = group["params"]
    if not group["stagger"]:
        return [0] * len(params)
    costs = [p.numel() * min(p.shape) for p in params]  # of the Gram matrix and its decomposition
    total, before, offsets = max(1, sum(costs)), 0, []
    for cost in costs:
        offsets.append(group["update_proj_gap"] * before // total)
        before += cost
    return offsets


def last_renewal(step: int, gap: int, offset: int) -> int:
    """The latest update up to `step` (0-based) that renews the basis."""
    return 0 if step < offset else offset + (step - offset) // gap * gap


def keys_of(group: Mapping[str, Any], first: int, indices: Sequence[int]) -> Iterator[str]:
    """What tells the parameters' random numbers apart: their names, or their positions in the optimizer."""
    names = group.get("param_names")
    for i in indices:
        yield names[i] if names else str(first + i)


def normal_basis(
    seed: int, keys: Sequence[str], steps: Sequence[int], side: str, d: int, rank: int, like: Tensor
) -> Tensor:
    """(batch, d, r) of N(0, 1/r) for the renewals at `steps`."""
    (P,) = normal_bases(seed, [(keys, steps, side, d, rank)], like)
    return P


def normal_bases(
    seed: int, draws: Sequence[tuple[Sequence[str], Sequence[int], str, int, int]], like: Tensor
) -> list[Tensor]:
    """The same for several (keys, steps, side, d, r) at once."""
    blocks = [
        ([key_of("basis", seed, key, side, step) for key, step in zip(keys, steps, strict=True)], (d, rank))
        for keys, steps, side, d, rank in draws
    ]
    normals = counter_normals(blocks, device=like.device, dtype=like.dtype)
    torch._foreach_mul_(normals, [rank**-0.5 for *_, rank in draws])
    return normals


def renewed(
    projection: Projection,
    G: Tensor,
    previous: Tensor,
    side: str,
    normal: Callable[[int, int], Tensor],
    steps: Sequence[int],
) -> Tensor:
    """The bases (batch, d, r) after a renewal from G (batch, m, n), aligned with `previous`.

    `normal(d, k)` draws (batch, d, k) normal numbers for this renewal.
    """
    largest = largest_entry(G)
    finite = largest.isfinite()
    G = torch.where(finite, G, 0.0)
    d, rank = previous.shape[-2:]
    if callable(projection):
        bases = [projection(one, rank, side, step) for one, step in zip(G, steps, strict=True)]
        P = torch.stack([basis.to(previous) for basis in bases])
        return torch.where(largest_entry(P).isfinite(), P, previous)
    if projection == "random":
        return uniform_basis(normal(d, rank))
    facing = G if side == "left" else G.mT
    with full_precision_matmul(G.device):
        if projection == "svd":
            P = leading_left(facing, rank)
        elif projection == "warm":
            P = _warm(facing, previous, steps)
        else:
            width = min(rank + OVERSAMPLING, min(facing.shape[-2:]))
            P = range_finder(facing, rank, normal(facing.shape[-1], width))
    return torch.where(finite & (largest > 0), align_signs(P, previous), previous)


def _warm(facing: Tensor, previous: Tensor, steps: Sequence[int]) -> Tensor:
    """The exact basis where there was none before, that is at update 0; else one that follows the old one."""
    first = [i for i, step in enumerate(steps) if step == 0]
    if len(first) == len(steps):
        return leading_left(facing, previous.shape[-1])
    P = followed(facing, previous)
    for i in first:
        P[i] = leading_left(facing[i], previous.shape[-1])
    return P
