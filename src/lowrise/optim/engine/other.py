"""The built-in AdamW, by which an optimizer updates every parameter that is in no role of its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowrise.optim.engine.units import BATCH_ELEMENTS, Unit, chunked, steps_of
from lowrise.optim.rules.adamw import Form, adamw_update_


def update_by_adamw(group: Mapping[str, Any], units: Sequence[Unit], *, form: Form = "torch") -> None:
    """The rule for every role that a class does not move itself, with the group's lr, betas, eps and
    weight_decay.
    """
    members = [m for unit in units for m in zip(unit.params, unit.grads, unit.states, strict=True)]
    for chunk in chunked(members, lambda member: member[0].numel(), BATCH_ELEMENTS):
        params, grads, states = zip(*chunk, strict=True)
        adamw_update_(
            list(params),
            list(grads),
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            steps_of(states),
            lr=group["lr"],
            betas=tuple(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            form=form,
        )
