"""GWT: Adam on Haar approximations of the gradient; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.haar import block_sums, rebuilt
from lowrise.linalg.norms import frobenius
from lowrise.linalg.passes import Passes
from lowrise.linalg.stacks import copied_out
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.hyperball import BALL_ROLES, step_
from lowrise.optim.engine.natively import divided
from lowrise.optim.engine.options import parameter_name
from lowrise.optim.engine.units import Layout, Shape, Unit, stacked, together
from lowrise.optim.rules.adamw import Form, adam_moments_
from lowrise.optim.rules.growth_limiter import Limiter, check_limiter, limit_growth


class GWT(Optimizer):
    """GWT: Adam on the Haar approximations of the gradient; the details pass through without state (Wen et
    al. 2025, arXiv 2501.07237; code zqOuO/GWT, waveadamw.py).

    Per matrix W (m x n, out x in) with gradient G, learning rate lr, level l, w = 2^l, K = ceil(n / w), t =
    the number of this step from 1. The transform runs along the n inputs (`linalg/haar.py`):

    1. A (m x K), (D_l, ..., D_1) = haar(G, l)
    2. M <- b1 M + (1 - b1) A;  V <- b2 V + (1 - b2) A o A                                  (m x K)
    3. E = sqrt(V) + eps, the root uncorrected;  N = M / E                                  (m x K)
    4. f = the growth limiter's divisor of ||N||_F (gamma = 1.01);  N <- N / f
    5. D_k <- D_k / (E f), E repeated over the columns that an entry stands for: no momentum for details
    6. U = the inverse transform of N and the details                                      (m x n)
    7. W <- (1 - lr wd) (W - lr scale sqrt(1 - b2^t) / (1 - b1^t) U)

    Every detail over one block of w columns has one divisor, so 5 and 6 need no transform: U is (G - mean of
    the block) / (E f) + N / sqrt(w) (`linalg.haar.rebuilt`, tested against the transform).

    `correct_details`. In 7 the bias correction 1 / (1 - b1^t) of the momentum also multiplies the details,
    which have none: at t = 1, ten times too much, and E holds a single sample then, so a ratio of two
    Gaussians comes out. On white noise (64 x 256, l = 2, scale 1, three draws) the RMS of an update is 600 to
    4,300 at t = 1, 12 to 26 at t = 2, 5.2 to 5.6 at t = 3 and 0.88 from t = 100. The release's schedule
    begins with a rate of exactly 0, lowrise's with 1 / warm-up. True, the default, leaves that factor out for
    the details, which are then divided by the bias-corrected denominator: 60 to 430, 2.3 to 4.9, 1.4 to 1.5,
    0.88. False is the paper's. Use a warm-up in either case.

    The limiter sees the approximations alone, as in the paper.

    State per matrix: `exp_avg`, `exp_avg_sq` (2 m K elements), `update_norm` (1), and `step`. Role: "matrix";
    all other parameters by built-in AdamW in the release's form "hf" (betas, eps).
    FLOPs per step: 6 m n + 18 m K.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate; 0.01 is the release's.
        level: Haar levels l; moments are kept for one of 2^level neighbouring inputs. 2 as published.
        scale: Factor on the update of the matrices, not on their weight decay; 0.25 is the release's.
        betas: Decay rates b1, b2 of the first and second moment of the approximations; the release's.
        eps: Added to the root of the second moment, before bias correction; must be above 0.
        correct_bias: Adam's correction of both moments for their start at zero.
        correct_details: Divide the details by the bias-corrected denominator. False: as published, where the
            first updates are much larger.
        limiter: Limiter of the growth of the approximations' norm. safe: zero and non-finite updates do not
            count; reference: the authors' code; off: none.
        weight_decay: Decoupled weight decay wd, after the update; 0 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix"})
    ball_roles: ClassVar[frozenset[str]] = BALL_ROLES
    adamw_form: ClassVar[Form] = "hf"
    native_passes: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        level: int = 2,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        correct_bias: bool = True,
        correct_details: bool = True,
        limiter: Limiter = "safe",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        check_limiter("GWT", group)
        if not 0.0 <= group["scale"] < math.inf:
            raise UsageError(f"GWT has scale = {group['scale']}; it must be a finite number, 0 or more.")
        if group["role"] not in self.roles:
            return
        if not group["eps"] > 0.0:
            raise UsageError(
                f"GWT has eps = {group['eps']}; it must be above 0 (1e-6 as published), because details are "
                "divided by it where the approximations have been zero."
            )
        for i, param in enumerate(group["params"]):
            most = (param.shape[1] - 1).bit_length()
            if not 0 <= group["level"] <= most:
                raise UsageError(
                    f"GWT has level = {group['level']}, but {parameter_name(group, i)} of shape "
                    f"{tuple(param.shape)} can be halved 0 to {most} times along its columns; choose a level "
                    "among these."
                )

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        (m, n), *_ = shapes
        kept = (m, -(-n // 2 ** options["level"]))
        return ({"exp_avg": kept, "exp_avg_sq": kept, "update_norm": ()},)

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        by_step: dict[int, list[Unit]] = {}
        for unit in units:
            by_step.setdefault(unit.step, []).append(unit)
        for t, same in by_step.items():
            passes, native, rest = divided(group, same, ["exp_avg", "exp_avg_sq"])
            if passes is not None and native:
                _update_natively(passes, group, native, t)
            for chunk in together(rest, lambda unit: unit.params[0]):
                _update_chunk(group, chunk, t)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        (m, n), *_ = shapes
        # Block sums, block means off, factor, sum, decay, subtraction: 6 an element. Moments 7, root, eps
        # and quotient 3, norm 2, limiter, rates and scales of both parts 6: 18 an approximation.
        return 6 * m * n + 18 * m * -(-n // 2 ** options["level"])


def _update_chunk(group: Mapping[str, Any], chunk: Sequence[list[Unit]], t: int) -> None:
    """Steps 1 to 7 for matrices at their update t, those of one shape in a list; in place."""
    (b1, b2), level = group["betas"], group["level"]
    units, states = zip(*((unit, unit.states[0]) for bucket in chunk for unit in bucket), strict=True)
    counts = [len(bucket) for bucket in chunk]
    stacks = [stacked([unit.grads[0] for unit in bucket]) for bucket in chunk]  # (batch, m, n)
    means = [block_sums(G, level) for G in stacks]  # 1 (batch, m, K), sums at first
    sums = [own for of_bucket in means for own in of_bucket.unbind()]
    A = torch._foreach_mul(sums, 2.0 ** (-level / 2))
    if level:  # at level 0 they are the gradients themselves
        torch._foreach_mul_(sums, 2.0**-level)
    exp_avgs, exp_avg_sqs = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    adam_moments_(exp_avgs, exp_avg_sqs, list(A), (b1, b2))  # 2
    of_buckets = [[unit.states[0] for unit in bucket] for bucket in chunk]
    every_E, Es = copied_out([[state["exp_avg_sq"] for state in same] for same in of_buckets])
    every_N, Ns = copied_out([[state["exp_avg"] for state in same] for same in of_buckets])
    every_N.div_(every_E.sqrt_().add_(group["eps"]))  # 3

    norms = frobenius(Ns).flatten()  # (all matrices)
    of_details, of_means = (own[:, None, None].split(counts) for own in _factors(group, norms, states, t))
    every_E.reciprocal_()
    updates: list[Tensor] = []
    for G, mean, E, N, detail, constant in zip(stacks, means, Es, Ns, of_details, of_means, strict=True):
        U = rebuilt(G, mean, N.mul_(constant), E.mul_(detail), level)  # 5, 6
        updates += U.unbind()
    params = [unit.params[0] for unit in units]
    step_(group, params, updates, states, _decay(group) if group["weight_decay"] else None)  # 7


def _update_natively(passes: Passes, group: Mapping[str, Any], units: Sequence[Unit], t: int) -> None:
    """The same in C++: once over the gradients for moments and norms, once more for the weights."""
    states, eps, level = [unit.states[0] for unit in units], group["eps"], group["level"]
    G, W = [unit.grads[0] for unit in units], [unit.params[0] for unit in units]
    M, V = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    norms = passes.haar_moments(G, M, V, level=level, betas=group["betas"], eps=eps)  # 1 to 3
    details, approximations = _factors(group, norms, states, t)
    passes.haar_update(
        W, G, M, V,
        level=level, eps=eps, details=details, approximations=approximations, keep=_decay(group),
    )  # fmt: skip


def _decay(group: Mapping[str, Any]) -> float:
    return float(1.0 - group["lr"] * group["weight_decay"])


def _factors(
    group: Mapping[str, Any], norms: Tensor, states: Sequence[dict[str, Tensor]], t: int
) -> tuple[Tensor, Tensor]:
    """What details and approximations of each matrix are multiplied by (matrices,), before the details are
    divided by sqrt(V) + eps: step 4, and the rates of 5 to 7.
    """
    (b1, b2), level = group["betas"], group["level"]
    remembered = [state["update_norm"] for state in states]
    f, limited = limit_growth(norms, torch.stack(remembered), t == 1, rule=group["limiter"])
    torch._foreach_copy_(remembered, list(limited.unbind()))
    damping = math.sqrt(1.0 - b2**t)
    rate = damping / (1.0 - b1**t) if group["correct_bias"] else 1.0
    detail_rate = damping if group["correct_details"] else rate
    step = _decay(group) * group["lr"] * group["scale"] / f
    return detail_rate * step, rate * 2.0 ** (-level / 2) * step
