"""What every low-rank layer promises.

Factorization, parameter roles, ledger, telemetry and export see a layer only through `LowRankLayer`; they
never ask which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Self, TypeGuard

import torch
from torch import Tensor, nn

from lowrise.distributed.sharding import agreed_seed, copy_whole_, is_sharded, whole_parameters
from lowrise.errors import UsageError
from lowrise.layers.ranks import RankChange
from lowrise.linalg.rank import Above, resolve_rank


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """What one linear map costs. FLOPs count 2 a multiply-add; the addition of a bias is not counted."""

    parameters: int
    """Elements of all parameters, bias included."""
    forward_flops: int
    """FLOPs of the forward pass for one token."""
    saved_elements: int
    """Activation elements per token that the map keeps for its backward pass, besides its input (neighbours
    may share that).
    """
    guide_flops: int = 0
    """Forward FLOPs of one token that a temporary guide adds in the first half of a training run."""
    training_flops: int | None = None
    """FLOPs of forward and backward pass for one token; None: three times the forward pass."""
    pass_flops: int = 0
    """FLOPs of one forward pass that do not depend on its number of tokens (a weight that is formed)."""
    pass_training_flops: int = 0
    """The same for one forward and backward pass together."""


@dataclass(frozen=True, kw_only=True)
class FactoredForm:
    """A trained map as others may store it: y = up(activation(down(x))) + S x, a bias apart.

    Scales of the layer are folded in. S is sparse, m x n, with `values` at the flat positions `index`.
    """

    down: Tensor
    """r x n."""
    up: Tensor
    """m x r."""
    activation: str = "none"
    """"none" or "silu"."""
    values: Tensor | None = None
    """The z entries of S; None: there is no S."""
    index: Tensor | None = None
    """Their positions row by row, distinct and ascending."""


def draws_whole(reset: Callable[[Any, torch.Generator | None], None]) -> Callable[..., None]:
    """For `reset_parameters`: without gradients, and right where ranks share the parameters by rows too.

    There each rank draws the layer as a whole and keeps its rows: from `generator`, which must stand alike at
    all ranks, or from a seed of the first rank's global generator. All ranks of the mesh call it together.
    """

    @wraps(reset)
    @torch.no_grad()
    def reset_parameters(layer: nn.Module, generator: torch.Generator | None = None) -> None:
        shared = next((p for p in layer.parameters(recurse=False) if is_sharded(p)), None)
        if shared is not None and generator is None:
            generator = torch.Generator().manual_seed(agreed_seed(shared))
        with whole_parameters(layer, read=False):
            reset(layer, generator)

    return reset_parameters


class LowRankLayer(nn.Module, ABC):
    """A linear map of `in_features` (n) to `out_features` (m) whose weight is stored in low rank: base class
    of all layers.

    A subclass sets `role`, creates its parameters in `__init__` (an `init` keyword is its own business), and
    does not initialize them on the meta device: after `to_empty`, `reset_parameters` does. What it must write
    is abstract here: `reset_parameters`, `dense`, `role_parameters`, `spectral_factors`, `ledger`,
    `from_dense` and `forward`.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Rank r, an integer of 1 to min(m, n), or more where the class's `rank_above` says so.

    Raises:
        UsageError: An impossible rank.
    """

    role: ClassVar[str]
    """Which rule may move `role_parameters()`: "factors" or "svd"."""
    rank_above: ClassVar[Above] = "refuse"
    """What becomes of a rank above min(m, n)."""
    keeps_base_frozen: ClassVar[bool] = False
    """Whether the dense weight is kept and never trained, so that the factors train though it was frozen."""
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        rank = resolve_rank(rank, out_features, in_features, above=self.rank_above)
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialize all parameters in place, from `generator` or else torch's global one; under
        `draws_whole` after `fully_shard` as well.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """The weight W, out x in, differentiable; `UsageError` where the map has no dense form."""

    @property
    def weight(self) -> Tensor:
        """`dense()`, for modules that read the weight of a layer that they own (`nn.TransformerEncoderLayer`,
        T5). An `AttributeError`, as for any module without a weight, where there is no dense form.
        """
        try:
            return self.dense()
        except UsageError as error:
            raise AttributeError(str(error)) from error

    @abstractmethod
    def role_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters of `role`, in the order of that role's groups: ("factors") A, B; ("svd") U, s, V."""

    def is_gauge_free(self) -> bool:
        """Whether A M and B M^-T are the same map as A and B, for every invertible M; an optimizer may then
        choose other factors of the same product.
        """
        return True

    def residual_norm(self) -> float:
        """A bound of the spectral norm of what the map adds to its factor A; infinite if that is trained."""
        return 0.0

    @abstractmethod
    def spectral_factors(self) -> tuple[Tensor, Tensor] | None:
        """L (m x r), R (n x r) with W = L @ R.T, or None if W is no such product; for telemetry.

        A map without a dense form (an activation between its factors) gives those factors.
        """

    def factored_form(self) -> FactoredForm | None:
        """The map as two factors, for export; None where a dense matrix is part of it, which `dense()` then
        gives as a whole at no more elements.
        """
        return None

    @abstractmethod
    def ledger(self) -> LedgerEntry:
        """Parameters, forward FLOPs and saved activations, from shapes alone (meta device included)."""

    def guide_parameters(self) -> tuple[nn.Parameter, ...]:
        """Dense matrices (role "matrix") that help in a part of training and are not in the result."""
        return ()

    def before_update(self, number: int, total: int) -> None:
        """Called by a training loop before the forward pass of update `number` (1 to `total`).

        For layers that change with time (a guide that fades). Must depend on its arguments and on saved
        tensors alone, so that a resumed run does the same. A layer may drop parameters here, which
        `Optimizer.retain` then forgets; before a checkpoint of update N is loaded, it is called with N, so
        that the layer has the parameters that were saved.
        """

    def after_update(self, number: int, total: int) -> None:
        """Called by a training loop after the optimizer step of update `number`; the same rules hold."""

    def rewrites_after(self, number: int, total: int) -> bool:
        """Whether `after_update` of this update reads or writes parameters. Ranks that share them by rows
        gather them for it.
        """
        return False

    def timed(self, number: int, total: int) -> object:
        """What the layer does at update `number` of `total` because of the time alone; a run may be made
        longer where this is equal for both lengths. None for a layer that no time changes.
        """
        return None

    @torch.no_grad()
    def load_dense_(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Take over a dense weight (m x n) in place, as `from_dense` does at this layer's rank. Collective
        where ranks share the layer by rows; all give the whole weight.

        A layer whose options decide how it stores a weight writes its own.
        """
        # Not load_state_dict, whose hooks FSDP2 has.
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        for name, tensor in type(self).from_dense(weight, self.rank, bias=bias).state_dict().items():
            copy_whole_(own[name], tensor)

    @classmethod
    @abstractmethod
    def from_dense(cls, weight: Tensor, rank: int, *, bias: Tensor | None = None, **options: Any) -> Self:
        """The layer nearest to a dense weight (m x n) at this rank, on its device and in its dtype."""

    @classmethod
    def _empty_for(cls, weight: Tensor, rank: int, bias: Tensor | None, options: Mapping[str, Any]) -> Self:
        """A layer of the shape, device and dtype of a dense weight, its bias set, its other parameters
        not.
        """
        out_features, in_features = weight.shape
        rank = resolve_rank(rank, out_features, in_features)
        arguments = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype, **options}
        layer = cls(in_features, out_features, rank, **arguments)
        layer.to_empty(device=weight.device)
        if layer.bias is not None and bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


class LatentLayer(LowRankLayer):
    """A layer that passes through an r-wide latent: base class of those that can be recomputed from it.

    1. latent = encode(x)      tokens x n -> tokens x r
    2. y = decode(latent)      tokens x r -> tokens x m

    Recomputation may keep the latents alone (`model.llama.Block.forward_from_latents`).

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: Width r of the latent.

    Raises:
        UsageError: An impossible rank.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The latent of x."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """The output that belongs to a latent, bias included."""

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class AdaptiveRankLayer(LowRankLayer):
    """A layer with orthonormal factors, whose rank may change during training: base class of those.

    `lowrise.train.ranks` asks it after every update, and the optimizer follows.
    """

    @abstractmethod
    def is_adaptive(self) -> bool:
        """Whether this one's rank may change: an option of it."""

    @abstractmethod
    def resize(self, rank: int) -> None:
        """Take empty parameters of another rank, for values that are loaded next."""

    @abstractmethod
    def change_rank(self, number: int, total: int, generator: torch.Generator) -> RankChange | None:
        """Choose the columns anew after update `number` of `total`; None, and nothing done, where that is not
        due.

        Where the rank changes, `role_parameters()` are new objects; else they are written in place.
        """

    @abstractmethod
    def orthonormality_error(self) -> float:
        """How far the factors are from orthonormal ones."""


def notify_layers(model: nn.Module, number: int, total: int) -> None:
    """`before_update` of every layer, for tensors of update `number` of `total` that are loaded next; nothing
    at 0, before the first one.
    """
    for layer in model.modules():
        if isinstance(layer, LowRankLayer) and number:
            layer.before_update(number, total)


def is_adaptive(module: nn.Module) -> TypeGuard[AdaptiveRankLayer]:
    """Whether this is a layer whose rank may change."""
    return isinstance(module, AdaptiveRankLayer) and module.is_adaptive()
