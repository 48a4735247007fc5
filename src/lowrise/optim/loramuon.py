"""LoRA-Muon: orthogonalized momenta of the product of two factors; the algorithm is in the class's docstring."""

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
from lowrise.linalg.polar import Form, rounding_guard
from lowrise.linalg.precision import full_precision_matmul
from lowrise.optim.engine.base import Optimizer
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
from lowrise.optim.muon import iteration_flops
from lowrise.optim.rules.loramuon import (
    SCHEDULES,
    SUPREMA,
    Msign,
    bounded_length,
    half_step,
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
ROOT_FLOPS = {"cholesky": 4 / 3, "eigh": 9, "iterated": 8 * len(TWELVE_STEPS), "ns7": 8 * len(SEVEN_STEPS)}  # r^3
NORM_SQUARINGS = 40  # of `rebalance_every`: norms to rounding


class Pairs(NamedTuple):
    """Pairs of one shape, stacked, in the dtype of the state: what the steps 2 to 4 work on."""

    A: Tensor  # (b, m, r)
    B: Tensor  # (b, n, r)
    N_A: Tensor
    N_B: Tensor


class LoRAMuon(Optimizer):
    """LoRA-Muon for factored weights (Cesista, Crowson, Simal, Biderman, arXiv 2606.12921): Muon's step of the
    product W = A B^T, whatever the split into A and B.

    W is stored as A (m x r), B (n x r) and never formed. Either half of the first-order change of W,
    dA B^T and A dB^T, is half a partial isometry, so that ||dA B^T + A dB^T||_2 <= eta. Algorithm 1, per pair
    with momenta M_A, M_B of the factors' shapes from zero:

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
    - R is the inverse of the Cholesky factor and not the symmetric root of the paper: msign(X Q) = msign(X) Q,
      so the step is the same (LoRA-RITE's core), it costs a seventh of eigenvectors, and nothing waits for the
      device. The published root of seven matrix products (`root = "ns7"`) adds 1e-5 to the normalized S, which
      breaks the invariance by 0.5% of W in ten steps.
    - A zero factor gives R = 0: its partner does not move, and no step is taken along directions that are
      rounding beside others.
    - eta = lr sqrt(m / n), so that one lr serves every shape; the paper has no such factor
      (`scale = "none"`).
    - dA dB^T has no bound of its own: it is as large as eta^2 / (4 s^2 ||.||) of the smallest singular values
      of A and B allow. `bound = "whole"` shortens eta until ||dW||_2 <= lr sqrt(m / n) is proved for the whole
      step after the decay, with float32 rounding, as in Spectron's certificate.

    The authors' code and text were not at hand when this was written; docs/methods/loramuon.md names the sources.

    State per factor X (k x r): `momentum` (k r elements), and `step`. Role: "factors"; all other parameters by
    built-in AdamW. FLOPs per step and factor (direction "halves"): 6 r^2 k, i (4 r^2 k + 2 r^3) with i = 5 or
    7 or 8 steps in the plain form, which is what is counted, c r^3 for the root with c = 4/3, 9, 96 or 56, and
    10 k r; "tangent" adds 20 r^2 k and has the 2r x 2r core in the place of k x r.

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
            steps and costs a third more (msign of quintic5 or pe7, direction halves, root cholesky).
        rebalance_every: Steps between two changes to ||A||_2 = ||B||_2 by one number, which moves the momenta
            along and leaves W; 0: never.
        rebalance_alpha: How far they go there, above 0 (not at all) to 1.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"factors"})

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
            raise UsageError(f"LoRAMuon has rebalance_every = {group['rebalance_every']}; it must be at least 0.")
        if not 0.0 < group["rebalance_alpha"] <= 1.0:
            raise UsageError(
                f"LoRAMuon has rebalance_alpha = {group['rebalance_alpha']}; give a number above 0 and at most 1."
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

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        kinds: dict[tuple[Any, ...], list[Unit]] = {}
        for unit in units:
            A, B = unit.params
            kinds.setdefault((A.device, A.dtype, B.dtype, A.shape, B.shape), []).append(unit)
        for alike in kinds.values():
            with full_precision_matmul(alike[0].params[0].device):
                directions = _momenta(group, alike)  # 1
                _rebalance_due(group, alike, directions)
                limit = batch_elements(alike[0].params[0].device)
                for chunk in chunked(range(len(alike)), lambda i: _elements(alike[i]), limit):
                    _move_pairs(group, [alike[i] for i in chunk], [directions[i] for i in chunk])


def _split_factor(group: Mapping[str, Any]) -> float:
    """s of step 4; `UsageError` where the decay would be all of W."""
    if group["decay"] != "split":
        return 1.0
    shrink = group["lr"] * group["weight_decay"]
    if not shrink < 1.0:
        raise UsageError(
            f"LoRAMuon has lr = {group['lr']} and weight_decay = {group['weight_decay']}, and step 4 divides by "
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
            f"LoRAMuon cannot bound the whole change of W with {' and '.join(failed)}; drop the option or use "
            'bound="first_order".'
        )


def _momenta(group: Mapping[str, Any], units: Sequence[Unit]) -> list[tuple[Tensor, ...]]:
    """Step 1; N of each pair: the momenta themselves, or Nesterov's in new tensors."""
    beta = group["momentum"]
    momenta = [state["momentum"] for unit in units for state in unit.states]
    grads = [grad for unit in units for grad in unit.grads]
    torch._foreach_lerp_(momenta, grads, 1.0 - beta)
    if group["nesterov"]:
        momenta = [torch.lerp(G, M, beta) for G, M in zip(grads, momenta, strict=True)]
    return list(zip(momenta[::2], momenta[1::2], strict=True))


def _rebalance_due(
    group: Mapping[str, Any], units: Sequence[Unit], directions: Sequence[tuple[Tensor, ...]]
) -> None:
    """Algorithm 2, every `rebalance_every` updates, in place: c A, B / c, and the momenta the other way, with
    c = (||B||_2 / ||A||_2)^(alpha/2). A pair with a zero factor stays.
    """
    every = group["rebalance_every"]
    due = [i for i, unit in enumerate(units) if every and int(unit.states[0]["step"].item()) % every == 0]
    if not due:
        return
    # The relative guard of the bounds from above cancels in the ratio.
    norm_A, norm_B = (
        spectral_norm_upper(torch.stack([units[i].params[place] for i in due]), squarings=NORM_SQUARINGS)
        for place in (0, 1)
    )
    ratio = torch.where((norm_A > 0) & (norm_B > 0), norm_B / norm_A, 1.0)
    factors = (ratio ** (group["rebalance_alpha"] / 2)).unbind()
    for i, c in zip(due, factors, strict=True):
        (A, B), (M_A, M_B) = units[i].params, (state["momentum"] for state in units[i].states)
        A.mul_(c)
        B.div_(c)
        for larger, smaller in {(M_B, M_A), directions[i][::-1]}:
            larger.mul_(c)
            smaller.div_(c)


def _move_pairs(
    group: Mapping[str, Any], units: Sequence[Unit], directions: Sequence[tuple[Tensor, ...]]
) -> None:
    """Steps 2 to 4 for pairs of one shape; the numbers are those of the class's docstring."""
    dtype = state_dtype(units[0].params[0])
    A, B = (stacked([unit.params[place] for unit in units]).to(dtype) for place in (0, 1))
    pairs = Pairs(A, B, *(stacked([pair[place] for pair in directions]) for place in (0, 1)))
    kept = _split_factor(group)
    S_A, S_B = A.mT @ A, B.mT @ B  # 2
    if group["bound"] == "whole":
        D_A, D_B = _bounded_steps(group, pairs, kept)
    else:
        R_A, R_B = _roots(group, torch.cat([S_A, S_B])).chunk(2)
        D_A, D_B = _steps(group, pairs, R_A, R_B, _radius(group, A, B) / kept)
    rate = group["lr"] * group["weight_decay"]
    if group["decay"] == "product" and rate:
        cut = product_decay_rate(S_A, S_B, rate)
        D_A, D_B = torch.baddbmm(D_A, A, S_B * cut), torch.baddbmm(D_B, B, S_A * cut)
    for place, D in ((0, D_A), (1, D_B)):
        params = [unit.params[place] for unit in units]
        decay_and_subtract_(params, list(D.unbind()), kept if kept != 1.0 else None)  # 4


def _radius(group: Mapping[str, Any], A: Tensor, B: Tensor) -> float:
    """eta."""
    shape = math.sqrt(A.shape[-2] / B.shape[-2]) if group["scale"] == "spectral" else 1.0
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
    group: Mapping[str, Any], pairs: Pairs, R_A: Tensor, R_B: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Step 3: -dA and -dB for this eta."""
    if group["direction"] == "tangent":
        return tangent_steps(*pairs, R_A, R_B, group["msign"], eta)
    return _half_steps(group, pairs, R_A, R_B, eta / 2)


def _half_steps(
    group: Mapping[str, Any], pairs: Pairs, R_A: Tensor, R_B: Tensor, size: Tensor | float, *, form: Form = "auto"
) -> tuple[Tensor, Tensor]:
    """Both halves, of dA and of dB."""
    D_A = half_step(pairs.N_A, R_B, group["msign"], size, form=form)
    return D_A, half_step(pairs.N_B, R_A, group["msign"], size, form=form)


def _bounded_steps(group: Mapping[str, Any], pairs: Pairs, kept: float) -> tuple[Tensor, Tensor]:
    """Step 3 with the longest eta for which ||dW||_2 <= lr sqrt(m / n) is proved.

    Gram matrices, roots and norms are of the numbers in memory, in float64 (float32 on a device without it, where
    the statement is measured and not proved); the polynomials in the form that has a proof.
    """
    wide = torch.float32 if pairs.A.device.type == "mps" else torch.float64
    grams = [X.mT @ X for X in (pairs.A.to(wide), pairs.B.to(wide))]
    R_A, R_B = cholesky_root(torch.cat(grams)).chunk(2)
    (rho_A, rho_B), (s_A, s_B) = ([spectral_norm_upper(X) for X in Xs] for Xs in ((R_A, R_B), pairs[:2]))
    dtype = pairs.A.dtype
    eta = bounded_length(
        rho_A,
        rho_B,
        s_A,
        s_B,
        _radius(group, pairs.A, pairs.B),
        supremum=SUPREMA[group["msign"]] * rounding_guard(dtype),
        kept=kept,
        rank=pairs.A.shape[-1],
        eps=torch.finfo(dtype).eps,
    )
    size = (eta / (2 * kept)).to(dtype)[:, None, None]
    return _half_steps(group, pairs, R_A.to(dtype), R_B.to(dtype), size, form="plain")


def _elements(unit: Unit) -> int:
    return sum(p.numel() for p in unit.params)
