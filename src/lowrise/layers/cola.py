"""`CoLALinear`: two factors with an activation between them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.layers.base import FactoredForm, LedgerEntry
from lowrise.layers.factor_pair import ActivatedPair, Activation
from lowrise.layers.inits import balanced_factors


class CoLALinear(ActivatedPair):
    """Map in_features -> out_features through `rank` activated latents (CoLA, Liu et al. 2025, arXiv
    2502.10940; authors' `ColaLayer`, alvin-zyl/CoLA).

    1. z = x @ B              (tokens x n) (n x r) -> tokens x r
    2. h = silu(z)
    3. y = h @ A.T + bias     (tokens x r) (r x m) -> tokens x m

    Backward, with s the logistic function: dL/dA = g_y.T @ h, g_z = (g_y @ A) * s(z) (1 + z (1 - s(z))),
    dL/dB = x.T @ g_z, g_x = g_z @ B.T.

    The authors keep `cola_a` (n x r) = our B and `cola_b` (r x m) = our A.T.

    The claim is that activations, not weights, are of low rank: the map has inner width r and is not linear,
    so no m x n matrix equals it and it cannot be merged. Since |silu(z)| <= |z| and the slope of silu is at
    most 1.0999, a step of the factors by dA, dB changes the output by at most
    1.0999 (||dA|| ||B + dB|| + ||A|| ||dB||) ||x||: under Spectron, by at most 1.0999 lr ||x||.

    Where we differ from the authors' code: a fresh bias is 0 as in the rest of this project (theirs is
    uniform in +-1/sqrt(m); no configuration of theirs has one), and `activation` is used (their `lr_act_type`
    is read and ignored).

    Parameters: `A` (m x r), `B` (n x r), `bias` (m) or None; r (m + n) elements.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Number of latents r, an integer; above min(m, n) too, as the activation makes use of it.
        bias: Whether a bias (m) is added; it starts at 0.
        activation: Activation between the factors. silu: as published; none: the plain low-rank map.
        init: How the factors are drawn, an entry of `lowrise.layers.INITS`. cola: the authors', std (r (m +
            n))^(-1/4); spectral, xavier, auto, kaiming, orthogonal as for the layer "lowrank".
        init_std: Standard deviation of an entry of the dense weight, for inits that stand for one.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    kind: ClassVar[str] = "CoLA"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        activation: Activation = "silu",
        init: str = "cola",
        init_std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        self._set_activation(activation)
        self._make_factors(init, init_std, device, dtype)
        self._make_bias(bias, device, dtype)
        self._draw()

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """The layer whose derivative at x = 0 is the best rank-r approximation of `weight` (out x in): with
        silu A and B are the balanced factors times sqrt(2). Away from 0 the activation bends the map,
        whatever the rank.
        """
        layer = cls._empty_for(weight, rank, bias, options)
        A, B = balanced_factors(weight, rank)
        layer._set_factors(A * layer._factor_scale, B * layer._factor_scale)
        return layer

    def decode(self, latent: Tensor) -> Tensor:
        return F.linear(latent, self.A, self.bias)

    def dense(self) -> Tensor:
        if self.activation == "none":
            return self.A @ self.B.T
        raise UsageError(
            f"A CoLA layer ({self.out_features} x {self.in_features}, rank {self.rank}) has no dense form: "
            "with an activation between its factors it is not a linear map. Keep it factored."
        )

    def is_gauge_free(self) -> bool:
        return self.activation == "none"

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        return self.A, self.B

    def factored_form(self) -> FactoredForm | None:
        return FactoredForm(down=self.B.T, up=self.A, activation=self.activation)

    def ledger(self) -> LedgerEntry:
        factors = self._factor_elements
        return LedgerEntry(
            parameters=factors + self._bias_elements,
            forward_flops=2 * factors,
            saved_elements=self._saved_elements,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}, init={self.init}"
