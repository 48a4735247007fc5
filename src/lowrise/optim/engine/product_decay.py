"""`decay = "product"`: factors decay along the gradient of the Frobenius norm of their product
(`rules/product_decay.py`), whatever rule moves them.

An optimizer of factors has the option `decay`. With "product" a group of the role "factors" decays here,
before its rule, which is then handed a weight decay of 0; groups of other roles have no product and decay as
they always do. Both factors are needed whole, so such a group is not moved by rows. Weights of bfloat16 are
decayed and moved in float32 and rounded once, as a decay of 1e-4 alone would be lost in their rounding.

A rule with a place of its own for the decay (`decays_products` of its class) does it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.optim.engine.units import Shape, Unit, batch_elements, chunked, stacked, state_dtype
from lowrise.optim.rules.product_decay import product_decay_terms

Decay = Literal["entries", "product"]


def check_product(group: Mapping[str, Any]) -> None:
    """Raise `UsageError` where the weight is not the product of the factors that would decay."""
    if decays_product(group) and group.get("residual_norm"):
        raise UsageError(
            'decay = "product" decays ||A B^T||_F, and factors of layers that add a residual to A (dlr) have '
            "another weight: leave the option out, or choose another layer, for example lowrank."
        )


def decays_product(group: Mapping[str, Any]) -> bool:
    """Whether the product of a group's pairs decays, and not the entries of its parameters."""
    return group["role"] == "factors" and group.get("decay") == "product"


def product_decay_flops(shapes: Sequence[Shape]) -> int:
    """Of one pair: two Gram matrices, two products with them."""
    return sum(4 * k * r * r for k, r in shapes)


@contextmanager
def product_decayed(
    group: dict[str, Any], units: list[Unit], decayed: Sequence[Unit]
) -> Iterator[tuple[dict[str, Any], list[Unit]]]:
    """Within the block the group and the units as a rule is to see them; pairs among `decayed` have
    decayed.
    """
    if not decays_product(group):
        yield group, units
        return
    wide = {id(p): p.to(state_dtype(p)) for unit in units for p in unit.params}  # itself where it is wide
    _decay(group, [replace(unit, params=tuple(wide[id(p)] for p in unit.params)) for unit in decayed])
    seen = {
        **group,
        "weight_decay": 0.0,
        "params": [wide.get(id(p), p) for p in group["params"]],
        "viewed_group": group.get("viewed_group", group),
    }
    yield seen, [replace(unit, params=tuple(wide[id(p)] for p in unit.params)) for unit in units]
    for unit in units:
        for p in unit.params:
            if wide[id(p)] is not p:
                p.copy_(wide[id(p)])


def _decay(group: Mapping[str, Any], units: Sequence[Unit]) -> None:
    rate = group["lr"] * group["weight_decay"]
    if not rate:
        return
    kinds: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
    for unit in units:
        A, B = unit.params
        kinds.setdefault((A.shape, B.shape, A.dtype, B.dtype, A.device), []).append(unit.params)
    for (*_, device), same in kinds.items():
        for chunk in chunked(same, lambda pair: sum(p.numel() for p in pair), batch_elements(device)):
            factors = [list(members) for members in zip(*chunk, strict=True)]
            A, B = (stacked(members) for members in factors)
            terms = product_decay_terms(A, B, rate)
            for members, change in zip(factors, terms, strict=True):
                torch._foreach_sub_(members, list(change.unbind()))
