"""`DLRLinear`: two factors, and the latents added to blocks of the output, which folds into the factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.distributed.sharding import whole_parameters
from lowrise.errors import UsageError
from lowrise.layers.base import FactoredForm, LedgerEntry, draws_whole
from lowrise.layers.factor_pair import ActivatedPair, Activation
from lowrise.layers.inits import balanced_factors


class DLRLinear(ActivatedPair):
    """Map in_features -> out_features through `rank` latents that also go straight to the output (DLR, arXiv
    2606.28932; authors' code, nanguoyu/DLR).

    With K = ceil(m / r) and idx(o) = floor(o / K), so that latent j reaches the block of K outputs from j K:

    1. z = act(x @ B)                                    (tokens x n) (n x r) -> tokens x r
    2. y_o = (z @ A.T)_o + alpha / sqrt(K) z_idx(o) + bias_o                  -> tokens x m

    Backward: dL/dA = g_y.T @ z; g_z = g_y @ A + alpha / sqrt(K) (sums of g_y over the blocks); the rest as in
    CoLA. Neither E nor a one-hot matrix is formed.

    The residual is a matrix of the output's side, so it folds: A* = A + E with E[o, idx(o)] = alpha /
    sqrt(K) gives y = act(x @ B) @ A*.T, exactly and with the activation too. `fold` does that in place, for
    inference: a weight decay would then act on E. Exports and generation use A* in any case. Without an
    activation the map is the matrix (A + E) @ B.T.

    Where m is no multiple of r the last block is short, and of the latents from ceil(m / K) on none is
    copied; for r >= m, K is 1.

    Where we differ from the authors' code: a fresh bias is 0 as in the rest of this project (theirs is
    uniform in +-1/sqrt(m)); alpha may be learned; a second fold is an error; their ablations (another scale,
    random idx) are not here.

    Parameters: `A` (m x r), `B` (n x r), `bias` (m) or None, `trained_alpha` (1) if alpha is trained; r (m +
    n) elements. Buffer `folded`: whether A is A* already.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Number of latents r, an integer; above min(m, n) too.
        bias: Whether a bias (m) is added; it starts at 0.
        activation: Activation of the latents. silu: as released; none: the map is a matrix and can be merged.
        alpha: Size of the residual, alpha / sqrt(K) a latent; 1 as published.
        train_alpha: Learn alpha, one number a layer, from the value above; it is moved as norms are.
        init: How the factors are drawn, an entry of `lowrise.layers.INITS`. cola: the authors', std (r (m +
            n))^(-1/4); spectral, xavier, auto, kaiming, orthogonal as for the layer "lowrank". The residual
            comes on top.
        init_std: Standard deviation of an entry of the dense weight, for inits that stand for one.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    kind: ClassVar[str] = "DLR"
    folded: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        activation: Activation = "silu",
        alpha: float = 1.0,
        train_alpha: bool = False,
        init: str = "cola",
        init_std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        if not math.isfinite(alpha):
            raise UsageError(f"alpha = {alpha!r} cannot be for a DLR layer: it must be a finite number.")
        self._set_activation(activation)
        self.alpha = float(alpha)
        self.train_alpha = train_alpha
        self._make_factors(init, init_std, device, dtype)
        self._make_bias(bias, device, dtype)
        number = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if train_alpha else None
        self.trained_alpha = number
        self.register_buffer("folded", torch.zeros(1, device=device, dtype=torch.uint8))
        self._is_folded = False  # the buffer's value, which a forward pass could not read without waiting
        self._draw()

    @property
    def block(self) -> int:
        """K, the outputs that one latent is added to."""
        return -(-self.out_features // self.rank)

    @property
    def _scale(self) -> float:
        """alpha / sqrt(K), or 1 / sqrt(K) beside a trained alpha."""
        return (self.alpha if self.trained_alpha is None else 1.0) / math.sqrt(self.block)

    # ---- values

    @draws_whole
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """What no draw decides."""
        if self.trained_alpha is not None:
            self.trained_alpha.fill_(self.alpha)
        self.folded.zero_()
        self._is_folded = False

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """The layer whose derivative at x = 0 is the best rank-r approximation of `weight` (out x in); E is
        taken off the factor A. Without an activation the layer is that approximation.
        """
        layer = cls._empty_for(weight, rank, bias, options)
        layer._start()
        layer.load_dense_(weight, bias)
        return layer

    @torch.no_grad()
    def load_dense_(self, weight: Tensor, bias: Tensor | None = None) -> None:
        A, B = balanced_factors(weight, self.rank)  # of A + E and B, in float64
        scale = self._factor_scale
        with whole_parameters(self):
            self.B.copy_(B * scale)
            self.A.copy_(A * scale if self._is_folded else self._plus_residual(A * scale, -1.0))
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)

    # ---- the map

    def decode(self, latent: Tensor) -> Tensor:
        y = F.linear(latent, self.A, self.bias)
        if self._is_folded:
            return y
        m, K = self.out_features, self.block
        reached = -(-m // K)
        z = latent[..., :reached].to(y.dtype)
        if self.trained_alpha is not None:
            z = z * self.trained_alpha.to(z.dtype)
        z = (z * self._scale).unsqueeze(-1)
        if reached * K == m:
            return (y.unflatten(-1, (reached, K)) + z).flatten(-2)
        return y + z.expand(*z.shape[:-1], K).flatten(-2)[..., :m]

    def _plus_residual(self, A: Tensor, sign: float = 1.0) -> Tensor:
        """A + sign E, differentiable."""
        rows = torch.arange(self.out_features, device=A.device).unsqueeze(-1)
        entries = A.new_full((self.out_features, 1), sign * self._scale)
        if self.trained_alpha is not None:
            entries = entries * self.trained_alpha.to(A.dtype)
        return A.scatter_add(-1, rows // self.block, entries)

    def folded_factor(self) -> Tensor:
        """A* = A + E (m x r), differentiable; A itself where it is folded already."""
        return self.A if self._is_folded else self._plus_residual(self.A)

    @torch.no_grad()
    def fold(self) -> Self:
        """Put A + E in the place of A, so that the layer is two factors, for inference: nothing of it is
        trained from here on. The state dict says so. Raises `UsageError` for a layer that is folded.
        """
        if self._is_folded:
            raise UsageError(
                f"a DLR layer ({self.out_features} x {self.in_features}, rank {self.rank}) is folded "
                "already, and folding adds the residual to A: fold a layer once, or load weights that are "
                "not folded."
            )
        self.A.copy_(self._plus_residual(self.A))
        self.folded.fill_(1)
        self._is_folded = True
        return self.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}folded" in state_dict:
            self._is_folded = bool(state_dict[f"{prefix}folded"])

    def dense(self) -> Tensor:
        if self.activation == "none":
            return self.folded_factor() @ self.B.T
        raise UsageError(
            f"A DLR layer ({self.out_features} x {self.in_features}, rank {self.rank}) has no dense form: "
            "with an activation between its factors it is not a linear map. Keep it factored, or train it "
            'with activation = "none".'
        )

    def is_gauge_free(self) -> bool:
        return self._is_folded and self.activation == "none"

    def residual_norm(self) -> float:
        """Columns of E are orthogonal and of norm |alpha| or less: at most K entries alpha / sqrt(K)."""
        if self._is_folded:
            return 0.0
        return abs(self.alpha) if self.trained_alpha is None else math.inf

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        return self.folded_factor(), self.B

    def factored_form(self) -> FactoredForm | None:
        return FactoredForm(down=self.B.T, up=self.folded_factor(), activation=self.activation)

    def ledger(self) -> LedgerEntry:
        factors = self._factor_elements
        return LedgerEntry(
            parameters=factors + self._bias_elements + (0 if self.trained_alpha is None else 1),
            forward_flops=2 * factors,  # products alone; the residual adds m numbers
            saved_elements=self._saved_elements,
        )

    def extra_repr(self) -> str:
        state = ", folded" if self._is_folded else ""
        return f"{super().extra_repr()}, activation={self.activation}, alpha={self.alpha:g}{state}"
