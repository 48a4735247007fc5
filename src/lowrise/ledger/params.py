"""Parameter counts, from a model on any device, meta included."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lowrise.layers.base import LowRankLayer
from lowrise.layers.roles import parameter_roles


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of elements; a shared tensor counts once."""

    total: int
    """All parameters, frozen ones too."""
    trainable: int
    """Those with `requires_grad`."""
    non_embedding: int
    """All but the embedding and the head (a tied weight is both, and left out once): the N of scaling laws
    here.
    """
    temporary: int
    """Those that help in a part of training and are not in the result (`LowRankLayer.guide_parameters`)."""
    by_role: dict[str, int]
    """Role ("embedding", "head", "matrix", "factors", "svd", "other") -> elements; roles without parameters
    are left out.
    """


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of any model by role (`lowrise.layers.roles.parameter_roles`)."""
    roles = parameter_roles(model)
    by_role: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        by_role[roles[name]] = by_role.get(roles[name], 0) + parameter.numel()
    total = sum(by_role.values())
    return ParameterCount(
        total=total,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        non_embedding=total - by_role.get("embedding", 0) - by_role.get("head", 0),
        temporary=sum(
            p.numel() for m in model.modules() if isinstance(m, LowRankLayer) for p in m.guide_parameters()
        ),
        by_role=by_role,
    )
