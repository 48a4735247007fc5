"""Weights of fixed norm: the group option `hyperball`, for any rule that moves along a direction (Wen et al.
2026, arXiv 2606.16899; the form with a stored radius is that of microsoft/dion).

Per matrix W (m x n) with the rule's direction U, learning rate eta:

1. R = ||W||_F as W enters its first update; stored
2. Y = W - eta R U / ||U||_F
3. W <- R Y / ||Y||_F                  ||Y||^2 = ||W||^2 - 2 k <W, U> + k^2 ||U||^2 with k = eta R / ||U||_F

Per pair A (m x r), B (n x r), W = A B^T, with directions dA, dB (inferred; the paper has dense matrices):

1. R = ||A B^T||_F = sqrt(tr(A^T A B^T B)) at the first update; stored
2. ||D||_F of the first-order change D = dA B^T + A dB^T,
   ||D||^2 = tr(dA^T dA B^T B) + tr(A^T A dB^T dB) + 2 tr(dA^T A dB^T B);  k = eta R / ||D||_F
3. A <- f (A - k dA), B <- f (B - k dB) with f = sqrt(R / ||(A - k dA)(B - k dB)^T||_F)

All norms come from r x r products of A, B, dA, dB. eta is an angle: a step turns W by about eta, so scales of
U cancel, and there is no weight decay. Where ||U||_F < 1e-10 the step is shorter, to 0 for a zero direction.

Of a matrix that ranks share by rows, the three sums of step 3 are summed over ranks, all matrices at once.
Nothing waits for the device but one look before a matrix's first update, at whether it is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.distributed.sharding import ShardGroup, is_sharded, local
from lowrise.errors import UsageError
from lowrise.linalg.precision import full_precision_matmul
from lowrise.optim.engine.options import parameter_name
from lowrise.optim.engine.units import Shape, Unit, decay_and_subtract_, stacked, state_dtype, step_of
from lowrise.optim.engine.views import split

BALL_ROLES = frozenset({"matrix", "factors"})
RADIUS = "radius"
LEAST_NORM = 1e-10  # of a direction, and of Y in units of R

Pair = tuple[Tensor, Tensor]


def holds_norm(group: Mapping[str, Any]) -> bool:
    """Whether the norms of the group's weights are fixed."""
    return bool(group.get("hyperball", False))


def check_hyperball(group: Mapping[str, Any], able: Collection[str], *, who: str, where: str) -> None:
    """Raise `UsageError` for a group whose norms `who`, which holds those of the roles `able`, cannot fix."""
    value = group.get("hyperball", False)
    if not isinstance(value, bool):
        raise UsageError(f"{where} has hyperball = {value!r}; it must be True or False.")
    if not value:
        return
    if group["role"] not in able:
        held = f"it fixes those of the roles {' and '.join(sorted(able))}" if able else "it fixes none"
        raise UsageError(
            f"{where} has hyperball = True and the role {group['role']!r}, whose norms {who} cannot fix "
            f"({held}): leave the option out, or choose another optimizer, for example Muon."
        )
    if group.get("residual_norm"):
        raise UsageError(
            f"{where} has hyperball = True and factors of layers that add a residual to A (dlr), so that the "
            "norm of A B^T is not the weight's: leave the option out, or choose another layer, for example "
            "lowrank."
        )
    if group["weight_decay"]:
        raise UsageError(
            f"{where} has weight_decay = {group['weight_decay']!r} and hyperball = True, which fixes the "
            "norms of its weights, so that nothing is left to decay: leave weight_decay out "
            "(other_weight_decay is for embeddings, head and norms)."
        )


def ball_layout(role: str, shapes: Sequence[Shape], options: Mapping[str, Any]) -> list[dict[str, Shape]]:
    """State of one unit besides the rule's: the radius, with the first of its parameters."""
    own: dict[str, Shape] = {RADIUS: ()} if holds_norm(options) and role in BALL_ROLES else {}
    return [own if i == 0 else {} for i in range(len(shapes))]


def ball_flops(role: str, shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    """FLOPs of steps 1 to 3 besides the rule's own step."""
    if not holds_norm(options) or role not in BALL_ROLES:
        return 0
    if role == "matrix":
        m, n = shapes[0]
        return 7 * m * n  # three inner products, one scaling
    (m, r), (n, _) = shapes
    return 6 * (m + n) * r * r + (m + n) * r + 20 * r * r


def step_(
    group: Mapping[str, Any],
    params: Sequence[Tensor],
    updates: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    decay: float | None,
    ranks: ShardGroup | None = None,
) -> None:
    """The end of every rule for single matrices: W <- decay W - update, or steps 1 to 3 along the update
    where the group's norms are fixed.

    updates: learning rate times direction; written into.
    ranks: those that have the other rows of `params`, which must all call this with the same matrices.
    """
    if not holds_norm(group):
        decay_and_subtract_(list(params), list(updates), decay)
        return
    wide = [p.to(u.dtype) for p, u in zip(params, updates, strict=True)]
    sums = torch.stack(
        [
            torch.stack(torch._foreach_norm(wide)).double().square_(),  # squares of large norms fit
            torch.stack(
                [torch.dot(w.reshape(-1), u.reshape(-1)) for w, u in zip(wide, updates, strict=True)]
            ).double(),
            torch.stack(torch._foreach_norm(list(updates))).double().square_(),
        ]
    )  # (3, matrices)
    if ranks is not None:
        dist.all_reduce(sums, group=ranks.group)
    ww, wu, uu = sums.unbind()
    R = _radii(states, ww.sqrt())
    if not group["lr"]:
        return
    k = group["lr"] * R / uu.sqrt().clamp_min(LEAST_NORM * group["lr"])
    Y = (ww - 2.0 * k * wu + k * k * uu).clamp_min(0.0).sqrt()
    grown = R / torch.maximum(Y, LEAST_NORM * R)
    dtype = updates[0].dtype
    torch._foreach_mul_(list(updates), list((grown * k).to(dtype).unbind()))
    decay_and_subtract_(list(params), list(updates), list(grown.to(dtype).unbind()))


def pairs_step_(group: Mapping[str, Any], units: Iterable[Unit], directions: Iterable[Pair]) -> None:
    """Steps 1 to 3 for pairs A, B along lr times dA, dB, which are written into."""
    kinds: dict[tuple[Any, ...], list[tuple[Unit, Pair]]] = {}
    for unit, pair in zip(units, directions, strict=True):
        A, B = unit.params
        kinds.setdefault((A.shape, B.shape, A.dtype, B.dtype, A.device), []).append((unit, pair))
    for alike in kinds.values():
        with full_precision_matmul(alike[0][0].params[0].device):
            _pairs_of_one_shape_(group, [unit for unit, _ in alike], [pair for _, pair in alike])


def _pairs_of_one_shape_(group: Mapping[str, Any], units: Sequence[Unit], directions: Sequence[Pair]) -> None:
    grams = []  # of A and of B: X^T X, X^T D + D^T X, D^T D, D^T X, each (pairs, r, r)
    for place in (0, 1):
        X = stacked([unit.params[place].to(state_dtype(unit.params[place])) for unit in units])
        D = stacked([pair[place] for pair in directions])
        C = D.mT @ X
        grams.append((X.mT @ X, C + C.mT, D.mT @ D, C))
    (S_A, L_A, T_A, C_A), (S_B, L_B, T_B, C_B) = grams
    R = _radii([unit.states[0] for unit in units], _trace(S_A, S_B).clamp_min(0.0).sqrt())
    if not group["lr"]:
        return
    D_norm = (_trace(T_A, S_B) + _trace(S_A, T_B) + 2.0 * _trace(C_A, C_B.mT)).clamp_min(0.0).sqrt()
    k = group["lr"] * R / D_norm.clamp_min(LEAST_NORM * group["lr"])
    kk = k[:, None, None]
    Y = _trace(S_A - kk * L_A + kk * kk * T_A, S_B - kk * L_B + kk * kk * T_B).clamp_min(0.0).sqrt()
    grown = (R / torch.maximum(Y, LEAST_NORM * R)).sqrt()
    for place in (0, 1):
        updates = [pair[place] for pair in directions]
        dtype = updates[0].dtype
        torch._foreach_mul_(updates, list((grown * k).to(dtype).unbind()))
        decay_and_subtract_([unit.params[place] for unit in units], updates, list(grown.to(dtype).unbind()))


def _trace(X: Tensor, Y: Tensor) -> Tensor:
    """tr(X^T Y) of each of (pairs, r, r)."""
    return (X.double() * Y.double()).sum(dim=(-2, -1))


def _radii(states: Sequence[Mapping[str, Tensor]], norms: Tensor) -> Tensor:
    """R of each matrix (matrices,): what is stored, or its norm now where this is its first update."""
    stored = [state[RADIUS] for state in states]
    first = [step_of(state) == 1 for state in states]
    if not any(first):
        return torch.stack(stored)
    now = torch.tensor(first).to(norms.device, non_blocking=True)
    R = torch.where(now, norms.to(stored[0].dtype), torch.stack(stored))
    torch._foreach_copy_(stored, list(R.unbind()))
    return R


def refuse_zero_matrices(
    units: Sequence[tuple[dict[str, Any], tuple[Tensor, ...]]],
    states: Mapping[Tensor, Mapping[str, Tensor]],
    ranks: ShardGroup | None,
) -> None:
    """Raise `UsageError` for a unit (with its group) that comes to its first update with a zero matrix: it
    has no radius. Reads the device, for units before their first update alone; of several ranks all must
    call it.
    """
    new = [(g, u) for g, u in units if holds_norm(g) and not step_of(states[u[0]])]
    if not new:
        return
    found = [[_found(local(p), g.get("view")) for p in u] for g, u in new]
    flags = torch.stack([flag.cpu() for unit in found for flag in unit]).int()  # (parameters, 2)
    if ranks is not None and any(is_sharded(u[0]) for _, u in new):
        flags = flags.to(new[0][1][0].device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=ranks.group)
    some, zero = (column.tolist() for column in flags.unbind(1))
    tensors = [(g, p) for g, u in new for p in u]
    for (group, tensor), alive, dead in zip(tensors, some, zero, strict=True):
        if dead or not alive:
            place = next(i for i, p in enumerate(group["params"]) if p is tensor)
            raise UsageError(
                f"{parameter_name(group, place)} of shape {tuple(tensor.shape)} "
                f"{'has a matrix of zeros' if dead else 'is zero'}, and hyperball = True keeps the norm that "
                "a weight starts with: give it a start that is not zero, or leave it to AdamW (skip=... of "
                "from_model and param_groups)."
            )


def _found(rows: Tensor, view: str | None) -> Tensor:
    """(2,): whether these rows of a parameter have an entry that is not zero; whether one of the matrices
    that are whole in them is zero.
    """
    filled = torch.stack([matrix.any() for matrix in split(rows, view)]) if rows.numel() else rows.new_ones(0)
    whole = view == "stack"
    return torch.stack([filled.any(), ~filled.bool().all() if whole else torch.zeros_like(filled.any())])
