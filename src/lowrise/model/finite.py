"""Weights that are numbers: NaN and infinities are refused by the tensor's name wherever weights are handed
on or used, so that no file, no answer and no new run is made of a model that has diverged.

Looking at such a model is legitimate: `eval` and `inspect` tell it and go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lowrise.errors import UsageError

DIVERGED = "the training has diverged, or the file is damaged; lowrise inspect shows which matrices"


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity. Reads one at a time."""
    return [name for name in tensors if not _is_finite(tensors[name])]


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def finite_sentence(place: str | Path, names: list[str]) -> str:
    """What is wrong, in words."""
    others = f" (and {len(names) - 1} more tensors)" if len(names) > 1 else ""
    return f"{place}: {names[0]} has entries that are NaN or infinite{others}"


def require_finite(tensors: Mapping[str, Tensor], place: str | Path, remedy: str) -> None:
    """Raise `UsageError` for tensors that are not finite: where they lie, the first one, what to do."""
    names = not_finite(tensors)
    if names:
        raise UsageError(f"{finite_sentence(place, names)}: {DIVERGED}. {remedy}")


def rounded_to(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another format. Raises `UsageError` where a finite value is infinite there: float16 ends
    at 65,504."""
    rounded = tensor.to(dtype)
    if dtype != tensor.dtype and _is_finite(tensor) and not _is_finite(rounded):
        require_range(
            name, float(tensor.abs().max()), torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
        )
    return rounded


def require_range(name: str, largest: float, limit: float, format_name: str) -> None:
    """Raise `UsageError` for values beyond what a format holds."""
    if largest > limit:
        raise UsageError(
            f"{name} has a value of {largest:.6g}, and {format_name} ends at {limit:.6g}: it would become "
            "infinite. Take --dtype bfloat16 or float32."
        )
