"""What a constructor's signature says is what groups hold and what is checked, for every optimizer."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterable

SHAPES = {"matrix": [(6, 4)], "factors": [(6, 2), (4, 2)], "svd": [(6, 2), (2,), (4, 2)]}
LITERALS = [
    (name, option, typing.get_args(hint))
    for name, cls in OPTIMIZERS.items()
    for option, hint in typing.get_type_hints(cls.__init__).items()
    if typing.get_origin(hint) is Literal
]


def groups_for(cls: type[Optimizer]) -> list[dict[str, Any]]:
    role = next(role for role in SHAPES if role in cls.roles)
    return [{"params": [nn.Parameter(torch.ones(shape)) for shape in SHAPES[role]], "role": role}]


def built(cls: type[Optimizer], **options: Any) -> Optimizer:
    construct: Any = cls
    return construct(groups_for(cls), **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_hold_every_option_of_the_signature(name: str) -> None:
    cls = OPTIMIZERS[name]
    options = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name != "params"}
    (group,) = built(cls).param_groups
    assert {key: group[key] for key in options} == options
    assert not group.keys() & {"self", "__class__"}


@pytest.mark.parametrize(("name", "option", "choices"), LITERALS)
def test_a_value_that_the_annotation_does_not_list_is_refused(
    name: str, option: str, choices: tuple[str, ...]
) -> None:
    cls = OPTIMIZERS[name]
    with pytest.raises(UsageError, match=f"{option} = 'sideways'; choose") as caught:
        built(cls, **{option: "sideways"})
    assert all(choice in str(caught.value) for choice in choices)
    optimizer = built(cls)
    with pytest.raises(UsageError, match=f"{option} = 'sideways'; choose"):
        optimizer.add_param_group({**groups_for(cls)[0], option: "sideways"})
    assert len(optimizer.param_groups) == 1


def test_a_subclass_may_have_another_signature() -> None:
    class Slow(Muon):
        def __init__(self, params: Iterable[Any], tempo: Literal["slow"] = "slow") -> None:
            super().__init__(params, lr=1e-4, momentum=0.5)

    optimizer = Slow([nn.Parameter(torch.ones(3, 2))])  # Iterable is there for type checkers alone
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], "tempo" in group) == (1e-4, 0.5, False)


def test_a_subclass_without_a_constructor_is_checked_by_the_one_that_it_inherits() -> None:
    class Named(AdamW):
        pass

    with pytest.raises(UsageError, match="Named has decay = 'norm'; choose one of entries, product"):
        Named([nn.Parameter(torch.ones(3, 2))], decay="norm")  # type: ignore[arg-type]
