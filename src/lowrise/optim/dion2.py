"""Dion2: Muon on the largest lines of the momentum alone; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.polar import QUINTIC
from lowrise.optim.engine.matrix import Matrices, MatrixOptimizer, gradients, states
from lowrise.optim.engine.product_decay import Decay
from lowrise.optim.engine.units import stacked
from lowrise.optim.rules.orthogonal import (
    NsDtype,
    Ortho,
    ShapeRate,
    check_newton_schulz,
    iteration_dtype,
    orthogonal_flops,
    orthogonalized,
    shape_rate,
)


class Dion2(MatrixOptimizer):
    """Dion2 (Ahn, Amsel, Langford 2025, arXiv 2512.16928; code microsoft/dion): the largest rows or columns
    of the momentum are orthogonalized and decay, the others wait.

    Per matrix W (m x n) with gradient G, momentum M (m x n) from zero, learning rate lr:

    1. M <- M + G
    2. lines are rows if m <= n, else columns; S = the k = max(1, ceil(fraction lines)) lines of M of the
       largest L1 norm
    3. D = M[S]                                                                     (k x n) or (m x k)
    4. M[S] <- ef_decay M[S]                                        what was used decays, the rest is kept
    5. O = quintic Newton-Schulz, five steps, from D / max(||D||_F, ns_eps)
    6. W <- W (1 - lr wd), all of it
    7. W[S] <- W[S] - lr sqrt(m/n) O, by the shape of the whole matrix

    With fraction = 1 it is Muon with summed momentum of decay ef_decay, without Nesterov, to the bit. The
    lines are chosen by size; nothing is random. Where the code shards rows over N ranks, each rank chooses
    among its own by default ("local"), so that a run depends on N; `shards = N` does the same here on any
    number of ranks. With `shards = 1` the choice is of the whole matrix ("global" there), on one rank or
    many: sharded matrices are moved by an owner that has them whole.

    State per matrix: `momentum` (m n elements), and `step`. Roles: "matrix"; for "factors" each factor is a
    matrix of its own; all other parameters by built-in AdamW.
    FLOPs per step: those of the iteration on k x n or m x k (as Muon), and 8 m n.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate before the factor of step 7; 0.01 is the released code's, 0.02 that of its 160M
            recipe.
        fraction: Part of the lines that an update moves, above 0 and at most 1; 0.25 is the released code's.
        ef_decay: What the momentum of these lines is multiplied by; 0.95 as published.
        shards: Blocks of rows of equal size that choose for themselves, as the released code's ranks do;
            rows then, whatever the shape. 1: the whole matrix chooses.
        weight_decay: Decoupled weight decay wd, with the unadjusted lr; 0 here, 0.01 in the released code.
        decay: What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius
            norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries.
        adjust_lr: The factor of step 7. spectral: sqrt(m/n), the released code's; match_rms_adamw: 0.2
            sqrt(max(m, n)); original: sqrt(max(1, m/n)), Muon's; none: 1.
        ortho: How D is orthogonalized. ns5: the quintic; pe: Polar Express, seven steps; svd: exactly, slow,
            waits for the device.
        ns_steps: Newton-Schulz iterations of ns5.
        ns_coefficients: The quintic's a, b, c; Jordan's.
        ns_eps: Least Frobenius norm that D is divided by in ns5.
        ns_dtype: Dtype of ns5. auto: bfloat16 on CUDA, as published, elsewhere float32, and float64 for
            float64 weights; fast: as in Muon.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "factors"})

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        fraction: float = 0.25,
        ef_decay: float = 0.95,
        shards: int = 1,
        weight_decay: float = 0.0,
        decay: Decay = "entries",
        adjust_lr: ShapeRate = "spectral",
        ortho: Ortho = "ns5",
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        ns_eps: float = 1e-7,
        ns_dtype: NsDtype = "auto",
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        check_newton_schulz("Dion2", group)
        if not 0.0 < group["fraction"] <= 1.0:
            raise UsageError(
                f"Dion2 has fraction = {group['fraction']}; it must be above 0 and at most 1 (0.25 as "
                "released)."
            )
        if not 0.0 <= group["ef_decay"] < 1.0:
            raise UsageError(f"Dion2 has ef_decay = {group['ef_decay']}; it must be at least 0 and below 1.")
        if group["shards"] < 1:
            raise UsageError(
                f"Dion2 has shards = {group['shards']}; at least 1 is needed (the whole matrix)."
            )

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (m, n)}

    def directions(
        self, batches: Sequence[Matrices], options: Mapping[str, Any], step: int
    ) -> Iterator[Tensor]:
        momenta = states(batches, "momentum")
        torch._foreach_add_(momenta, gradients(batches))
        chosen: list[tuple[torch.Size, int, Tensor, Tensor]] = []
        kept: list[Tensor] = []
        for batch in batches:
            M = batch.stacked_state("momentum")
            m, n = M.shape[-2:]
            rows, counts = chosen_counts(m, n, options["fraction"], options["shards"])
            sizes = M.abs().sum(dim=-1 if rows else -2)  # (batch, lines)
            S = largest_of_blocks(sizes, counts, options["shards"])  # (batch, k)
            index = S.unsqueeze(-1).expand(-1, -1, n) if rows else S.unsqueeze(-2).expand(-1, m, -1)
            dim = -2 if rows else -1
            D = M.gather(dim, index)
            M.scatter_(dim, index, D * options["ef_decay"])
            chosen.append((M.shape, dim, index, D))
            kept += M.unbind() if len(M) > 1 else ()  # one alone was seen, not copied
        if kept:
            many = [M for batch in batches if len(batch.states) > 1 for M in batch.state("momentum")]
            torch._foreach_copy_(many, kept)
        Ds = [D for *_, own in chosen for D in own.unbind()]
        Os = iter(orthogonalized(Ds, options, dtype=iteration_dtype(options["ns_dtype"], Ds[0])))
        for shape, dim, index, D in chosen:
            moved = stacked([next(Os) for _ in D])
            yield from D.new_zeros(shape).scatter_(dim, index, moved).unbind()

    @classmethod
    def step_scale(cls, m: int, n: int, options: Mapping[str, Any]) -> float:
        return shape_rate(m, n, options["adjust_lr"])

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        rows, counts = chosen_counts(m, n, options["fraction"], options["shards"])
        k = sum(counts)
        inner = orthogonal_flops(k, n, options) if rows else orthogonal_flops(m, k, options)
        # Momentum 1, sizes 2, decay of what was used 1, factor, decay and subtraction 4.
        return inner + 8 * m * n


def chosen_counts(m: int, n: int, fraction: float, shards: int) -> tuple[bool, list[int]]:
    """Whether lines are rows, and how many of each block of them are chosen. Blocks are FSDP2's: as many of
    ceil(lines / shards) lines as there are, then a shorter one.
    """
    rows = m <= n or shards > 1
    lines = m if rows else n
    size = -(-lines // shards)
    blocks = [min(size, lines - start) for start in range(0, lines, size)]
    return rows, [max(1, math.ceil(fraction * block)) for block in blocks]


def largest_of_blocks(sizes: Tensor, counts: list[int], shards: int) -> Tensor:
    """Places (batch, sum of counts), ascending, of the largest `counts[b]` of each block b of sizes
    (batch, lines).
    """
    width = -(-sizes.shape[-1] // shards)
    blocks = zip(sizes.split(width, dim=-1), counts, strict=True)
    places = [part.topk(count, dim=-1).indices + width * b for b, (part, count) in enumerate(blocks)]
    return torch.cat(places, dim=-1).sort(dim=-1).values
