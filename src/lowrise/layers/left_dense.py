"""Maps that `factorize` leaves dense by itself, or takes and says so: those of adapters, those like heads."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import nn

from lowrise.layers.dense import dense_weight

NAMED = 3
"""Names that a warning shows."""


def is_subclass_of_linear(module: nn.Module) -> bool:
    """Whether this is an `nn.Linear` of another class, which may read its weight in other ways."""
    return isinstance(module, nn.Linear) and type(module) is not nn.Linear


def under_adapters(model: nn.Module) -> set[str]:
    """Names of the modules within peft's adapters: their own maps, and the one that each adapts.

    Merging an adapter adds to `base_layer.weight`, which of a factorized map is a product made anew: what is
    added to it is lost. What wraps a whole model (`peft_config`) is no adapter.
    """
    tops = [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("peft.") and not hasattr(module, "peft_config")
    ]
    prefixes = tuple(f"{name}." if name else "" for name in tops)
    return {name for name, _ in model.named_modules() if prefixes and name.startswith(prefixes)}


def warn_of_doubtful(
    model: nn.Module, linear: Mapping[str, nn.Module], chosen: Iterable[str], adapted: set[str]
) -> None:
    """Warn of base maps that stay dense under adapters, and of maps that are taken though they may be heads:
    several with a row for each token of the largest embedding, and fewer columns.
    """
    base = [name for name in linear if name in adapted and name.endswith("base_layer")]
    if base:
        warnings.warn(
            f"factorize leaves {len(base)} maps dense that adapters of peft adapt ({_shown(base)}): merging "
            "adds to their weight. Factorize before get_peft_model to have their factors.",
            stacklevel=4,
        )
    rows = max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0)
    shapes = {name: w.shape for name in chosen if (w := dense_weight(linear[name])) is not None}
    like_heads = [name for name, shape in shapes.items() if shape[0] == rows > shape[1]]
    if len(like_heads) > 1:
        warnings.warn(
            f"factorize takes {len(like_heads)} maps with {rows} rows, one for each token, as output heads "
            f"have ({_shown(like_heads)}): name them in skip if they are heads.",
            stacklevel=4,
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)
