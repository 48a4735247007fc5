"""Spectron: orthogonalized momenta of factors, bounded updates; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.balance import rebalance
from lowrise.linalg.norms import power_iteration_each, spectral_norm, spectral_norm_upper
from lowrise.linalg.polar import (
    QUINTIC,
    QUINTIC_SUPREMUM,
    newton_schulz_each,
    polar_express_each,
    polar_svd,
    rounding_guard,
)
from lowrise.linalg.precision import full_precision_matmul
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import holds_norm, pairs_step_
from lowrise.optim.engine.options import check_gauge
from lowrise.optim.engine.scheduled import is_rebalanced
from lowrise.optim.engine.units import (
    Layout,
    Shape,
    Unit,
    buckets,
    decay_and_subtract_,
    stacked,
    state_dtype,
    step_of,
    together,
)
from lowrise.optim.rules.orthogonal import NsDtype, check_newton_schulz, iteration_dtype, iteration_flops
from lowrise.optim.rules.spectron import certified_step_size, spectron_step_size

Variant = Literal["published", "certified"]
Decay = Literal["factor", "wd_scaled", "wd_split", "product"]
StepSize = Literal["paper", "tight"]
Ortho = Literal["auto", "ns5", "pe", "svd"]
Norms = Literal["auto", "power", "bound", "exact"]


class Factor(NamedTuple):
    """One factor of a pair; `pair` is the pair's place among those of the call."""

    param: Tensor
    state: dict[str, Tensor]
    pair: int


class Spectron(Optimizer):
    """Spectron for factored weights (Janson, Oyallon, Belilovsky, "Stabilizing Native Low-Rank LLM
    Pretraining", arXiv 2602.12429).

    A weight is stored as W = A B^T and never formed. The step bounds the spectral norm of the change of W,
    whatever the split into A and B. Algorithm 1, per pair A (m x r), B (n x r), momenta M_A, M_B of the same
    shapes from zero:

    1. M <- beta M + (1 - beta) G       for A and for B; no Nesterov, no bias correction
    2. sigma_A, sigma_B = ||A||_2, ||B||_2 of the factors as they enter the step
    3. rho = eta / (sigma_A + sigma_B + 1)
    4. O_A = Ortho(M_A), O_B = Ortho(M_B)                    (m x r), (n x r)
    5. A <- (1 - eta wd) A - rho O_A;   B <- (1 - eta wd) B - rho O_B

    If ||O|| <= 1, the norms are exact and rho <= 1, then without the decay
    ||dW||_2 <= rho (sigma_A + sigma_B) + rho^2 <= eta (Eqs. 12-16). Two variants:

    - `published`: Ortho is the quintic of Algorithm 2 (five steps from M / (||M||_F + 1e-7)), the norms come
      from one warm-started power iteration each (Algorithm 3). Then ||O|| may reach 1.2024 and the norms are
      estimates from below: a good margin, not a theorem. It reproduces the golden fixtures.
    - `certified`: ||dW||_2 <= eta for any gradients. Ortho is Polar Express (seven steps, ||O|| <= 1); the
      norms are bounds from above, s <- s + rho c with c >= ||O||, refreshed every `norm_refresh` steps by
      `spectral_norm_upper`. `certified_step_size` deals with the rounding of the stored weights;
      docs/methods/spectron.md says what holds in bfloat16 and with decay.

    The authors' code was not public when this was written; docs/methods/spectron.md names the sources.

    State per factor X (k x r): `momentum` (k r elements), `step`, and `u` (k; norms by power iteration) or
    `norm_bound` (1; norms from above). Role: "factors"; all other parameters by built-in AdamW.
    FLOPs per step and factor, p = min(k, r), q = max(k, r): i (4 p^2 q + 2 p^3) with i = ns_steps or 7; plus
    (2 + 4 power_iters) k r for power iteration or (2 p^2 q + 24 p^3) / norm_refresh for the bound; plus
    7 k r.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: eta, in units of the spectral norm of a change of W; 0.01 is shown stable in the paper.
        momentum: Decay rate beta of the momenta; 0.95 as published.
        weight_decay: Decoupled weight decay wd of the factors, as `decay` says; off by default.
        variant: published: the paper's algorithm; certified: the norm of an update is at most lr, proved.
        decay: How the factors decay. factor: A (1 - lr wd), as published; wd_scaled: A (1 - rho wd);
            wd_split: A sqrt(1 - lr wd), so that W itself decays by 1 - lr wd; product: the Frobenius norm of
            A B^T, A - lr wd A B^T B and B - lr wd B A^T A, before step 2.
        step_size: paper: rho = lr / (s + 1) with s = sigma_A + sigma_B; tight: all of the bound, the root of
            c rho s + c^2 rho^2 = lr.
        ortho: How momenta are orthogonalized. auto: ns5 for published, pe for certified; ns5: the quintic of
            the paper; pe: Polar Express; svd: the slow reference.
        norms: Where sigma comes from. auto: power for published, bound for certified; power: power iteration;
            bound: bounds from above; exact: the slow reference.
        ns_steps: Iterations of ns5; 5 as published.
        ns_coefficients: The a, b, c of ns5; the published ones.
        ns_eps: Added to the Frobenius norm before ns5 divides by it; 1e-7 as published.
        ns_dtype: Dtype of ns5. auto: bfloat16 on CUDA for published, else float32, and float64 for float64
            weights; fast: as in Muon.
        power_iters: Power iterations per step and factor; 1 as published, warm-started.
        norm_refresh: Steps between two refreshes of the bounds (norms = bound only; below float32 every
            step).
        rebalance_every: Steps between two changes to balanced factors, A^T A = B^T B; 0: never.
        orthogonalize: False, for ablations (published only): the momentum itself instead of Ortho(M).
        renormalize: False, for ablations (published only): rho = lr instead of lr / (s + 1).
        seed: Seed of the start vectors of the power iteration.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"factors"})
    ball_roles: ClassVar[frozenset[str]] = roles

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        variant: Variant = "published",
        decay: Decay = "factor",
        step_size: StepSize = "paper",
        ortho: Ortho = "auto",
        norms: Norms = "auto",
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        ns_eps: float = 1e-7,
        ns_dtype: NsDtype = "auto",
        power_iters: int = 1,
        norm_refresh: int = 20,
        rebalance_every: int = 0,
        orthogonalize: bool = True,
        renormalize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        check_newton_schulz("Spectron", group)
        for key, least in (("power_iters", 0), ("norm_refresh", 1), ("rebalance_every", 0)):
            if group[key] < least:
                raise UsageError(f"Spectron has {key} = {group[key]}; it must be at least {least}.")
        if group["rebalance_every"]:
            option = f"rebalance_every = {group['rebalance_every']}"
            check_gauge(group, option, who="Spectron", remedy="leave it out")
        if group["variant"] == "certified":
            _check_certifiable(group)

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        _, norms = resolved(options)
        extra: dict[str, Any] = {"power": lambda s: {"u": (s[0],)}, "bound": lambda s: {"norm_bound": ()}}
        return tuple({"momentum": s, **extra.get(norms, lambda s: {})(s)} for s in shapes)

    def _start_state(
        self, group: dict[str, Any], param: Tensor, index: int, state: dict[str, Tensor]
    ) -> None:
        if "u" in state:
            generator = torch.Generator().manual_seed(group["seed"] * 1_000_003 + index)
            u = torch.randn(param.shape[0], generator=generator, dtype=torch.float64)
            state["u"].copy_(u / torch.linalg.vector_norm(u))
        if "norm_bound" in state:
            # A bound of anything, and finite; the first step refreshes it.
            state["norm_bound"].fill_(torch.finfo(state["norm_bound"].dtype).max)

    def rewritten(self) -> list[Tensor]:
        """Pairs that were rebalanced."""
        return self._rebalanced_pairs()

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        kinds: dict[tuple[Any, ...], list[Unit]] = {}
        for unit in units:
            A, B = unit.params
            kinds.setdefault((A.device, A.dtype, B.dtype, A.shape[1]), []).append(unit)
        for alike in kinds.values():
            if group["variant"] == "certified":
                with full_precision_matmul(alike[0].params[0].device):
                    _update_pairs(group, alike)
            else:
                _update_pairs(group, alike)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        ortho, norms = resolved(options)
        total = 0.0
        for k, r in (tuple(s) for s in shapes):
            p, q = min(k, r), max(k, r)
            svd = 6 * p * p * q + 20 * p**3
            if options["orthogonalize"]:
                steps = {"ns5": options["ns_steps"], "pe": 7}
                total += svd if ortho == "svd" else iteration_flops(k, r, steps[ortho])
            total += {
                "none": 0,
                "power": (2 + 4 * options["power_iters"]) * k * r,
                "bound": (2 * p * p * q + 24 * p**3) / options["norm_refresh"],
                "exact": svd,
            }[norms]
            total += 7 * k * r
        return round(total)


def resolved(options: Mapping[str, Any]) -> tuple[str, str]:
    """(ortho, norms) with "auto" replaced by what the variant uses; norms is "none" without
    renormalization, and where `hyperball` fixes the norm of A B^T.
    """
    certified = options["variant"] == "certified"
    ortho = options["ortho"] if options["ortho"] != "auto" else ("pe" if certified else "ns5")
    norms = options["norms"] if options["norms"] != "auto" else ("bound" if certified else "power")
    scaled = options["renormalize"] and not holds_norm(options)  # a scale of both factors' steps cancels
    return ortho, norms if scaled else "none"


def _check_certifiable(group: Mapping[str, Any]) -> None:
    ortho, norms = resolved(group)
    reasons = {
        "orthogonalize = False": not group["orthogonalize"],
        "renormalize = False": not group["renormalize"],
        "a trained residual beside A (layer.train_alpha)": math.isinf(group.get("residual_norm", 0.0)),
        "hyperball = True (which makes every step lr ||A B^T||_F long)": holds_norm(group),
        f"norms = {norms!r} (an estimate, not a bound from above)": norms in ("power", "exact"),
        f"ns_dtype = {group['ns_dtype']!r} (its rounding exceeds the bound)": group["ns_dtype"] == "bfloat16",
        f"ns_coefficients = {group['ns_coefficients']} (their supremum is not known here)": ortho == "ns5"
        and tuple(group["ns_coefficients"]) != QUINTIC,
    }
    failed = [reason for reason, holds in reasons.items() if holds]
    if failed:
        raise UsageError(
            f"Spectron cannot certify ||dW|| <= lr with {' and '.join(failed)}; "
            'drop the option or use variant="published".'
        )


def _update_pairs(group: Mapping[str, Any], units: Sequence[Unit]) -> None:
    """Algorithm 1 for pairs of one device, dtype and rank; the numbers are those of the class's docstring."""
    factors = [
        Factor(p, s, pair)
        for pair, unit in enumerate(units)
        for p, s in zip(unit.params, unit.states, strict=True)
    ]
    grads = [g for unit in units for g in unit.grads]
    torch._foreach_lerp_([f.state["momentum"] for f in factors], grads, 1.0 - group["momentum"])  # 1
    sigma = _norms(group, factors)  # 2: (pairs, 2)
    rho, supremum = _step_sizes(group, units, sigma)  # 3: (pairs,)
    decay = _decay(group, rho)
    rho_of = rho.unbind()
    factor, factors_of = (None, decay.unbind()) if isinstance(decay, Tensor) else (decay, None)
    steps: dict[int, Tensor] = {}
    for members in _chunks(factors):
        Ds = _directions(group, members, torch.stack([rho_of[f.pair] for f in members])[:, None, None])  # 4
        if holds_norm(group):
            steps.update(zip((id(f.param) for f in members), Ds, strict=True))
            continue
        shrink = [factors_of[f.pair] for f in members] if factors_of is not None else factor
        decay_and_subtract_([f.param for f in members], Ds, shrink)  # 5
    if holds_norm(group):
        pairs_step_(group, units, [(steps[id(A)], steps[id(B)]) for A, B in (u.params for u in units)])
    if resolved(group)[1] == "bound":
        _grow_bounds(factors, sigma, rho * supremum, decay)
    _rebalance_due(group, units)


def _chunks(factors: Sequence[Factor]) -> Iterator[list[Factor]]:
    """Factors of one dtype in their shapes' order, a bounded number of elements at a time."""
    for chunk in together(factors, lambda factor: factor.param):
        yield [factor for bucket in chunk for factor in bucket]


def _norms(group: Mapping[str, Any], factors: Sequence[Factor]) -> Tensor:
    """Step 2: the norms (estimates, bounds or exact) as (pairs, 2); updates `u` and `norm_bound`."""
    method = resolved(group)[1]
    values: dict[int, Tensor] = {}
    if method == "bound":
        due = [f for f in factors if _refresh_due(group, f)]
        _refresh_bounds(due)
        values = {id(f): f.state["norm_bound"] for f in factors}
    elif method != "none":
        for chunk in together(factors, lambda factor: factor.param):
            members = [factor for bucket in chunk for factor in bucket]
            Xs = [stacked([f.param for f in bucket]).to(state_dtype(bucket[0].param)) for bucket in chunk]
            if method == "power":
                us = [f.state["u"] for f in members]
                stacks = [stacked([f.state["u"] for f in bucket]) for bucket in chunk]
                sigma, moved = power_iteration_each(Xs, stacks, iters=group["power_iters"])
                torch._foreach_copy_(us, [u for stack in moved for u in stack.unbind()])
            else:
                sigma = torch.cat([spectral_norm(X) for X in Xs])
            values.update({id(f): value for f, value in zip(members, sigma.unbind(), strict=True)})
    else:
        zero = torch.zeros((), dtype=state_dtype(factors[0].param), device=factors[0].param.device)
        values = {id(f): zero for f in factors}
    return torch.stack([values[id(f)] for f in factors]).view(-1, 2)


def _refresh_due(group: Mapping[str, Any], factor: Factor) -> bool:
    """Every norm_refresh updates from the first; below float32 at each, as rounding then outweighs the
    recursion's step.
    """
    narrow = factor.param.dtype not in (torch.float32, torch.float64)
    return narrow or (step_of(factor.state) - 1) % group["norm_refresh"] == 0


def _refresh_bounds(factors: Sequence[Factor]) -> None:
    for bucket in buckets(factors, lambda f: f.param):
        bounds = spectral_norm_upper(torch.stack([f.param for f in bucket]))
        torch._foreach_copy_([f.state["norm_bound"] for f in bucket], list(bounds.unbind()))


def _step_sizes(group: Mapping[str, Any], units: Sequence[Unit], sigma: Tensor) -> tuple[Tensor, float]:
    """Step 3: rho per pair, and c >= ||O||, the most by which one unit of rho may change the norm of a
    factor.
    """
    A, B = units[0].params
    rank, lr = A.shape[1], group["lr"]
    ortho, _ = resolved(group)
    supremum = (QUINTIC_SUPREMUM if ortho == "ns5" else 1.0) * rounding_guard(sigma.dtype)
    if resolved(group)[1] == "none":
        return torch.full_like(sigma[:, 0], lr), supremum
    if group["variant"] == "published":
        return spectron_step_size(sigma[:, 0], sigma[:, 1], lr, rule=group["step_size"]), supremum
    eps = max(torch.finfo(A.dtype).eps, torch.finfo(B.dtype).eps)
    rho = certified_step_size(
        sigma[:, 0] + group.get("residual_norm", 0.0),  # ||A + E||, where the layer adds E
        sigma[:, 1],
        lr,
        rule=group["step_size"],
        supremum=supremum,
        rank=rank,
        eps=eps if eps <= torch.finfo(torch.float32).eps else 0.0,
    )
    return rho, supremum


def _decay(group: Mapping[str, Any], rho: Tensor) -> float | Tensor | None:
    """The factor of A and B in step 5: None without decay, a number, or (pairs,) for wd_scaled. Never
    negative.
    """
    wd, lr = group["weight_decay"], group["lr"]
    if not wd:
        return None
    if group["decay"] == "wd_scaled":
        return (1.0 - rho * wd).clamp_min(0.0)
    kept = max(0.0, 1.0 - lr * wd)
    return math.sqrt(kept) if group["decay"] == "wd_split" else kept


def _directions(group: Mapping[str, Any], factors: Sequence[Factor], rho: Tensor) -> list[Tensor]:
    """Step 4: rho Ortho(M) of each factor, (k, r), in a new tensor; rho is (factors, 1, 1)."""
    Ms = [factor.state["momentum"] for factor in factors]
    rho = rho.to(Ms[0].dtype)
    ortho, _ = resolved(group)
    if not group["orthogonalize"] or ortho == "svd":
        found = [polar_svd(M) for M in Ms] if group["orthogonalize"] else Ms
        return [M * one for M, one in zip(found, rho.unbind(), strict=True)]
    if ortho == "pe":
        return polar_express_each(Ms, scale=rho)
    certified = group["variant"] == "certified"
    return newton_schulz_each(
        Ms,
        steps=group["ns_steps"],
        coefficients=group["ns_coefficients"],
        eps=group["ns_eps"],
        dtype=Ms[0].dtype if certified else iteration_dtype(group["ns_dtype"], Ms[0]),
        scale=rho,
        form="plain" if certified else "auto",  # the quintic's bound has no room for the Gram form's rounding
    )


def _grow_bounds(
    factors: Sequence[Factor], bounds: Tensor, moved: Tensor, decay: float | Tensor | None
) -> None:
    """||X_new|| <= decay s + rho c, and 4 eps sqrt(r) of it for rounding: of the weights (eps/2 sqrt(r)) and
    of this line.
    """
    X = factors[0].param
    kept = 1.0 if decay is None else decay[:, None] if isinstance(decay, Tensor) else decay
    growth = 1.0 + 4.0 * math.sqrt(X.shape[1]) * torch.finfo(X.dtype).eps
    grown = (bounds * kept + moved[:, None]) * growth
    torch._foreach_copy_([f.state["norm_bound"] for f in factors], list(grown.flatten().unbind()))


def _rebalance_due(group: Mapping[str, Any], units: Sequence[Unit]) -> None:
    """Every `rebalance_every` updates, after the step (gradients belong to the old gauge): A T, B T^-T, M_A
    T^-T, M_B T.

    The power iterations start again at the leading singular vectors, which the balanced factors show in
    column 0.
    """
    due = [unit for unit in units if is_rebalanced(group, unit.states[0])]
    for unit in due:
        (A, B), (state_A, state_B) = unit.params, unit.states
        dtype = state_dtype(A)
        new_A, new_B, T = rebalance(A.to(dtype), B.to(dtype))
        A.copy_(new_A)
        B.copy_(new_B)
        # T, with signs, has the condition of R_B; no LAPACK error for one that is singular to rounding.
        M_A, failed = torch.linalg.solve_ex(T, state_A["momentum"].mT)
        moved = M_A.mT, state_B["momentum"] @ T
        sound = (failed == 0) & torch.stack([M.isfinite().all() for M in moved]).all()
        for state, M in zip(unit.states, moved, strict=True):
            state["momentum"].copy_(torch.where(sound, M, 0.0))
        for X, state in ((new_A, state_A), (new_B, state_B)):
            if "u" in state:
                length = torch.linalg.vector_norm(X[:, 0])
                state["u"].copy_(torch.where(length > 0, X[:, 0] / length, state["u"]))
    if due and resolved(group)[1] == "bound":
        _refresh_bounds([Factor(p, s, 0) for u in due for p, s in zip(u.params, u.states, strict=True)])
