"""`SelfGuidedLinear`: factors whose training is guided by a dense weight that fades out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import FactoredForm, LedgerEntry
from lowrise.layers.factor_pair import FactorPair


class SelfGuidedLinear(FactorPair):
    """Linear map in_features -> out_features of rank at most `rank`, with a dense guide in the first half of
    training (Wei et al. 2024, arXiv 2406.16450; authors' CLAIRE-Labo/StructuredFFN; the baseline of
    Spectron's paper).

    With W the guide (m x n), at step k of T, H = floor(T / 2):

    1. alpha_k = (1 + cos(pi (k - 1) / H)) / 2 for k <= H: 1 at the first step, nearly 0 at the last of the
       half
    2. y = alpha_k x @ W.T + (1 - alpha_k) (x @ B) @ A.T + bias
    3. before step H + 1 the guide is dropped: the parameter is gone, and with it its gradient, its optimizer
       state and its time. From there on y = (x @ B) @ A.T + bias.

    At the start W = A B^T, so that the function does not depend on alpha. (1 - alpha) is folded into the
    latent (tokens x r), not into the output.

    The fade belongs to training: a layer whose `before_update` was not called is the plain low-rank map. So
    is the result, and a checkpoint after the half has no guide in it. The number of the step is all that the
    layer depends on; a run that continues from a checkpoint of step N calls `before_update` with N first.

    Where we differ from the authors' code: all attention and MLP matrices, not the MLP's alone; no random
    skipping of the guide (their `reduce_flop`, off in their configuration), which would make runs depend on a
    generator.

    Parameters: `A` (m x r), `B` (n x r), `guide` (m x n; None after the half), `bias` (m) or None.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n) (`factorize` also takes a fraction).
        bias: Whether a bias (m) is added; it starts at 0.
        init: How the factors are drawn, an entry of `lowrise.layers.INITS`. spectral: truncated SVD of the
            dense model's draw; xavier, auto, kaiming, orthogonal, cola as for the layer "lowrank".
        init_std: Standard deviation of an entry of the dense weight that the factors stand for.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    guide: nn.Parameter | None
    mix: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        init: str = "spectral",
        init_std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        self._make_factors(init, init_std, device, dtype)
        self.guide = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self._make_bias(bias, device, dtype)
        # alpha and 1 - alpha: a tensor, so that a compiled block is not compiled anew at every update; two
        # numbers, because in bfloat16 the difference from 1 would round to 0 near either end.
        self.register_buffer("mix", torch.zeros(2, device=device, dtype=torch.float32), persistent=False)
        self.guided = False
        self._draw()

    @torch.no_grad()
    def _set_factors(self, A: Tensor, B: Tensor) -> None:
        super()._set_factors(A, B)
        if self.guide is not None:
            self.guide.copy_(A @ B.T)

    def before_update(self, number: int, total: int) -> None:
        """Steps 1 and 3: alpha of update `number`, or no guide any more."""
        half = total // 2
        if number > half:
            self.guide = None
            self.guided = False
            return
        if self.guide is None:
            raise UsageError(
                f"Update {number} of {total} lies in the half with a guide, but this layer has dropped its "
                "guide already; build the model again to train it again."
            )
        alpha = guide_share(number, half)
        self.mix[0].fill_(alpha)
        self.mix[1].fill_(1.0 - alpha)
        self.guided = True

    def timed(self, number: int, total: int) -> object:
        half = total // 2
        return guide_share(number, half) if number <= half else None

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.B
        if self.guide is None or not self.guided:
            return F.linear(z, self.A, self.bias)
        alpha, rest = self.mix.unbind()
        return alpha * F.linear(x, self.guide) + F.linear(rest * z, self.A, self.bias)

    def dense(self) -> Tensor:
        W = self.A @ self.B.T
        if self.guide is None or not self.guided:
            return W
        alpha, rest = self.mix.unbind()
        return alpha * self.guide + rest * W

    def guide_parameters(self) -> tuple[nn.Parameter, ...]:
        return () if self.guide is None else (self.guide,)

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        """The factors alone, guide or not: what remains, and so one curve over the whole run."""
        return self.A, self.B

    def factored_form(self) -> FactoredForm | None:
        """The factors; None while the guide has a part in the output."""
        return None if self.guide is not None and self.guided else FactoredForm(down=self.B.T, up=self.A)

    def ledger(self) -> LedgerEntry:
        factors = self._factor_elements
        guide = 0 if self.guide is None else self.guide.numel()
        return LedgerEntry(
            parameters=factors + guide + self._bias_elements,
            forward_flops=2 * factors,
            saved_elements=self.rank,
            guide_flops=2 * guide,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, init={self.init}, guide={self.guide is not None}"


def guide_share(number: int, half: int) -> float:
    """alpha of update `number`, 1 to `half`: cosine from 1 to (nearly) 0."""
    return 0.5 * (1.0 + math.cos(math.pi * (number - 1) / half))
