"""`LowRankLinear`: W = A @ B.T, stored and applied as two factors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrise.layers.base import FactoredForm, LatentLayer, LedgerEntry
from lowrise.layers.factor_pair import FactorPair


class LowRankLinear(FactorPair, LatentLayer):
    """Linear map in_features -> out_features of rank at most `rank`: W = A @ B.T, never formed.

    1. z = x @ B          (tokens x n) (n x r) -> tokens x r
    2. y = z @ A.T + bias (tokens x r) (r x m) -> tokens x m

    Backward, with G = dL/dW = g_y.T @ x: dL/dA = g_y.T @ z = G @ B, dL/dB = x.T @ (g_y @ A) = G.T @ A. W and
    G are never formed.

    Parameters: `A` (m x r), `B` (n x r), `bias` (m) or None; r (m + n) elements against m n of the dense map.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n) (`factorize` also takes a fraction).
        bias: Whether a bias (m) is added; it starts at 0.
        init: How the factors are drawn, an entry of `lowrise.layers.INITS`. spectral (Khodak et al., arXiv
            2105.01029): truncated SVD of the dense model's draw; xavier: LORO's; auto, kaiming, orthogonal,
            cola.
        init_std: Standard deviation of an entry of the dense weight that the factors stand for.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

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
        self._make_bias(bias, device, dtype)
        self._draw()

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.B

    def decode(self, latent: Tensor) -> Tensor:
        return F.linear(latent, self.A, self.bias)

    def dense(self) -> Tensor:
        return self.A @ self.B.T

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.B

    def factored_form(self) -> FactoredForm | None:
        return FactoredForm(down=self.B.T, up=self.A)

    def ledger(self) -> LedgerEntry:
        factors = self._factor_elements
        return LedgerEntry(
            parameters=factors + self._bias_elements,
            forward_flops=2 * factors,
            saved_elements=self.rank,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, init={self.init}"
