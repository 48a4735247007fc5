"""`SparseLowRankLinear`: W = s A @ B.T + S, S sparse with a random fixed support (SLTrain)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowrise.distributed.sharding import copy_whole_
from lowrise.errors import UsageError
from lowrise.layers.base import FactoredForm, LedgerEntry, draws_whole
from lowrise.layers.factor_pair import AddedPair
from lowrise.layers.inits import balanced_factors, uniform


class SparseLowRankLinear(AddedPair):
    """Linear map in_features -> out_features: a product of rank `rank` plus a fraction `delta` of entries,
    W = s A @ B.T + S with a random fixed support of S (SLTrain).

    Source: Han et al. 2024, NeurIPS, arXiv 2406.02214; code andyjm3/SLTrain. Their letters: B A there is A @
    B.T here.

    Shapes: A m x r, B n x r, values (z,), index (z,) flat positions row by row; s = alpha / r,
    z = floor(delta m n).

    1. start:    A = 0; B and values uniform in +-1/sqrt(n); index = z of the m n positions, drawn without
                 replacement, sorted
    2. forward:  W = A @ (s B).T;  W.flat[index] += values;  y = x @ W.T + bias
    3. backward, with dW = g_y.T @ x (m x n):  g_A = dW @ (s B);  g_B = dW.T @ (s A);
                 g_values = dW.flat[index];  g_x = g_y @ W, with W formed again

    Between the passes x, the factors, values and index are kept, never W: SLTrain saves memory, not FLOPs.
    Per token it costs what a dense layer costs, and per pass 2 m n r to form W, twice, and 4 m n r for g_A
    and g_B.

    Where we differ from the released code: `index` is int32 where m n <= 2^31 (theirs is int64, 8 bytes for
    each value).

    Parameters: `A` (m x r), `B` (n x r), `values` (z), `bias` (m) or None; r (m + n) + z elements, and z
    indices in the buffer `index`. The factors have the role "factors"; the values are updated with "other".

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n) (`factorize` also takes a fraction).
        bias: Whether a bias (m) is added; it starts at 0.
        delta: Fraction of the m n entries that are stored beside the product; 0.03 is the authors' scripts'
            (0.05 at 7B).
        alpha: Scale of the product, s = alpha / r; 32 is the authors' at 60M (16 at 130M and 350M, 8 above).
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    index: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        delta: float = 0.03,
        alpha: float = 32.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        if not 0 <= delta <= 1:
            raise UsageError(f"layer.delta = {delta!r} cannot be: the fraction of stored entries, 0 to 1.")
        if not alpha > 0:
            raise UsageError(f"layer.alpha = {alpha!r} cannot be: the scale alpha / rank is positive.")
        self.delta = delta
        self.alpha = alpha
        entries = math.floor(delta * out_features * in_features)
        self._make_pair(device, dtype)
        self.values = nn.Parameter(torch.empty(entries, device=device, dtype=dtype))
        self._make_bias(bias, device, dtype)
        positions = torch.zeros(entries, dtype=index_dtype(out_features * in_features), device=device)
        self.register_buffer("index", positions)
        self._draw()

    @draws_whole
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        m, n, z = self.out_features, self.in_features, self.values.numel()
        self._draw_pair(generator)
        self.values.copy_(uniform(1, z, 1 / math.sqrt(n), generator, self.values.device)[0])
        source = "cpu" if generator is None else generator.device
        drawn = torch.randperm(m * n, generator=generator, device=source)[:z]
        self.index.copy_(drawn.sort().values)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def load_dense_(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Truncated SVD of `weight` (out x in), and on the layer's support what that leaves: the best values
        for this product and support; a joint search would come nearer.
        """
        A, B = balanced_factors(weight, self.rank)  # float64
        rest = weight.to(A.dtype) - A @ B.T
        copy_whole_(self.A, A / math.sqrt(self.scale))
        copy_whole_(self.B, B / math.sqrt(self.scale))
        copy_whole_(self.values, rest.reshape(-1).index_select(0, self.index))
        if self.bias is not None and bias is not None:
            copy_whole_(self.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        tensors = (x, self.A, self.B, self.values)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            tensors = tuple(t.to(dtype) for t in tensors)  # type: ignore[assignment]
        y: Tensor = _FormedLinear.apply(*tensors, self.index, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dense(self) -> Tensor:
        return form_weight(self.A, self.B, self.values, self.index, self.scale)

    def factored_form(self) -> FactoredForm | None:
        return FactoredForm(down=(self.B * self.scale).T, up=self.A, values=self.values, index=self.index)

    def ledger(self) -> LedgerEntry:
        dense = self.out_features * self.in_features
        return LedgerEntry(
            parameters=self._factor_elements + self.values.numel() + self._bias_elements,
            forward_flops=2 * dense,
            saved_elements=0,
            pass_flops=2 * dense * self.rank,
            pass_training_flops=8 * dense * self.rank,  # W twice, g_A, g_B
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, delta={self.delta:g}, alpha={self.alpha:g}"


def index_dtype(positions: int) -> torch.dtype:
    """The narrower dtype that can count so many positions."""
    return torch.int32 if positions <= 2**31 else torch.int64


def form_weight(A: Tensor, B: Tensor, values: Tensor, index: Tensor, scale: float) -> Tensor:
    """W = A @ (s B).T with `values` added at the flat positions `index`: m x n, differentiable."""
    W = A @ (B * scale).T
    W.view(-1).index_add_(0, index, values)  # positions are distinct, so the order of sums is not open
    return W


class _FormedLinear(torch.autograd.Function):
    """y = x @ W.T for the W of `form_weight`, formed once per pass and not kept; numbers as in the layer."""

    @staticmethod
    def forward(x: Tensor, A: Tensor, B: Tensor, values: Tensor, index: Tensor, scale: float) -> Tensor:
        return x @ form_weight(A, B, values, index, scale).T  # 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, values, index = ctx.saved_tensors
        need_x, need_A, need_B, need_values, *_ = ctx.needs_input_grad
        g_x = g_A = g_B = g_values = None
        if need_A or need_B or need_values:  # 3
            dW = g_y.reshape(-1, g_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # m x n
            g_A = dW @ (B * ctx.scale) if need_A else None
            g_B = dW.T @ (A * ctx.scale) if need_B else None
            g_values = dW.view(-1).index_select(0, index) if need_values else None
            del dW
        if need_x:
            g_x = g_y @ form_weight(A, B, values, index, ctx.scale)
        return g_x, g_A, g_B, g_values, None, None
