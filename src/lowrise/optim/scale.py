"""SCALE: SGD with normalized rows or columns; the algorithm is in the class's docstring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.engine.matrix import MatrixOptimizer
from lowrise.optim.engine.natively import divided
from lowrise.optim.engine.units import Unit


class SCALE(MatrixOptimizer):
    """SCALE: SGD with normalized rows or columns, and momentum for the output head alone (Glentis et al.
    2025, arXiv 2506.16659; code OptimAI-Lab/Minimalist_LLM_Pretraining).

    Per weight W (m x n, out x in; an embedding is vocabulary x width) with gradient G, learning rate lr:

    1. head only: M <- beta M + (1 - beta) G, and M in place of G below                    (m x n)
    2. U = G / max(RMS of the slice, norm_eps), where a slice is
       a row, the n inputs of one output, for matrices and the head;
       a column, one coordinate of all tokens, for the embedding
    3. W <- W (1 - lr wd)
    4. W <- W - lr U                                                                       an update of RMS lr

    The paper calls 2 column normalization, for its W is in x out. `norm_eps` is absolute, as in the code:
    slices quieter than 1e-8, such as the head's rows of tokens that never occur, are not blown up to RMS 1.
    A weight that is embedding and head at once is an embedding: no momentum. A weight stored in x out
    (Hugging Face's `Conv1D`) has its slices the other way round.

    State: `momentum` (m n elements) for the head, none for the rest, and `step`. Roles: "matrix",
    "embedding", "head"; norms and biases by built-in AdamW. FLOPs per step: 7 m n, for the head 10 m n.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
            Without it, pass `roles=SCALE.roles` to `param_groups`.
        lr: Learning rate, the RMS of an update; 1e-3 is the released code's.
        momentum: Decay rate beta of the average of the head's gradients; 0.9 as published.
        norm_eps: Least RMS that a row or column is divided by; 1e-8 is the released code's.
        weight_decay: Decoupled weight decay wd; 0 as published.

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"matrix", "embedding", "head"})
    by_rows: ClassVar[frozenset[str]] = frozenset({"matrix", "head"})
    uses_step: ClassVar[bool] = False
    native_passes: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        norm_eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        if not group["norm_eps"] > 0.0:
            raise UsageError(
                f"SCALE has norm_eps = {group['norm_eps']}; it must be above 0 (1e-8 as published), because "
                "the lines of unused tokens are zero."
            )

    @classmethod
    def state_shapes(cls, m: int, n: int, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (m, n)} if options["role"] == "head" else {}

    def direction(self, G: Tensor, state: dict[str, Tensor], options: Mapping[str, Any], step: int) -> Tensor:
        if "momentum" in state:
            G = state["momentum"].lerp_(G, 1.0 - options["momentum"])
        return normalized_lines(G, dim=_dim(options), eps=options["norm_eps"])

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        """In C++ where that can be, else by `direction`."""
        if type(self) is not SCALE:  # a class of another direction
            super()._update(group, units)
            return
        passes, native, rest = divided(group, units, ["momentum"])
        if passes is not None and native:
            passes.normalized_update(
                [unit.params[0] for unit in native],
                [unit.grads[0] for unit in native],
                [unit.states[0]["momentum"] for unit in native if "momentum" in unit.states[0]],
                dim=_dim(group),
                momentum=group["momentum"],
                eps=group["norm_eps"],
                rate=group["lr"],
                keep=1.0 - group["lr"] * group["weight_decay"],
            )
        super()._update(group, rest)

    @classmethod
    def matrix_flops(cls, m: int, n: int, options: Mapping[str, Any]) -> int:
        # Squares and their sums 2, quotient 1, rate 1, decay and subtraction 2, rounded up; momentum 3.
        return (10 if options["role"] == "head" else 7) * m * n


def _dim(options: Mapping[str, Any]) -> int:
    """Along which the slices of step 2 lie."""
    return -2 if options["role"] == "embedding" else -1


def normalized_lines(G: Tensor, *, dim: int, eps: float) -> Tensor:
    """G (..., m, n) with every line along `dim` divided by max(its RMS, eps), in a new tensor."""
    if dim == -1:  # one pass; along columns torch's norm is the slower one on a CPU
        rms = torch.linalg.vector_norm(G, dim=-1, keepdim=True).mul_(G.shape[-1] ** -0.5)
    else:
        rms = G.square().mean(dim=dim, keepdim=True).sqrt_()
    return G / rms.clamp_(min=eps)
