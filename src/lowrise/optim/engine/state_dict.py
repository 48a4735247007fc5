"""Saving and loading an optimizer's state, under torch's numbers or under the parameters' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from lowrise.distributed.sharding import copy_whole_, has_copies
from lowrise.errors import UsageError
from lowrise.optim.engine.options import Made, check_numbers, made_for, parameter_name, require_match
from lowrise.optim.engine.ownership import Ownership
from lowrise.optim.engine.state_formats import format_of, opened
from lowrise.optim.engine.units import units_of


class Saved(torch.optim.Optimizer):
    """The part of `lowrise.optim.Optimizer` that writes and reads its state."""

    ownership: Ownership
    _built: dict[Tensor, Made]
    """Parameter -> what its state was made for."""
    _told_of_no_gradient = False

    def forget(self, param: Tensor) -> dict[str, Tensor]:
        """Give up a parameter's state, which is returned, its owner and its shape; it is the caller who takes
        it out of its group.
        """
        self._built.pop(param, None)
        self.ownership.forget(param)
        state: dict[str, Tensor] = self.state.pop(param)
        return state

    def rename(self, old: Tensor, new: Tensor) -> dict[str, Tensor]:
        """Let `new` stand for `old` with its owner; returns the state of `old`, from which the caller makes
        that of `new`.
        """
        self._built.pop(old, None)
        self._built[new] = made_for(new)
        self.ownership.rename(old, new)
        state: dict[str, Tensor] = self.state.pop(old)
        return state

    def settle(self) -> None:
        """Bring the state up to what the steps so far have done, before it is read from outside."""

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        state: dict[str, Any] = super().__getstate__()
        return state

    def state_dict(self) -> dict[str, Any]:
        """torch's, in which an option that is a function has the text "function MODULE.NAME" in its place.

        So it loads with `weights_only=True`; the function itself is given again when the optimizer is built.
        """
        self.settle()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({key: _function_text(value) for key, value in group.items() if callable(value)})
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, also through `torch.load(..., weights_only=True)`.

        torch's own method casts moments to the dtype of the parameter, which turns float32 moments of
        bfloat16 weights into bfloat16. Here values are copied into the tensors that exist, which keep their
        dtype; where a parameter has moved to another device since construction, its state follows. Options
        are the saved ones; functions stay those of this optimizer. Load hooks run, but see an empty "state".
        Raises `UsageError`, changing nothing, if groups, roles, state names or shapes differ, or if an option
        is a function on one side only.
        """
        self.settle()
        mine, saved = self.param_groups, state_dict["param_groups"]
        if [len(g["params"]) for g in mine] != [len(g["params"]) for g in saved]:
            raise UsageError(
                f"the saved optimizer has groups of {[len(g['params']) for g in saved]} parameters, this one "
                f"of {[len(g['params']) for g in mine]}; build the optimizer from the same model and groups."
            )
        copies: list[tuple[dict[str, Tensor], str, Tensor, torch.device]] = []
        groups = []
        for number, (own_group, saved_group) in enumerate(zip(mine, saved, strict=True)):
            for option, here in (
                ("role", own_group["role"]),
                ("state_format", format_of(own_group)),
                ("view", own_group.get("view")),
            ):
                before = format_of(saved_group) if option == "state_format" else saved_group.get(option)
                if before != here and (option != "role" or "role" in saved_group):
                    raise UsageError(
                        f"parameter group {number} was saved with the {option} {before!r} and is {here!r} "
                        "here; build the groups as they were."
                    )
            for flag in ("maximize", "amsgrad", "differentiable"):
                if saved_group.get(flag) and flag not in own_group:
                    raise UsageError(
                        f"parameter group {number} was saved by an optimizer with {flag} = "
                        f"{saved_group[flag]!r}, which {type(self).__name__} does not have."
                    )
            if saved_group.get("decoupled_weight_decay") is False and saved_group.get("weight_decay"):
                raise UsageError(
                    f"parameter group {number} was saved by an optimizer that adds its weight_decay = "
                    f"{saved_group['weight_decay']!r} to the gradient (torch.optim.Adam), and "
                    f"{type(self).__name__} decays the weights themselves: the update would be another one "
                    "from here on. Set weight_decay = 0 in the saved groups and choose a new one, or load "
                    "the state of torch.optim.AdamW."
                )
            groups.append(_with_own_functions(saved_group, own_group))
            check_numbers(groups[-1], where=f"saved parameter group {number}")
            for i, key in enumerate(saved_group["params"]):
                name, param = parameter_name(own_group, i), own_group["params"][i]
                state, new = self.state[param], state_dict["state"].get(key, {})
                require_match(
                    {f"{name}.{k}": t for k, t in state.items()},
                    {f"{name}.{k}": t for k, t in new.items()},
                    check_dtype=False,
                )
                copies.extend((state, k, new[k], param.device) for k in state)
        kept = self.state
        # the groups' options, and the hooks
        super().load_state_dict({**state_dict, "param_groups": groups, "state": {}})
        self.state = kept
        with torch.no_grad():
            for state, key, source, device in copies:
                if key != "step" and state[key].device != device:
                    state[key] = torch.empty_like(state[key], device=device)
                state[key].copy_(source)

    def opened_state(
        self, group: dict[str, Any], params: Sequence[Tensor]
    ) -> AbstractContextManager[list[dict[str, Tensor]]]:
        """The state of some parameters of a group, with moments in float32 whatever their format; what is
        written into them in place is stored at the end. For use between two steps.
        """
        self.settle()
        return self._opened(group, params)

    @contextmanager
    def _opened(self, group: dict[str, Any], params: Sequence[Tensor]) -> Iterator[list[dict[str, Tensor]]]:
        """The same within a step."""
        states = [self.state[p] for p in params]
        if format_of(group) == "float32":
            yield states
            return
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        place = {id(p): f"{number}/{i}" for i, p in enumerate(group["params"])}
        with opened(states, [place[id(p)] for p in params]) as floats:
            yield floats

    def named_state(self) -> dict[str, Tensor]:
        """Every state tensor under "{parameter name}.{state name}". Live tensors, not copies.

        Raises `UsageError` if the parameters were given without names.
        """
        self.settle()
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            if "param_names" not in group:
                raise UsageError(
                    f"{type(self).__name__} was built from parameters without names, so its state cannot be "
                    "saved by name; pass model.named_parameters() or lowrise.param_groups(model, lr=...)."
                )
            for name, param in zip(group["param_names"], group["params"], strict=True):
                named.update({f"{name}.{key}": tensor for key, tensor in self.state[param].items()})
        return named

    def common_state(self) -> dict[str, Tensor]:
        """Of `named_state`, what every rank has a copy of, or every copy of a model the rows."""
        common = {}
        for group in self.param_groups:
            names = iter(group["param_names"])
            for unit in units_of(group):
                owned = self.ownership.owner(unit) is not None
                for p, name in zip(unit, names, strict=False):
                    for key, tensor in self.state[p].items():
                        if key == "step" or (not owned and has_copies(tensor)):
                            common[f"{name}.{key}"] = tensor
        return common

    def load_named_state(self, named: Mapping[str, Tensor]) -> None:
        """Copy `named` into the state. Raises `UsageError`, changing nothing, unless names, shapes and dtypes
        all agree. Tensors that ranks share by rows may be given whole or shared alike.
        """
        own = self.named_state()
        require_match(own, named, check_dtype=True)
        with torch.no_grad():
            for key, tensor in own.items():
                copy_whole_(tensor, named[key])


def _function_text(value: Any) -> str:
    return f"function {value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _with_own_functions(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a saved group, with this optimizer's functions where the saved one had some, and this
    optimizer's options where it had none (the state of a torch.optim.AdamW, say).
    """
    options = {k: v for k, v in own.items() if k not in ("params", "param_names")} | dict(saved)
    for key, value in saved.items():
        was_function = isinstance(value, str) and value.startswith("function ")
        if was_function != callable(own.get(key)) and key in own:
            there, here = (value, _function_text(own[key])) if callable(own[key]) else (value, own[key])
            raise UsageError(
                f"the saved optimizer has {key} = {there!r}, this one {here!r}: build it with the same, a "
                "function cannot be saved."
            )
        if was_function and key in own:
            options[key] = own[key]
    return options
