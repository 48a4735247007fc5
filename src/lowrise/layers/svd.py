"""`SVDLinear`: W = U diag(s) V^T with orthonormal U and V, stored and applied as three factors (TSVD)."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import AdaptiveRankLayer, FactoredForm, LedgerEntry, draws_whole
from lowrise.layers.inits import Draw, check_finite, normal
from lowrise.layers.ranks import RankChange, canonical, grown, grown_rank, shrunken_rank
from lowrise.linalg.orthonormal import orthonormality_error, qf
from lowrise.linalg.rank import resolve_rank
from lowrise.linalg.solvers import eigvalsh, svd

INITS = ("gaussian", "constant")


class _Apply(torch.autograd.Function):
    """Steps 1 and 2 on operands of one dtype; gradients go to the factors in the factors' dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, U: Tensor, s: Tensor, V: Tensor, U_cast: Tensor | None, V_cast: Tensor | None
    ) -> Tensor:
        Uc = U.to(x.dtype) if U_cast is None else U_cast
        Vc = V.to(x.dtype) if V_cast is None else V_cast
        h = x @ Vc
        ctx.save_for_backward(x, h, s, Uc, Vc)
        ctx.factor_dtype = U.dtype
        return (h * s.to(x.dtype)) @ Uc.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gy,) = grads
        x, h, s, U, V = ctx.saved_tensors
        sc, dtype = s.to(x.dtype), ctx.factor_dtype
        needs_x, needs_U, needs_s, needs_V = ctx.needs_input_grad[:4]
        a = gy @ U
        scaled = a * sc
        gx = scaled @ V.T if needs_x else None
        gU = (gy.flatten(0, -2).T @ (h * sc).flatten(0, -2)).to(dtype) if needs_U else None
        gs = (a * h).flatten(0, -2).sum(0, dtype=dtype) if needs_s else None
        gV = (x.flatten(0, -2).T @ scaled.flatten(0, -2)).to(dtype) if needs_V else None
        return gx, gU, gs, gV, None, None


class SVDLinear(AdaptiveRankLayer):
    """Linear map in_features -> out_features, W = U diag(s) V^T with orthonormal U and V, of a rank that may
    change with training (TSVD).

    1. h = x V               (tokens x n) (n x r) -> tokens x r
    2. y = (h * s) U^T + b   (tokens x r) (r x m) -> tokens x m

    Backward, with a = g_y U: g_s = sum over tokens of a * h, g_U = g_y^T (h * s), g_V = x^T (a * s),
    g_x = (a * s) V^T. Only x and h are saved; W and dL/dW are never formed.

    Start (our choice; the paper, Kamali et al. 2026, arXiv 2605.28573, does not publish its own):

    1. U = qf(N(0, 1)^(m x r)), V = qf(N(0, 1)^(n x r)), uniformly distributed, in float64.
    2. "gaussian": s = the r largest singular values of an m x n draw of N(0, std^2), descending;
       "constant": equal.
       Either is scaled by std sqrt(m n) / ||s||_2, so that ||W||_F^2 = m n std^2 as in the dense model.
       Equal singular values are a singular point: symmetric off-diagonal changes of U^T W V are out of
       first-order reach, and descending order is what the QR retraction wants. Hence "gaussian" by default.

    U and V stay orthonormal only under an optimizer that keeps them so (`TSVD`). Store them in float32:
    bfloat16 storage alone costs 1e-3. How columns change at a rank event: `layers/ranks.py`.

    **Cache.** Where x is narrower than the factors (autocast), the narrow copies are made once after each
    change of the factors and shared by all micro-batches and by forward and backward. Changes are recognized
    by the tensors' versions, which writes through `.data` do not raise. Inside `torch.compile` the cast is
    part of the graph.

    Parameters: `U` (m x r), `s` (r), `V` (n x r), `bias` (m) or None; r (m + n + 1) elements. Warns where
    r (m + n) >= m n, as many as the dense weight has.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n) (`factorize` also takes a fraction).
        bias: Whether a bias (m) is added; it starts at 0.
        init: Singular values at the start. gaussian: the largest of a Gaussian matrix, descending; constant:
            equal, a singular point.
        init_std: Standard deviation of an entry of the dense weight that the factors stand for.
        energy: Fraction of the sum of s^2 that a rank event keeps; 0: the rank is fixed, and the next five
            are without effect.
        rank_events: Fractions of all steps after which the rank is chosen again. Thresholds compound: after k
            events energy^k is what is sure to be left.
        rank_multiple: Ranks that are chosen are multiples of it; 8 suits matrix units.
        min_rank: Never below this rank; 0: max(8, a quarter of the rank at the start).
        max_rank: Rank up to which a layer may grow; 0: it never grows.
        max_drop: Largest fraction of the columns that one event drops.
        device: Where parameters are created; on "meta" they are not initialized.
        dtype: Of the parameters.

    Raises:
        UsageError: An impossible rank or option.
    """

    role: ClassVar[str] = "svd"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        *,
        init: str = "gaussian",
        init_std: float = 0.02,
        energy: float = 0.0,
        rank_events: tuple[float, ...] = (0.1, 0.2, 0.3),
        rank_multiple: int = 8,
        min_rank: int = 0,
        max_rank: int = 0,
        max_drop: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank)
        _check(init, init_std, energy, rank_events, rank_multiple, min_rank, max_rank, max_drop)
        if rank * (in_features + out_features) >= in_features * out_features:
            warnings.warn(
                f"an SVD layer of rank {rank} is no smaller than the dense "
                f"{out_features} x {in_features} weight",
                stacklevel=2,
            )
        self.init = init
        self.init_std = init_std
        self.energy = energy
        self.rank_events = tuple(rank_events)
        self.rank_multiple = rank_multiple
        self.min_rank = min_rank or max(8, rank // 4)
        self.max_rank = min(max_rank, in_features, out_features)
        self.max_drop = max_drop
        self.U = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.s = nn.Parameter(torch.empty(rank, device=device, dtype=dtype))
        self.V = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self._cast: tuple[Any, Tensor, Tensor] | None = None
        if not self.U.is_meta:
            self.reset_parameters()

    # ---- values

    @draws_whole
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        m, n, r = self.out_features, self.in_features, self.rank
        draw = partial(normal, generator=generator, device=self.U.device)
        U, V = (qf(draw(rows, r, 1.0).to(torch.float64)) for rows in (m, n))
        self._write(U, starting_spectrum(m, n, r, self.init_std, self.init, draw), V)
        if self.bias is not None:
            self.bias.zero_()

    def _write(self, U: Tensor, s: Tensor, V: Tensor) -> None:
        """In place, so that the tensors' versions rise and the cache notices."""
        for parameter, value in zip(self.role_parameters(), (U, s, V), strict=True):
            parameter.copy_(value)

    @classmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """The best rank-r approximation of `weight` (out x in): its truncated SVD, s descending."""
        m, n = weight.shape
        rank = resolve_rank(rank, m, n)
        check_finite(weight)
        layer = cls(n, m, rank, bias=bias is not None, device="meta", dtype=weight.dtype, **options)
        layer.to_empty(device=weight.device)
        U, s, Vh = svd(weight.detach().to(torch.float64))
        if not s[:1].to(weight.dtype).isfinite().all():
            raise UsageError(
                f"The weight has a singular value of {float(s[0]):.2g}, which {weight.dtype} cannot hold: "
                "divide it first, or take the layer lowrank, whose factors have the root of that each."
            )
        with torch.no_grad():
            layer._write(U[:, :rank], s[:rank], Vh[:rank].T)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    # ---- the map

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        U_cast, V_cast = self._narrow(x.dtype)
        y = _Apply.apply(x, self.U, self.s, self.V, U_cast, V_cast)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _narrow(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """U and V in `dtype`, from the cache; None where no cast is needed or the graph does it."""
        if dtype == self.U.dtype or torch.compiler.is_compiling():
            return None, None
        key = (dtype, *((id(p), p._version, p.data_ptr(), p.dtype, p.device) for p in (self.U, self.V)))
        if self._cast is None or self._cast[0] != key:
            # Copies that are made during an evaluation serve the training step after it too.
            with torch.inference_mode(False), torch.no_grad():
                self._cast = (key, self.U.to(dtype), self.V.to(dtype))
        return self._cast[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cast": None}  # copies and pickles do without the cache

    def dense(self) -> Tensor:
        return (self.U * self.s) @ self.V.T

    def role_parameters(self) -> tuple[nn.Parameter, ...]:
        return self.U, self.s, self.V

    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        return self.U * self.s, self.V

    def factored_form(self) -> FactoredForm | None:
        """The singular values split evenly: both factors are of one size, as low precision likes it."""
        root = self.s.abs().sqrt()
        return FactoredForm(down=(self.V * root).T, up=self.U * (root * self.s.sign()))

    @torch.no_grad()
    def orthonormality_error(self) -> float:
        """The largest entry of |U^T U - I| and |V^T V - I|, in float64. Waits for the device."""
        return max(float(orthonormality_error(X)) for X in (self.U, self.V))

    def ledger(self) -> LedgerEntry:
        m, n, r = self.out_features, self.in_features, self.rank
        return LedgerEntry(
            parameters=r * (m + n + 1) + (m if self.bias is not None else 0),
            forward_flops=2 * r * (m + n),
            saved_elements=r,
        )

    # ---- rank

    def resize(self, rank: int) -> None:
        """Put empty parameters of another rank in the place of U, s and V; values are loaded next."""
        rank = resolve_rank(rank, self.out_features, self.in_features)
        if rank == self.rank:
            return
        self.rank = rank
        self._cast = None
        for name in ("U", "s", "V"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:-1], rank)
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))

    def is_adaptive(self) -> bool:
        return self.energy > 0

    @torch.no_grad()
    def change_rank(self, number: int, total: int, generator: torch.Generator) -> RankChange | None:
        if not self.timed(number, total):
            return None
        change = self._choice(generator)
        self.apply_change(change)
        return change

    def timed(self, number: int, total: int) -> object:
        return self.is_adaptive() and number in {round(share * total) for share in self.rank_events}

    def _choice(self, generator: torch.Generator) -> RankChange:
        factors = self.U, self.s, self.V
        rank = shrunken_rank(
            self.s,
            self.energy,
            multiple=self.rank_multiple,
            least=self.min_rank,
            max_drop=self.max_drop,
        )
        if rank == self.rank:
            rank = grown_rank(self.s, self.energy, multiple=self.rank_multiple, most=self.max_rank)
        if rank <= self.rank:
            return canonical(*factors, rank)
        sorted_first = canonical(*factors)
        draws = (
            normal(len(X), rank - self.rank, 1.0, generator, self.U.device).to(torch.float64)
            for X in (self.U, self.V)
        )
        added = grown(*sorted_first.factors(*factors), *draws)
        return RankChange(sorted_first.order, sorted_first.signs, added.added_U, added.added_V)

    @torch.no_grad()
    def apply_change(self, change: RankChange) -> None:
        """Take the new columns; new `Parameter` objects only where the rank is another."""
        U, s, V = change.factors(*self.role_parameters())
        self.resize(change.rank)
        self._write(U, s, V)

    def extra_repr(self) -> str:
        adaptive = f", energy={self.energy:g}" if self.is_adaptive() else ""
        return f"{super().extra_repr()}, init={self.init}{adaptive}"


def starting_spectrum(m: int, n: int, r: int, std: float, init: str, draw: Draw) -> Tensor:
    """s (r), descending, with ||s||_2 = std sqrt(m n); float64, by the smaller Gram matrix."""
    W = draw(m, n, std).to(torch.float64)
    if init == "constant":
        s = W.new_ones(r)
    else:
        gram = W.T @ W if m >= n else W @ W.T
        s = eigvalsh(gram).flip(-1)[:r].clamp_min(0.0).sqrt()
    return s * (std * math.sqrt(m * n) / torch.linalg.vector_norm(s))


def _check(
    init: str,
    init_std: float,
    energy: float,
    rank_events: tuple[float, ...],
    rank_multiple: int,
    min_rank: int,
    max_rank: int,
    max_drop: float,
) -> None:
    if init not in INITS:
        raise UsageError(f"Unknown init {init!r} for an SVD layer; choose one of {', '.join(INITS)}.")
    for holds, sentence in (
        (init_std > 0, f"init_std must be positive, not {init_std!r}"),
        (0 <= energy <= 1, f"energy must be a fraction between 0 (fixed rank) and 1, not {energy!r}"),
        (
            all(0 < share < 1 for share in rank_events),
            f"rank_events must be shares of all updates between 0 and 1, not {rank_events!r}",
        ),
        (rank_multiple >= 1, f"rank_multiple must be 1 or more, not {rank_multiple!r}"),
        (min_rank >= 0, f"min_rank must be 0 (automatic) or more, not {min_rank!r}"),
        (max_rank >= 0, f"max_rank must be 0 (no growth) or more, not {max_rank!r}"),
        (0 <= max_drop <= 1, f"max_drop must be a fraction between 0 and 1, not {max_drop!r}"),
    ):
        if not holds:
            raise UsageError(f"{sentence}.")
