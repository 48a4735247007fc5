"""LoRA-Muon: orthogonalized momenta of the product of two factors; the algorithm is in the class's
docstring.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
from lowrise.linalg.precision import full_precision_matmul, widest
from lowrise.linalg.symmetric import symmetric_products
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import holds_norm, pairs_step_
from lowrise.optim.engine.options import check_gauge
from lowrise.optim.engine.scheduled import is_rebalanced
from lowrise.optim.engine.units import (
    Layout,
    Shape,
    Unit,
    batch_elements,
    chunked,
    decay_and_subtract_,
    stacked,
    state_dtype,
)
from lowrise.optim.rules.loramuon import (
    SCHEDULES,
    SUPREMA,
    Msign,
    bounded_length,
    half_steps,
    tangent_steps,
)
from lowrise.optim.rules.orthogonal import iteration_flops
from lowrise.optim.rules.product_decay import product_decay_rate

Direction = Literal["halves", "tangent"]
Root = Literal["cholesky", "eigh", "iterated", "ns7"]
Scale = Literal["spectral", "none"]
Decay = Literal["split", "product"]
Bound = Literal["first_order", "whole"]

ROOT_FLOPS = {
    "cholesky": 4 / 3,
    "eigh": 9,
    "iterated": 8 * len(TWELVE_STEPS),
    "ns7": 8 * len(SEVEN_STEPS),
}  # r^3
NORM_SQUARINGS = 40  # of `rebalance_every`: norms to rounding


class Factors(NamedTuple):
    """The factors A, B, A, B, ... of pairs of one rank r, stacked by shape: what the steps 2 to 4 work on.

    Whatever has r x r numbers or one number a factor lies in one tensor for all of them, in `order`.
    """

    params: list[Tensor]
    shapes: list[float]
    """sqrt(m / n) of each factor's pair."""
    places: list[list[int]]
    """Factors of each stack."""
    Xs: list[Tensor]
    """Their weights (b, k, r), in the dtype of the state."""
    Ns: list[Tensor]
    """Their N."""

    @property
    def order(self) -> list[int]:
        """The factors as the stacks hold them."""
        return [i for own in self.places for i in own]

    def of_partners(self, values: Tensor) -> Tensor:
        """What each factor's partner has, from values (factors, ...) in order."""
        at = {i: values[j] for j, i in enumerate(self.order)}
        return torch.stack([at[i ^ 1] for i in self.order])


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
    - With `hyperball` the norm of A B^T stays and lr is an angle, still whatever the split.
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
    ball_roles: ClassVar[frozenset[str]] = roles
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
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
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
        return self._rebalanced_pairs()

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        kinds: dict[tuple[Any, ...], list[Unit]] = {}
        for unit in units:
            A, B = unit.params
            kinds.setdefault((A.device, A.dtype, B.dtype, A.shape[1]), []).append(unit)
        for (device, *_), alike in kinds.items():
            with full_precision_matmul(device):
                moving = _momenta(group, alike)  # 1
                _rebalance_due(group, moving)
                for chunk in chunked(moving, lambda one: one[0].elements, batch_elements(device)):
                    _move(group, [unit for unit, _ in chunk], _factors(chunk))


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
        "hyperball = True (which makes every step lr ||A B^T||_F long)": holds_norm(group),
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


def _rebalance_due(group: Mapping[str, Any], moving: Sequence[Moving]) -> None:
    """Algorithm 2, every `rebalance_every` updates, in place: c A, B / c, and the momenta the other way, with
    c = (||B||_2 / ||A||_2)^(alpha/2). A pair with a zero factor stays. For weights narrower than float32 c is
    the nearest power of two: any other would round every weight.
    """
    for unit, (N_A, N_B) in moving:
        if not is_rebalanced(group, unit.states[0]):
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


def _factors(moving: Sequence[Moving]) -> Factors:
    """Factors of one shape together; on a CPU, where stacking gains nothing, each alone and not copied."""
    params = [p for unit, _ in moving for p in unit.params]
    Ns = [N for _, directions in moving for N in directions]
    shapes = [math.sqrt(A.shape[0] / B.shape[0]) for A, B in (unit.params for unit, _ in moving)]
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i, p in enumerate(params):
        kinds.setdefault((i,) if p.device.type == "cpu" else (p.shape, p.dtype), []).append(i)
    places = list(kinds.values())
    dtype = state_dtype(params[0])
    Xs = [stacked([params[i] for i in own]).to(dtype) for own in places]
    return Factors(
        params, [ratio for ratio in shapes for _ in range(2)], places, Xs,
        [stacked([Ns[i] for i in own]) for own in places],
    )  # fmt: skip


def _move(group: Mapping[str, Any], units: Sequence[Unit], factors: Factors) -> None:
    """Steps 2 to 4 for pairs of one rank; the numbers are those of the class's docstring. Where the norm of A
    B^T is fixed, the end is that of `hyperball.py`, along the same directions."""
    kept = _split_factor(group)
    S = symmetric_products([(X.mT, X) for X in factors.Xs])  # 2
    S_partner = factors.of_partners(S)
    if group["direction"] == "tangent":
        D = _tangent_steps(group, factors, _roots(group, S), kept)
    elif group["bound"] == "whole":
        D = _bounded_steps(group, factors, kept)
    else:
        sizes = _radii(group, factors, S)[:, None, None] / (2.0 * kept)
        D = half_steps(factors.Ns, _roots(group, S_partner), group["msign"], sizes)  # 3, divided by s
    rate = group["lr"] * group["weight_decay"]
    if group["decay"] == "product" and rate:
        cuts = (S_partner * product_decay_rate(S, S_partner, rate)).split([len(X) for X in factors.Xs])
        D = [torch.baddbmm(d, X, cut) for d, X, cut in zip(D, factors.Xs, cuts, strict=True)]
    changes = dict(zip(factors.order, (d for stack in D for d in stack.unbind()), strict=True))
    if holds_norm(group):
        pairs_step_(group, units, [(changes[i], changes[i + 1]) for i in range(0, len(changes), 2)])
        return
    for place in (0, 1):  # 4; A and B may be of two dtypes
        steps = [changes[i] for i in range(place, len(changes), 2)]
        decay_and_subtract_(factors.params[place::2], steps, kept if kept != 1.0 else None)


def _radii(group: Mapping[str, Any], factors: Factors, like: Tensor) -> Tensor:
    """eta of each factor's pair, in order, as `like`: numbers that reach the device without a copy."""
    etas = [group["lr"] * (factors.shapes[i] if group["scale"] == "spectral" else 1.0) for i in factors.order]
    if len(set(etas)) == 1:
        return like.new_full((len(etas),), etas[0])
    radii = like.new_ones(len(etas))
    torch._foreach_mul_(list(radii.unbind()), etas)
    return radii


def _roots(group: Mapping[str, Any], S: Tensor) -> Tensor:
    kind = group["root"]
    if kind == "cholesky":
        return cholesky_root(S)
    if kind == "eigh":
        return eigen_root(S)
    if kind == "iterated":
        return iterated_root(S)
    return iterated_root(S, triples=SEVEN_STEPS, shift=PUBLISHED_SHIFT, shrink=PUBLISHED_SHRINK)


def _tangent_steps(group: Mapping[str, Any], factors: Factors, R: Tensor, kept: float) -> list[Tensor]:
    """Step 3 in the tangent direction, divided by s, of each stack: pairs of one shape after the other."""
    order = factors.order
    found: dict[int, tuple[Tensor, ...]] = {
        i: (X, N, root)
        for i, X, N, root in zip(
            order,
            (X for stack in factors.Xs for X in stack.unbind()),
            (N for stack in factors.Ns for N in stack.unbind()),
            R.unbind(),
            strict=True,
        )
    }
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for i in range(0, len(order), 2):
        alone = i if R.device.type == "cpu" else -1
        kinds.setdefault((found[i][0].shape, found[i + 1][0].shape, alone), []).append(i)
    steps: dict[int, Tensor] = {}
    for pairs in kinds.values():
        A, N_A, R_A = (stacked([found[i][k] for i in pairs]) for k in range(3))
        B, N_B, R_B = (stacked([found[i + 1][k] for i in pairs]) for k in range(3))
        size = group["lr"] * (factors.shapes[pairs[0]] if group["scale"] == "spectral" else 1.0) / kept
        a, b = tangent_steps(A, B, N_A, N_B, R_A, R_B, group["msign"], size)
        for i, one, other in zip(pairs, a.unbind(), b.unbind(), strict=True):
            steps[i], steps[i + 1] = one, other
    return [stacked([steps[i] for i in own]) for own in factors.places]


def _bounded_steps(group: Mapping[str, Any], factors: Factors, kept: float) -> list[Tensor]:
    """Step 3, divided by s, with the longest eta for which ||dW||_2 <= lr sqrt(m / n) is proved.

    Gram matrices, roots and norms are of the numbers in memory, in float64 (float32 on a device without it,
    where the statement is measured and not proved); the polynomials in the form that has a proof.
    """
    dtype, wide = factors.Xs[0].dtype, widest(factors.Xs[0].device)
    R = cholesky_root(symmetric_products([(X.mT, X) for X in (X.to(wide) for X in factors.Xs)]))
    rho, norms = spectral_norm_upper(R), torch.cat([spectral_norm_upper(X) for X in factors.Xs])
    eta = bounded_length(
        (rho, factors.of_partners(rho)),
        (norms, factors.of_partners(norms)),
        _radii(group, factors, R),
        supremum=SUPREMA[group["msign"]] * rounding_guard(dtype),
        kept=kept,
        rank=factors.Xs[0].shape[-1],
        eps=torch.finfo(dtype).eps,
    )
    sizes = (eta / (2.0 * kept)).to(dtype)[:, None, None]
    return half_steps(factors.Ns, factors.of_partners(R).to(dtype), group["msign"], sizes, form="plain")
