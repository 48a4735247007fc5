"""No step reads a number from the device, seen on a CPU: what would wait for a GPU is an operator that turns
tensors into Python numbers or into shapes. Counters (`step`) lie on the CPU and may be read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.test_optimizers import EXTRA, build, make_params, set_grads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lowrise
from lowrise.optim import OPTIMIZERS
from lowrise.optim.engine.options import UNIT_SIZE

READING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
# Files that read, and why they may.
LINALG = Path(lowrise.__file__).parent / "linalg"
MAY = {
    str(LINALG / "solvers.py"): "decompositions, which wait by themselves",
    str(LINALG / "fixed_rank.py"): "LORO's exact step, one in hundreds",
    str(LINALG / "orthonormal.py"): "on a CPU alone",
}
# Methods that decompose by default: the bases of GaLore and Fira when they are renewed.
DECOMPOSE = {"galore", "fira"}
CASES = [
    pytest.param(name, role, options, id=f"{name}-{role}-{i}")
    for name in OPTIMIZERS
    for i, options in enumerate([{}, *EXTRA.get(name, [])])
    if "state_format" not in options
    for role in sorted(UNIT_SIZE)
    if role in OPTIMIZERS[name].roles or (role == "other" and not i)
]


class Watch(TorchDispatchMode):
    """Collects operators that read tensors other than those allowed, and the files of MAY that do."""

    def __init__(self, allowed: list[Tensor]) -> None:
        super().__init__()
        self.allowed = {tensor.data_ptr() for tensor in allowed}
        self.read: list[str] = []
        self.files: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, Tensor)]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if (name in READING and any(t.data_ptr() not in self.allowed for t in tensors)) or by_mask:
            place = next((MAY[file] for file in callers() if file in MAY), None)
            self.read += [name] if place is None else []
            self.files |= {place} if place is not None else set()
        return func(*args, **(kwargs or {}))


def callers() -> Iterator[str]:
    """The files of the frames that led here."""
    frame = sys._getframe()
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_a_step_reads_counters_alone(name: str, role: str, options: dict[str, Any]) -> None:
    named = make_params(role)
    optimizer = build(name, role, named, options)
    counters = [state["step"] for state in optimizer.state.values()]
    for t in range(4):
        set_grads(named, t)
        with Watch(counters) as watch:
            optimizer.step(grad_norm=1.0)  # as in the training loop, which knows the norm
        assert not watch.read, f"step {t + 1}"
        if not options and name not in DECOMPOSE:
            assert watch.files <= {"on a CPU alone"}, f"step {t + 1}"


def test_reading_is_seen() -> None:
    counter, other = torch.ones(()), torch.ones(3)
    with Watch([counter]) as watch:
        counter.item()
        assert not watch.read
        other.sum().item()
        other[other > 0]
        torch.equal(other, other)
    assert watch.read == ["_local_scalar_dense", "index", "equal"]
