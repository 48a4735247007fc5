"""What layers with two factors have in common: A, B, a bias, and how they start."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import LatentLayer, LowRankLayer, draws_whole
from lowrise.layers.inits import INITS, balanced_factors, check_init, normal, uniform
from lowrise.linalg.rank import Above

Device = torch.device | str | None
Activation = Literal["silu", "none"]


class FactorPair(LowRankLayer):
    """A layer with factors `A` (m x r) and `B` (n x r), drawn by an entry of `INITS`, and a `bias` (m) or
    None that starts at 0. A class makes its parameters in its own order and then calls `_draw`.
    """

    role: ClassVar[str] = "factors"
    A: nn.Parameter
    B: nn.Parameter
    bias: nn.Parameter | None
    init: str
    init_std: float

    def _make_factors(self, init: str, init_std: float, device: Device, dtype: torch.dtype | None) -> None:
        """Raises `UsageError` for an unknown init."""
        check_init(init, init_std)
        self.init, self.init_std = init, init_std
        self._make_pair(device, dtype)

    def _make_pair(self, device: Device, dtype: torch.dtype | None) -> None:
        self.A = nn.Parameter(torch.empty(self.out_features, self.rank, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(self.in_features, self.rank, device=device, dtype=dtype))

    def _make_bias(self, bias: bool, device: Device, dtype: torch.dtype | None) -> None:
        made = torch.empty(self.out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if made is None else nn.Parameter(made)

    def _draw(self) -> None:
        """First values, but on "meta"."""
        if not self.A.is_meta:
            self.reset_parameters()

    @draws_whole
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        draw = partial(normal, generator=generator, device=self.A.device)
        self._set_factors(
            *INITS[self.init](self.out_features, self.in_features, self.rank, self.init_std, draw)
        )
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def _set_factors(self, A: Tensor, B: Tensor) -> None:
        """Take values for the factors, and with them for whatever starts from both."""
        self.A.copy_(A)
        self.B.copy_(B)

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """The best rank-r approximation of `weight` (out x in), its singular values split evenly."""
        layer = cls._empty_for(weight, rank, bias, options)
        layer._set_factors(*balanced_factors(weight, rank))
        return layer

    def role_parameters(self) -> tuple[nn.Parameter, ...]:
        return self.A, self.B

    @property
    def _factor_elements(self) -> int:
        return self.rank * (self.out_features + self.in_features)

    @property
    def _bias_elements(self) -> int:
        return 0 if self.bias is None else self.out_features


class ActivatedPair(FactorPair, LatentLayer):
    """A layer whose latents go through an activation, z = act(x @ B). A rank above min(m, n) adds something
    then.
    """

    rank_above: ClassVar[Above] = "keep"
    kind: ClassVar[str]
    """What messages call the layer."""
    activation: Activation

    def _set_activation(self, activation: Activation) -> None:
        """Raises `UsageError` for an unknown one."""
        if activation not in ("silu", "none"):
            raise UsageError(
                f"Unknown activation {activation!r} for a {self.kind} layer; choose silu or none."
            )
        self.activation = activation

    @property
    def _factor_scale(self) -> float:
        """By what both factors of a matrix are multiplied for a map with that derivative at x = 0, where the
        slope of silu is 1/2.
        """
        return 2**0.5 if self.activation == "silu" else 1.0

    @property
    def _saved_elements(self) -> int:
        """Per token: z and act(z), or z."""
        return 2 * self.rank if self.activation == "silu" else self.rank

    def encode(self, x: Tensor) -> Tensor:
        z = x @ self.B
        return F.silu(z) if self.activation == "silu" else z


class AddedPair(FactorPair):
    """A layer whose product s A @ B.T, s = `alpha` / r, is added to another part of its weight. The product
    starts at 0: A = 0, B uniform in +-1/sqrt(n).
    """

    alpha: float

    @property
    def scale(self) -> float:
        """s = alpha / r."""
        return self.alpha / self.rank

    def _draw_pair(self, generator: torch.Generator | None) -> None:
        n = self.in_features
        self.A.zero_()
        self.B.copy_(uniform(n, self.rank, 1 / math.sqrt(n), generator, self.B.device))

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """A new layer that then takes over `weight` (out x in) as `load_dense_` says."""
        layer = cls._empty_for(weight, rank, bias, options)
        layer.reset_parameters()
        layer.load_dense_(weight, bias)
        return layer

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        """None: the weight is no such product."""
        return None
