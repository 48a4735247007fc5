"""ReLoRA's optimizer: AdamW that drops the moments of factors; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowrise.distributed.sharding import local, whole
from lowrise.errors import UsageError
from lowrise.optim.adamw import AdamW
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.product_decay import Decay


class ReLoRAAdamW(AdamW):
    """ReLoRA's optimizer: AdamW whose moments of the factors are dropped when their product is merged.

    Source: Lialin et al. 2023, arXiv 2307.05695; code Guitaricet/relora, `peft_pretraining/training_utils.py`
    (`optimizer_reset`) and `torchrun_main.py`.

    1. every step: `AdamW` for all roles
    2. after steps reset_every, 2 reset_every, ... before the last, for the moments m, v of every parameter of
       the role "factors" (shapes m x r, n x r); embeddings, norms and head are never reset:
       "zero":      m <- 0, v <- 0
       "joint":     m, v <- 0 where |m| <= the `prune`-quantile of |m| of this tensor
       "magnitude": m <- 0 where |m| <= the `prune`-quantile of |m|, v <- 0 where |v| <= that of |v|
       The step counters go on: there is no new bias correction, and after "zero" the first update of an entry
       has size lr (1 - b1) / sqrt(1 - b2), 3.16 lr with (0.9, 0.999). A schedule must dip there.

    Which one. "magnitude" is the released code's, kept for comparison: an entry may keep its m and lose its
    v. Right after a merge A = 0, so the gradient of B is exactly 0, its v stays 0, and the step is lr m /
       eps.
    With gradients of order 1 that throws the weights away (a toy regression went from 12 to 1e11); tiny
    gradients and the restart warm-up hide it. "joint" cannot do so, and "zero" (our default) leaves nothing
    of the old product. The code's own default, to keep each entry of m and of v at random with probability
    0.001, has the same hazard and is not offered.

    Time: the number of a step is the loop's. Whoever trains by hand calls `after_update(number, total)` after
    `step()`, as for `LoRALinear.after_update`; then merge and reset fall on the same step, also when steps
    were skipped. The released code resets after its updates k c + 1, counted from 1, whose multiplier is 0;
    its first multiplier is 0 too. lowrise counts the same points of the schedule from 1, so that here they
    are the steps k c, with multiplier 0 from `schedule.cycle = c`.

    State, roles and FLOPs are AdamW's.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate.
        betas: Decay rates b1, b2 of the two moments; the README's.
        eps: Added to the root of the second moment, after its bias correction.
        weight_decay: Decoupled weight decay of all parameters.
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.
        reset_every: Steps between two resets, the layer's `merge_every`; 0: never.
        reset: What a reset drops. zero: all; joint: small entries of m, with their v; magnitude: small
            entries of m and of v each, the released code's.
        prune: Fraction of entries that joint and magnitude drop; 0.9 "usually performs well" (README), 0.99
            in the paper, 0.8 in the 1B configuration.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    ball_roles: ClassVar[frozenset[str]] = frozenset()  # a product that begins at zero has no radius

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        reset_every: int = 0,
        reset: Literal["zero", "joint", "magnitude"] = "zero",
        prune: float = 0.9,
    ) -> None:
        Optimizer.__init__(self, params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if group["reset_every"] < 0:
            raise UsageError(
                f"ReLoRAAdamW has reset_every = {group['reset_every']}; 0 (never) or more updates."
            )
        if not 0 <= group["prune"] <= 1:
            raise UsageError(f"ReLoRAAdamW has prune = {group['prune']}; a fraction between 0 and 1.")

    def resets(self, total_steps: int, skipped: int = 0) -> tuple[int, ...]:
        """Updates after which factors lose their moments, by the loop's count, whatever was skipped."""
        numbers: set[int] = set()
        for group in self.param_groups:
            if group["role"] == "factors" and group["reset_every"]:
                numbers.update(range(group["reset_every"], total_steps, group["reset_every"]))
        return tuple(sorted(numbers))

    def timed(self, number: int, total: int) -> object:
        return [_due(group, number, total) for group in self.param_groups]

    @torch.no_grad()
    def after_update(self, number: int, total: int) -> None:
        """Step 2 where it is due; not after the last update, which nothing follows."""
        for group in self.param_groups:
            if not _due(group, number, total):
                continue
            for param in group["params"]:
                with self.opened_state(group, [param]) as (state,):
                    drop_moments_(
                        state["exp_avg"], state["exp_avg_sq"], how=group["reset"], prune=group["prune"]
                    )


def _due(group: Mapping[str, Any], number: int, total: int) -> bool:
    """Whether the moments of a group are reset after this update."""
    every = group["reset_every"]
    return group["role"] == "factors" and every > 0 and number % every == 0 and number < total


def drop_moments_(m: Tensor, v: Tensor, *, how: str, prune: float) -> None:
    """Step 2 for one parameter, in place."""
    if how == "zero":
        local(m).zero_()
        local(v).zero_()
    else:
        small = small_entries(m, prune)
        local(m).masked_fill_(small, 0.0)
        local(v).masked_fill_(small if how == "joint" else small_entries(v, prune), 0.0)


def small_entries(x: Tensor, share: float) -> Tensor:
    """Where |x| is at most the `share`-quantile of |x| (over all entries, in float32, interpolated linearly).

    That is torch.quantile's, which refuses more than 16 million entries. Of a moment that ranks share by
    rows, all entries count, and what is returned is for this rank's rows.
    """
    ordered = whole(x).abs().float().flatten().sort().values
    position = share * (ordered.numel() - 1)
    below = int(position)
    above = min(below + 1, ordered.numel() - 1)
    threshold = torch.lerp(ordered[below], ordered[above], position - below)
    return local(x).abs() <= threshold
