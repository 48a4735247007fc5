"""LoRA-Muon: orthogonalized momenta of the product of two factors; the algorithm is in the class's
docstring.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.inverse_root import (
    PUBLISHED_SHIFT,
    PUBLISHED_SHRINK,
    SEVEN_STEPS,
    TWELVE_STEPS,
    cholesky_root,
    eigen_root,
    iterated_root,
)
from lowrise.linalg.norms import spectral_norm_upper
from lowrise.linalg.polar import rounding_guard
from lowrise.linalg.precision import full_precision_matmul
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.options import check_gauge
from lowrise.optim.engine.units import (
    Layout,
    Shape,
    Unit,
    batch_elements,
    chunked,
    decay_and_subtract_,
    stacked,
    state_dtype,
    step_of,
)
from lowrise.optim.muon import iteration_flops
from lowrise.optim.rules.loramuon import (
    SCHEDULES,
    SUPREMA,
    Msign,
    bounded_length,
    half_steps,
    tangent_steps,
)
from lowrise.optim.rules.product_decay import product_decay_rate

Direction = Literal["halves", "tangent"]
Root = Literal["cholesky", "eigh", "iterated", "ns7"]
Scale = Literal["spectral", "none"]
Decay = Literal["split", "product"]
Bound = Literal["first_order", "whole"]

CHOICES: dict[str, tuple[str, ...]] = {
    "direction": ("halves", "tangent"),
    "msign": (*SCHEDULES, "svd"),
    "root": ("cholesky", "eigh", "iterated", "ns7"),
    "scale": ("spectral", "none"),
    "decay": ("split", "product"),
    "bound": ("first_order", "whole"),
}
ROOT_FLOPS = {
    "cholesky": 4 / 3,
    "eigh": 9,
    "iterated": 8 * len(TWELVE_STEPS),
    "ns7": 8 * len(SEVEN_STEPS),
}  # r^3
NORM_SQUARINGS = 40  # of `rebalance_every`: norms to rounding


class Pairs(NamedTuple):
    """Pairs of one shape, stacked, in the dtype of the state: what the steps 2 to 4 work on."""

    units: Sequence[Unit]
    A: Tensor  # (b, m, r)
    B: Tensor  # (b, n, r)
    N_A: Tensor
    N_B: Tensor


class LoRAMuon(Optimizer):
    """LoRA-Muon for factored weights (Cesista, Crowson, Simal, Biderman, arXiv 2606.12921): Muon's step of
    the product W = A B^T, whatever the split into A and B.

    W is stored as A (m x r), B (n x r) and never formed. Either half of the first-order change of W,
    dA B^T and A dB^T, is half a partial isometry, so that ||dA B^T + A dB^T||_2 <= eta (1.21 eta with the
    quintic in the place of msign). Algorithm 1, per pair with momenta M_A, M_B of the factors' shapes from
    zero:

    1. M <- beta M + (1 - beta) G       for A and for B; N = M, or N = beta M + (1 - beta) G with Nesterov
    2. S_A = A^T A, S_B = B^T B of the factors as they enter the step; R R^T = S^-1              (r x r)
    3. dA = -(eta/2) msign(N_A R_B) R_B^T,   dB = -(eta/2) msign(N_B R_A) R_A^T     (m x r), (n x r)
    4. s = sqrt(1 - lr wd);   A <- s A + dA / s,   B <- s B + dB / s

    so that W' = (1 - lr wd) W + dA B^T + A dB^T + dA dB^T / s^2: decay is that of W, and exact.

    Gauge: for A M, B M^-T with any invertible M the same W comes out (to rounding), as the momenta, which are
    those of G B and G^T A, move with the factors. Spectron, Adam and decay on factors do not have that.

    - `direction = "tangent"` (ours, after the idea of arXiv 2608.14492, whose formulas were not at hand): the
      momenta's projection D to the tangent space of the rank-r matrices is orthogonalized as a whole, and
      the result projected back, dA B^T + A dB^T = -eta P(msign(D)): see `rules/loramuon.py`.
    - R is the inverse of the Cholesky factor and not the symmetric root of the paper: msign(X Q) = msign(X)
      Q, so the step is the same (LoRA-RITE's core), it costs a seventh of eigenvectors, and nothing waits for
      the device. The published root of seven matrix products (`root = "ns7"`) adds 1e-5 to the normalized S,
      which breaks the invariance by 0.5% of W in ten steps.
    - A zero factor gives R = 0: its partner does not move, and no step is taken along directions that are
      rounding beside others.
    - eta = lr sqrt(m / n), so that one lr serves every shape; the paper has no such factor
      (`scale = "none"`).
    - dA dB^T has no bound of its own: it is as large as eta^2 / (4 s^2 ||.||) of the smallest singular values
      of A and B allow. `bound = "whole"` shortens eta until ||dW||_2 <= lr sqrt(m / n) is proved for the
      whole step after the decay, with float32 rounding, as in Spectron's certificate.

    The authors' code and text were not at hand when this was written; docs/methods/loramuon.md names the
    sources.

    State per factor X (k x r): `momentum` (k r elements), and `step`. Role: "factors"; all other parameters
    by built-in AdamW. FLOPs per step and factor (direction "halves"): 6 r^2 k, i (4 r^2 k + 2 r^3) with i = 5
    or 7 or 8 steps in the plain form, which is what is counted, c r^3 for the root with c = 4/3, 9, 96 or 56,
    and 10 k r; "tangent" adds 20 r^2 k and has the 2r x 2r core in the place of k x r.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Radius of a change of W in the spectral norm, for square W; see `scale`.
        momentum: Decay rate beta of the momenta; 0.9 is the published reference run's.
        nesterov: Orthogonalize beta M + (1 - beta) G instead of M; not in the paper.
        weight_decay: Decoupled weight decay wd, as `decay` says; off by default.
        decay: What decays. split: W by 1 - lr wd, half in each factor; product: the Frobenius norm of A B^T,
            A <- A - lr wd A B^T B and B <- B - lr wd B A^T A.
        direction: halves: each half of the tangent step is orthogonalized, as published; tangent: the
            momenta's tangent projection as a whole.
        msign: How momenta are orthogonalized. quintic5: Muon's five steps, singular values of 0.68 to 1.2;
            polar8: the published eight, within 7e-4 of 1; pe7: Polar Express, at most 1; svd: the slow
            reference.
        root: Where R comes from. cholesky: exact and fast; eigh: the symmetric root, the slow reference;
            iterated: by twelve matrix products; ns7: the published seven, with their shift of 1e-5.
        scale: How lr depends on the shape. spectral: lr sqrt(m / n); none: lr, as published.
        bound: What lr bounds. first_order: the change of W to first order; whole: all of it, which shortens
            steps and takes three times as long (msign quintic5 or pe7, direction halves, root cholesky).
        rebalance_every: Steps between two changes to ||A||_2 = ||B||_2 by one number, which moves the momenta
            along and leaves W; 0: never.
        rebalance_alpha: How far they go there, above 0 (not at all) to 1.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"factors"})
    decays_products = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay: Decay = "split",
        direction: Direction = "halves",
        msign: Msign = "quintic5",
        root: Root = "cholesky",
        scale: Scale = "spectral",
        bound: Bound = "first_order",
        rebalance_every: int = 0,
        rebalance_alpha: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "decay": decay,
            "direction": direction,
            "msign": msign,
            "root": root,
            "scale": scale,
            "bound": bound,
            "rebalance_every": rebalance_every,
            "rebalance_alpha": rebalance_alpha,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for key, choices in CHOICES.items():
            if group[key] not in choices:
                raise UsageError(f"LoRAMuon has {key} = {group[key]!r}; choose one of {', '.join(choices)}.")
        if group["rebalance_every"] < 0:
            raise UsageError(
                f"LoRAMuon has rebalance_every = {group['rebalance_every']}; it must be at least 0."
            )
        if not 0.0 < group["rebalance_alpha"] <= 1.0:
            raise UsageError(
                f"LoRAMuon has rebalance_alpha = {group['rebalance_alpha']}; choose above 0, at most 1."
            )
        if group["rebalance_every"]:
            check_gauge(
                group, f"rebalance_every = {group['rebalance_every']}", who="LoRAMuon", remedy="leave it out"
            )
        if group.get("residual_norm"):
            raise UsageError(
                "LoRAMuon scales the step of A B^T by the partner's Gram matrix, and factors of layers that "
                "add a residual to A (dlr) have another: choose another optimizer, for example Spectron."
            )
        if group["role"] in self.roles:
            _split_factor(group)
        if group["bound"] == "whole":
            _check_bounded(group)

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return tuple({"momentum": shape} for shape in shapes)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        total = 0.0
        for k, r in (tuple(s) for s in shapes):
            steps = len(SCHEDULES.get(options["msign"], ()))
            if options["direction"] == "tangent":
                iterated, rows, columns = 26 * r * r * k, 2 * r, 2 * r
            else:
                iterated, rows, columns = 6 * r * r * k, k, r
            p, q = min(rows, columns), max(rows, columns)
            one = iteration_flops(rows, columns, steps) if steps else 6 * p * p * q + 20 * p**3
            total += iterated + (one / 2 if options["direction"] == "tangent" else one)
            total += ROOT_FLOPS[options["root"]] * r**3 + 10 * k * r
        return round(total)

    def rewritten(self) -> list[Tensor]:
        """Pairs that were rebalanced."""
        return self._pairs_where(_rebalanced)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        kinds: dict[tuple[Any, ...], list[Unit]] = {}
        for unit in units:
            A, B = unit.params
            kinds.setdefault((A.device, A.dtype, B.dtype, A.shape[1]), []).append(unit)
        for (device, *_), alike in kinds.items():
            with full_precision_matmul(device):
                moving = _momenta(group, alike)  # 1
                _rebalance_due(group, moving)
                for chunk in chunked(moving, lambda one: _elements(one[0]), batch_elements(device)):
                    _move(group, list(_stacks(chunk)))


def _split_factor(group: Mapping[str, Any]) -> float:
    """s of step 4; `UsageError` where the decay would be all of W."""
    if group["decay"] != "split":
        return 1.0
    shrink = group["lr"] * group["weight_decay"]
    if not shrink < 1.0:
        raise UsageError(
            f"LoRAMuon has lr = {group['lr']} and weight_decay = {group['weight_decay']}, and divides by "
            f"sqrt(1 - lr weight_decay): their product is {shrink:g} and must be below 1; lower either."
        )
    return math.sqrt(1.0 - shrink)


def _check_bounded(group: Mapping[str, Any]) -> None:
    reasons = {
        f"msign = {group['msign']!r} (its norm has no proved bound)": group["msign"] not in SUPREMA,
        "direction = 'tangent'": group["direction"] != "halves",
        f"root = {group['root']!r} (its error is not bounded here)": group["root"] != "cholesky",
    }
    failed = [reason for reason, holds in reasons.items() if holds]
    if failed:
        raise UsageError(
            f"LoRAMuon cannot bound the whole change of W with {' and '.join(failed)}; drop the option or "
            'use bound="first_order".'
        )


Moving = tuple[Unit, tuple[Tensor, ...]]  # a pair and its N_A, N_B


def _momenta(group: Mapping[str, Any], units: Sequence[Unit]) -> list[Moving]:
    """Step 1; N of each pair: the momenta themselves, or Nesterov's in new tensors."""
    beta = group["momentum"]
    momenta = [state["momentum"] for unit in units for state in unit.states]
    grads = [grad for unit in units for grad in unit.grads]
    torch._foreach_lerp_(momenta, grads, 1.0 - beta)
    if group["nesterov"]:
        momenta = list(torch._foreach_lerp(grads, momenta, beta))
    return list(zip(units, zip(momenta[::2], momenta[1::2], strict=True), strict=True))


def _rebalanced(group: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether the step that a factor's counter stands at ends with balanced factors."""
    every = group["rebalance_every"]
    return bool(every) and step_of(state) % every == 0


def _rebalance_due(group: Mapping[str, Any], moving: Sequence[Moving]) -> None:
    """Algorithm 2, every `rebalance_every` updates, in place: c A, B / c, and the momenta the other way, with
    c = (||B||_2 / ||A||_2)^(alpha/2). A pair with a zero factor stays. For weights narrower than float32 c is
    the nearest power of two: any other would round every weight.
    """
    for unit, (N_A, N_B) in moving:
        if not _rebalanced(group, unit.states[0]):
            continue
        A, B = unit.params
        # The relative guard of the bounds from above cancels in the ratio.
        norm_A, norm_B = (spectral_norm_upper(X, squarings=NORM_SQUARINGS) for X in (A, B))
        ratio = torch.where((norm_A > 0) & (norm_B > 0), norm_B / norm_A, 1.0)
        c = ratio ** (group["rebalance_alpha"] / 2)
        if A.dtype != state_dtype(A) or B.dtype != state_dtype(B):
            c = c.log2().round().exp2()
        M_A, M_B = (state["momentum"] for state in unit.states)
        torch._foreach_mul_([A, M_B, *([N_B] if N_B is not M_B else [])], c)
        torch._foreach_div_([B, M_A, *([N_A] if N_A is not M_A else [])], c)


def _stacks(moving: Sequence[Moving]) -> Iterator[Pairs]:
    """Pairs of one shape together; on a CPU, where stacking gains nothing, each alone and not copied."""
    shapes: dict[tuple[Any, ...], list[Moving]] = {}
    for i, (unit, directions) in enumerate(moving):
        A, B = unit.params
        alone = i if A.device.type == "cpu" else 0
        shapes.setdefault((A.shape, B.shape, alone), []).append((unit, directions))
    for same in shapes.values():
        units = [unit for unit, _ in same]
        dtype = state_dtype(units[0].params[0])
        A, B = (stacked([unit.params[place] for unit in units]).to(dtype) for place in (0, 1))
        N_A, N_B = (stacked([directions[place] for _, directions in same]) for place in (0, 1))
        yield Pairs(units, A, B, N_A, N_B)


def _move(group: Mapping[str, Any], stacks: Sequence[Pairs]) -> None:
    """Steps 2 to 4 for pairs of one rank; the numbers are those of the class's docstring."""
    kept = _split_factor(group)
    S = [
        torch.bmm(X.mT, X) for pairs in stacks for X in (pairs.A, pairs.B)
    ]  # 2: A and B of each stack in turn
    if group["bound"] == "whole":
        D = _bounded_steps(group, stacks, kept)
    else:
        R = _roots(group, torch.cat(S)).split([len(gram) for gram in S])
        D = _steps(group, stacks, R, kept)
    rate = group["lr"] * group["weight_decay"]
    moved: dict[int, tuple[list[Tensor], list[Tensor]]] = {0: ([], []), 1: ([], [])}
    for i, pairs in enumerate(stacks):
        (S_A, S_B), (D_A, D_B) = S[2 * i : 2 * i + 2], D[2 * i : 2 * i + 2]
        if group["decay"] == "product" and rate:
            cut = product_decay_rate(S_A, S_B, rate)
            D_A, D_B = torch.baddbmm(D_A, pairs.A, S_B * cut), torch.baddbmm(D_B, pairs.B, S_A * cut)
        for place, change in ((0, D_A), (1, D_B)):
            moved[place][0].extend(unit.params[place] for unit in pairs.units)
            moved[place][1].extend(change.unbind())
    for params, changes in moved.values():  # 4; A and B may be of two dtypes
        decay_and_subtract_(params, changes, kept if kept != 1.0 else None)


def _radius(group: Mapping[str, Any], pairs: Pairs) -> float:
    """eta."""
    shape = math.sqrt(pairs.A.shape[-2] / pairs.B.shape[-2]) if group["scale"] == "spectral" else 1.0
    return float(group["lr"] * shape)


def _roots(group: Mapping[str, Any], S: Tensor) -> Tensor:
    kind = group["root"]
    if kind == "cholesky":
        return cholesky_root(S)
    if kind == "eigh":
        return eigen_root(S)
    if kind == "iterated":
        return iterated_root(S)
    return iterated_root(S, triples=SEVEN_STEPS, shift=PUBLISHED_SHIFT, shrink=PUBLISHED_SHRINK)


def _steps(
    group: Mapping[str, Any], stacks: Sequence[Pairs], R: Sequence[Tensor], kept: float
) -> list[Tensor]:
    """Step 3, divided by s: -dA / s and -dB / s of each stack in turn."""
    if group["direction"] == "tangent":
        changes: list[Tensor] = []
        for i, (_, A, B, N_A, N_B) in enumerate(stacks):
            eta = _radius(group, stacks[i]) / kept
            changes += tangent_steps(A, B, N_A, N_B, R[2 * i], R[2 * i + 1], group["msign"], eta)
        return changes
    sizes = [_radius(group, pairs) / (2.0 * kept) for pairs in stacks for _ in range(2)]
    return half_steps(*_halves(stacks, R), group["msign"], sizes)


def _halves(stacks: Sequence[Pairs], R: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The momenta and the roots that they meet: N_A with R_B, N_B with R_A."""
    partners = [X for i in range(0, len(R), 2) for X in (R[i + 1], R[i])]
    return [N for pairs in stacks for N in (pairs.N_A, pairs.N_B)], partners


def _bounded_steps(group: Mapping[str, Any], stacks: Sequence[Pairs], kept: float) -> list[Tensor]:
    """Step 3, divided by s, with the longest eta for which ||dW||_2 <= lr sqrt(m / n) is proved.

    Gram matrices, roots and norms are of the numbers in memory, in float64 (float32 on a device without it,
    where the statement is measured and not proved); the polynomials in the form that has a proof.
    """
    dtype = stacks[0].A.dtype
    wide = torch.float32 if stacks[0].A.device.type == "mps" else torch.float64
    R, sizes = [], []
    for pairs in stacks:
        R_A, R_B = (cholesky_root(X.mT @ X) for X in (pairs.A.to(wide), pairs.B.to(wide)))
        rho_A, rho_B, s_A, s_B = (spectral_norm_upper(X) for X in (R_A, R_B, pairs.A, pairs.B))
        eta = bounded_length(
            (rho_A, rho_B),
            (s_A, s_B),
            _radius(group, pairs),
            supremum=SUPREMA[group["msign"]] * rounding_guard(dtype),
            kept=kept,
            rank=pairs.A.shape[-1],
            eps=torch.finfo(dtype).eps,
        )
        R += [R_A.to(dtype), R_B.to(dtype)]
        sizes += [(eta / (2.0 * kept)).to(dtype)[:, None, None]] * 2
    return half_steps(*_halves(stacks, R), group["msign"], sizes, form="plain")


def _elements(unit: Unit) -> int:
    return sum(p.numel() for p in unit.params)
