"""`LoRALinear`: W = W0 + s A @ B.T with a frozen dense W0, and ReLoRA's merge of the product into it."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.distributed.sharding import copy_whole_
from lowrise.errors import UsageError
from lowrise.layers.base import LedgerEntry, draws_whole
from lowrise.layers.factor_pair import AddedPair
from lowrise.layers.inits import normal
from lowrise.linalg.precision import full_precision_matmul
from lowrise.rng import name_seed


class LoRALinear(AddedPair):
    """Linear map in_features -> out_features: a frozen dense weight and a trained product of rank `rank`,
    W = W0 + s A @ B.T, and ReLoRA's merge of the product into W0.

    Sources: LoRA (Hu et al. 2021, arXiv 2106.09685) as a pretraining baseline; ReLoRA (Lialin et al. 2023,
    arXiv 2307.05695; code Guitaricet/relora, `peft_pretraining/relora.py`). Their letters: B A there is A @
    B.T here.

    Shapes: W0 m x n, A m x r, B n x r, s = alpha / r.

    1. start:    W0 ~ N(0, init_std^2), the very matrix of the dense model; A = 0; B uniform in +-1/sqrt(n)
    2. forward:  y = x @ W0.T + bias + (s x @ B) @ A.T
       (tokens x n) (n x m), (tokens x n) (n x r) (r x m); backward forms no dL/dW0
    3. merge, after steps merge_every, 2 merge_every, ... before the last:
       W0 <- W0 + s A @ B.T;  A <- 0;  B drawn again as in 1. The function stays as it was, to rounding.
       Sums of j such products have rank up to min(j r, m, n).

    Where we differ from the released code:

    - it also zeroes the random factor when it wraps a layer; with A = B = 0 both gradients are exactly 0 and
      nothing is trained before the first merge (its issue #18). Here B is random from the start;
    - no `train_scaling` (a merge would set the scalar to 0 and kill the layer) and no dropout on the product
      (0.1 in its script);
    - the merge is computed in float32 at least, with TF32 and autocast off, and rounded once to W0's dtype.
      In bfloat16 W0 that still loses what is below 2^-9 of an entry: keep float32 weights.

    Parameters: `W0` (m x n, frozen), `A` (m x r), `B` (n x r), `bias` (m) or None; m n + r (m + n) elements,
    of which the factors and the bias are trained. The factor drawn at a merge depends on the saved
    `merge_seed` and the step's number alone.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n) (`factorize` also takes a fraction).
        bias: Whether a bias (m) is added; it starts at 0.
        alpha: Scale of the product, s = alpha / r; 32 is ReLoRA's code.
        merge_every: Steps between two merges (a training loop must call `after_update`); 0: never (LoRA).
        init_std: Standard deviation of an entry of W0.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    keeps_base_frozen: ClassVar[bool] = True
    merge_seed: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        alpha: float = 32.0,
        merge_every: int = 0,
        init_std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        if not alpha >= 0:
            raise UsageError(f"layer.alpha = {alpha!r} cannot be: the scale alpha / rank is not negative.")
        if merge_every < 0:
            raise UsageError(f"layer.merge_every = {merge_every!r} cannot be: 0 (never) or more updates.")
        if not init_std > 0:
            raise UsageError(f"init_std must be positive, not {init_std!r}.")
        self.alpha = alpha
        self.merge_every = merge_every
        self.init_std = init_std
        frozen = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.W0 = nn.Parameter(frozen, requires_grad=False)
        self._make_pair(device, dtype)
        self._make_bias(bias, device, dtype)
        self.register_buffer("merge_seed", torch.zeros((), dtype=torch.int64, device=device))
        self._draw()

    @draws_whole
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        m, n = self.out_features, self.in_features
        self.W0.copy_(normal(m, n, self.init_std, generator, self.W0.device))
        self._draw_pair(generator)
        source = "cpu" if generator is None else generator.device
        self.merge_seed.copy_(torch.randint(2**62, (), generator=generator, device=source))
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def load_dense_(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """W0 <- weight (out x in), A <- 0; B and the seed of the merges stay. Exact at any rank."""
        copy_whole_(self.W0, weight)
        copy_whole_(self.A, torch.zeros_like(self.A))
        if self.bias is not None and bias is not None:
            copy_whole_(self.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W0, self.bias) + F.linear(x @ self.B * self.scale, self.A)

    def after_update(self, number: int, total: int) -> None:
        """Step 3 where it is due. Not after the last update, which nothing follows."""
        if self.rewrites_after(number, total):
            self.merge_(number)

    def rewrites_after(self, number: int, total: int) -> bool:
        return self.merge_every > 0 and number % self.merge_every == 0 and number < total

    def timed(self, number: int, total: int) -> object:
        return self.rewrites_after(number, total)

    @torch.no_grad()
    def merge_(self, number: int) -> None:
        """Add the product to W0 and start a new one, as a function of the state and `number` alone."""
        wide = torch.promote_types(self.W0.dtype, torch.float32)
        with full_precision_matmul(self.W0.device):
            merged = torch.addmm(self.W0.to(wide), self.A.to(wide), self.B.to(wide).T, alpha=self.scale)
        self.W0.copy_(merged)
        seed = name_seed(int(self.merge_seed), str(number))
        self._draw_pair(torch.Generator().manual_seed(seed))

    def dense(self) -> Tensor:
        return self.W0 + self.scale * (self.A @ self.B.T)

    def ledger(self) -> LedgerEntry:
        dense = self.out_features * self.in_features
        factors = self._factor_elements
        return LedgerEntry(
            parameters=dense + factors + self._bias_elements,
            forward_flops=2 * dense + 2 * factors,
            saved_elements=self.rank,
            training_flops=4 * dense + 6 * factors,  # no gradient of W0
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha:g}, merge_every={self.merge_every}"
