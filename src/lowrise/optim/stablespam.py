"""Stable-SPAM: Adam behind clipped and normalized gradients; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.norms import frobenius, largest_entries, nonzero
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.engine.units import Layout, Shape, Unit, stacked, step_of, together
from lowrise.optim.rules.adamw import ADAMW_FLOPS_PER_ELEMENT, adamw_layout, adamw_update_

ResetCounter = Literal["shared", "separate"]
ResetMoments = Literal["before", "after"]

SCALARS = ("m_max", "m_norm", "v_norm")

Member = tuple[Tensor, Tensor, dict[str, Tensor]]  # parameter, gradient, state


class StableSPAM(Optimizer):
    """Stable-SPAM (Huang et al. 2025, arXiv 2502.17055; code TianjinYellow/StableSPAM): AdamW whose gradient
    is clipped entry by entry and brought to a smoothed norm, and whose moments are dropped now and then.

    Per tensor W with gradient G, moments m, v and scalars a, p, s from zero, all steps for every role; t
    counts its updates from 1, learning rate lr:

    1. c = 1, or with `total_steps` = T: eta_min + (1 - eta_min) (1 + cos(pi t / (T + 1))) / 2
    2. a <- theta a + (1 - theta) max|G|;  l = a / (1 - theta^k)
       entries with |G| > l:  G <- G l / max|G|
    3. q = ||G||_F;  p <- g1 c p + (1 - g1 c) q;  s <- g2 s + (1 - g2) q^2
       G <- (G / q) [p / (1 - (g1 c)^k)] / (sqrt(s / (1 - g2^k)) + eps), if q > 0
    4. every `reset_every` updates: m = v = 0
    5. AdamW with G, betas (b1 c, b2), weight decay wd first, and j for t in the bias corrections

    k and j are t until the first reset. Then j counts from 1 again, the update of the reset included.
    reset_counter "shared", as released: k is that same counter, one update later, though a, p and s stay. So
    l is some 500 a after a reset, and nothing is clipped for hundreds of updates. "separate": k = t.

    reset_moments "before": as said. "after": what the released code does. It exchanges m and v in the state
    while the update goes on with the old ones and j = 1: a step of old moments, about a third as long, and
    the gradient of that update is in no moment afterwards.

    b1 c changes from step to step while the corrections take it for constant: as released. Updates do not
    depend on the scale of the gradients, so clipping them as a whole changes nothing but a, p and s.

    State per tensor: `exp_avg`, `exp_avg_sq` of its shape, the scalars `m_max` (a), `m_norm` (p), `v_norm`
    (s), and `step`. Roles: all. Maximum and norm are of the whole tensor: sharded tensors are moved by an
    owner that has them whole. FLOPs per step: 23 per element.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 1e-3 is the released code's, 8e-4 that of its 130M script.
        betas: Decay rates b1, b2 of the two moments; (0.9, 0.999) as released.
        eps: Added to the root of the second moment, and to that of s; 1e-8 as released.
        weight_decay: Decoupled weight decay wd of all parameters; 0 as released.
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.
        gamma1: Decay rate g1 of the mean norm p; 0.7 as released, 0.85 in its bfloat16 script.
        gamma2: Decay rate g2 of the mean square s; 0.9 as released, 0.99999 in its bfloat16 script.
        theta: Decay rate of the mean maximum a; 0.999 as released.
        reset_every: Updates between two resets of the moments; 1000 as released. 0: never.
        reset_counter: What k is after a reset. shared: the moments' counter, as released; separate: t.
        reset_moments: Whether moments are dropped before or after the update of the reset. before: as it
            is meant; after: as the released code runs.
        total_steps: T of step 1, the length of the run. None: that of `lowrise train`, and without a run c =
            1. 0: c = 1.
        eta_min: Least c, at the end of the run; 0.5 as released.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors", "svd", "other"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        theta: float = 0.999,
        reset_every: int = 1000,
        reset_counter: ResetCounter = "shared",
        reset_moments: ResetMoments = "before",
        total_steps: int | None = None,
        eta_min: float = 0.5,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for key in ("gamma1", "gamma2", "theta"):
            if not 0.0 <= group[key] < 1.0:
                raise UsageError(f"StableSPAM has {key} = {group[key]}; it must be at least 0 and below 1.")
        for key in ("reset_every", "total_steps"):
            if group[key] is not None and group[key] < 0:
                raise UsageError(f"StableSPAM has {key} = {group[key]}; it must be at least 0 (0: off).")
        if group["reset_every"] == 1:
            raise UsageError(
                "StableSPAM has reset_every = 1, which leaves no moments; choose 2 or more, or 0 for none."
            )
        if not 0.0 <= group["eta_min"] <= 1.0:
            raise UsageError(f"StableSPAM has eta_min = {group['eta_min']}; choose a number from 0 to 1.")

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        return tuple({**layout, **dict.fromkeys(SCALARS, ())} for layout in adamw_layout(shapes))

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates after which the moments are those of one gradient, or none, by the count of own steps."""
        periods = {group["reset_every"] for group in self.param_groups if group["reset_every"]}
        steps = {step for period in periods for step in range(period, total_steps - skipped, period)}
        return tuple(sorted(step + skipped for step in steps))

    def timed(self, number: int, total: int) -> object:
        """Whether T is the length of the run: then c at every update depends on it."""
        return [group["total_steps"] == total for group in self.param_groups]

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        for t, members in _by_step(units):
            for chunk in together(members, lambda member: member[0]):
                _move(group, chunk, t)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        # Maximum 2, comparison 1, clipped entries 2, norm 2, normalization 2; AdamW 14.
        return (9 + ADAMW_FLOPS_PER_ELEMENT) * sum(math.prod(shape) for shape in shapes)


def _by_step(units: list[Unit]) -> Iterator[tuple[int, list[Member]]]:
    """Tensors by the number of this update, with their gradients and state."""
    members = [m for unit in units for m in zip(unit.params, unit.grads, unit.states, strict=True)]
    by_step: dict[int, list[Member]] = {}
    for member in members:
        by_step.setdefault(step_of(member[2]), []).append(member)
    yield from by_step.items()


def _move(group: Mapping[str, Any], chunk: Sequence[Sequence[Member]], t: int) -> None:
    """One update of tensors, those of one shape in a sequence, the t-th of each."""
    members = [member for same in chunk for member in same]
    params, states = [p for p, _, _ in members], [state for _, _, state in members]
    c, every = cosine_factor(t, group["total_steps"], group["eta_min"]), group["reset_every"]
    k = t if group["reset_counter"] == "separate" else counter(t - 1, every) + 1
    scalars = [torch.stack([state[name] for state in states]) for name in SCALARS]
    Gs = smoothed(
        [stacked([grad for _, grad, _ in same]) for same in chunk], scalars, k,
        gammas=(group["gamma1"] * c, group["gamma2"]), theta=group["theta"], eps=group["eps"],
    )  # fmt: skip
    torch._foreach_copy_(
        [state[name] for name in SCALARS for state in states],
        [x for stack in scalars for x in stack.unbind()],
    )
    exp_avgs, exp_avg_sqs = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    resets = every > 0 and t % every == 0
    if resets and group["reset_moments"] == "before":
        torch._foreach_zero_(exp_avgs + exp_avg_sqs)
    b1, b2 = group["betas"]
    adamw_update_(
        params, [G for stack in Gs for G in stack.unbind()], exp_avgs, exp_avg_sqs,
        [float(counter(t, every))] * len(params),
        lr=group["lr"], betas=(b1 * c, b2), eps=group["eps"], weight_decay=group["weight_decay"],
    )  # fmt: skip
    if resets and group["reset_moments"] == "after":
        torch._foreach_zero_(exp_avgs + exp_avg_sqs)


def smoothed(
    Gs: Sequence[Tensor],
    scalars: list[Tensor],
    k: int,
    *,
    gammas: tuple[float, float],
    theta: float,
    eps: float,
) -> list[Tensor]:
    """Steps 2 and 3 for stacks G (b, ...), in new tensors; the scalars a, p, s (sum of b,) in place.

    Only what is elementwise is done stack by stack.
    """
    a, p, s = scalars
    g1, g2 = gammas
    flat = [G.reshape(len(G), 1, -1) for G in Gs]
    largest = largest_entries(flat).flatten()
    a.lerp_(largest, 1.0 - theta)
    limit = a / (1.0 - theta**k)
    # Where entries are clipped it is below 1; elsewhere it must be finite, as `lerp` multiplies it by 0.
    share = (limit / nonzero(largest)).clamp_(max=1.0)
    limits, shares = (_along(Gs, each) for each in (limit, share))
    clipped = [
        torch.lerp(G, G * share, above(G, most)) for G, most, share in zip(Gs, limits, shares, strict=True)
    ]
    q = frobenius([G.reshape(len(G), 1, -1) for G in clipped]).flatten()
    p.lerp_(q, 1.0 - g1)
    s.lerp_(q.square(), 1.0 - g2)
    wanted = p / (1.0 - g1**k) / ((s / (1.0 - g2**k)).sqrt_().add_(eps))
    one = torch.ones_like(q)
    zero = q == 0  # a zero gradient is left alone
    norms, wants = (_along(Gs, torch.where(zero, one, each)) for each in (q, wanted))
    # Divided by itself: q may be subnormal.
    return [G.div_(norm).mul_(want) for G, norm, want in zip(clipped, norms, wants, strict=True)]


def above(G: Tensor, limit: Tensor) -> Tensor:
    """1 where |G| > limit, else 0, in G's dtype, for `torch.lerp`: a comparison and `torch.where` take twice
    as long on a CPU.
    """
    return G.abs().sub_(limit).sign_().clamp_min_(0.0)


def _along(Gs: Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
    """Numbers (sum of b,), one of each tensor, in the shapes that go with the stacks (b, ...)."""
    parts = numbers.split([len(G) for G in Gs])
    return [part.view(-1, *[1] * (G.ndim - 1)) for part, G in zip(parts, Gs, strict=True)]


def counter(t: int, reset_every: int) -> int:
    """j at update t: 1 at a reset, counted on from there; t before the first one."""
    last = t - t % reset_every if reset_every else 0
    return t if last == 0 else t - last + 1


def cosine_factor(t: int, total_steps: int | None, eta_min: float) -> float:
    """c of step 1."""
    if not total_steps:
        return 1.0
    return eta_min + (1.0 - eta_min) * (1.0 + math.cos(math.pi * t / (total_steps + 1))) / 2.0
