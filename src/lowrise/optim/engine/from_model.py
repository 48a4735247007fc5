"""An optimizer from a model, in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Self

from torch import nn

from lowrise.layers.roles import param_groups
from lowrise.optim.engine.options import check_known_options


class FromModel:
    """The part of `lowrise.optim.Optimizer` that makes the groups by itself."""

    roles: ClassVar[frozenset[str]]

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        lr: float | None = None,
        *,
        other_lr: float | None = None,
        other_weight_decay: float | None = None,
        other_betas: tuple[float, float] | None = None,
        other_eps: float | None = None,
        roles: Collection[str] | None = None,
        targets: str | Iterable[str] | None = None,
        skip: str | Iterable[str] | None = None,
        state_format: str | None = None,
        other_state_format: str | None = None,
        views: Mapping[str, str] | None = None,
        hyperball: bool = False,
        **options: Any,
    ) -> Self:
        """The optimizer over every trainable parameter of a model, each in the group of its role.

        Equal to `cls(param_groups(model, roles=cls.roles, ...), lr=lr, **options)`: `lr` (None: the class's
        default), `weight_decay`, `betas` and all other `options` of the constructor hold for every
        parameter; `other_*` say what differs for those that the built-in AdamW moves (norms, biases,
        embeddings, head, where the class does not take them itself). The rest is as in
        `lowrise.param_groups`. Raises `UsageError`.
        """
        own = inspect.signature(cls).parameters.keys() - {"params"}
        check_known_options(
            options, {*own, *inspect.signature(param_groups).parameters} - {"model"}, own, cls
        )
        groups = param_groups(
            model,
            other_lr=other_lr,
            other_weight_decay=other_weight_decay,
            other_betas=other_betas,
            other_eps=other_eps,
            roles=cls.roles if roles is None else roles,
            targets=targets,
            skip=skip,
            state_format=state_format,
            other_state_format=other_state_format,
            views=views,
            hyperball=hyperball,
        )
        construct: Callable[..., Self] = cls
        return construct(groups, **({} if lr is None else {"lr": lr}), **options)
