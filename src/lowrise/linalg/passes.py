"""Elementwise passes of SCALE, SinkGD and GWT on a CPU, in C++ (`passes.cpp`): a matrix goes through the
cache once or twice where torch's operations go through memory 8 to 12 times.

torch's form stays with each rule, as the reference; results are equal to rounding. It is what runs for
tensors that are not plain float32 on a CPU with contiguous rows, under `torch.compile` and dispatch modes,
and where there is no compiler. $LOWRISE_PASSES = "torch" forbids the C++, "native" asks for it (an error
where it cannot be had), "auto" or nothing takes it where it can be had. `path` says which it is, and `follow`
keeps a run that is continued on the path that it began with.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lowrise.errors import UsageError
from lowrise.linalg.compiled import Library, library

VARIABLE = "LOWRISE_PASSES"
SOURCE = Path(__file__).with_name("passes.cpp")
_followed: str | None = None

_address, _integer, _real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _address) for name in ("W", "G", "M", "V", "r", "c")),
        *((name, _integer) for name in ("m", "n", "W_row", "G_row")),
    )


# What follows the matrices, their number and that of threads.
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "scaled_update": (_real,),
    "normalized_rows": (_real, _real, _real, _real),
    "normalized_columns": (_real, _real, _real),
    "sinkhorn": (_integer, _integer, _real),
    "haar_moments": (_integer, ctypes.c_double, ctypes.c_double, _real, _address),
    "haar_update": (_integer, _real, _address, _address, _real),
}


def wanted() -> Literal["auto", "native", "torch"]:
    """What $LOWRISE_PASSES says. Raises `UsageError` for another word."""
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "native", "torch"):
        raise UsageError(f'{VARIABLE} = {value!r}: it is "auto", "native" or "torch".')
    return value  # type: ignore[return-value]


def path() -> Literal["native", "torch"]:
    """Which form steps on a CPU take; the C++ is compiled here at its first use on a machine.

    Raises `UsageError` if $LOWRISE_PASSES asks for C++ that cannot be had.
    """
    asked = wanted()
    if asked == "torch" or (asked == "auto" and _followed == "torch"):
        return "torch"
    if library(SOURCE) is not None:
        return "native"
    if asked == "native":
        raise UsageError(
            f"{VARIABLE} = native, and the passes in C++ cannot be compiled: install g++ or clang++, or name "
            f"a compiler with CXX, or set {VARIABLE}=auto."
        )
    return "torch"


def follow(began_with: str | None) -> None:
    """Keep the path that a run began with ("torch" or "native"); None: that of this machine."""
    global _followed
    _followed = began_with


class Passes:
    """Rules on lists of matrices, each in place; every list has an entry a matrix."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._functions: dict[str, Callable[..., None]] = {}
        for name, arguments in _ARGUMENTS.items():
            function = getattr(handle, name)
            function.restype = None
            function.argtypes = (_address, _integer, _integer, *arguments)
            self._functions[name] = function

    def scaled_update(
        self, W: Sequence[Tensor], G: Sequence[Tensor], r: Sequence[Tensor], c: Sequence[Tensor], keep: float
    ) -> None:
        """W <- keep W - Diag(r) G Diag(c); W, G (m, n), r (m,), c (n,)."""
        self._run("scaled_update", {"W": W, "G": G, "r": r, "c": c}, keep)
        _written(W)

    def normalized_update(
        self, W: Sequence[Tensor], G: Sequence[Tensor], M: Sequence[Tensor] | None, *,
        dim: int, momentum: float, eps: float, rate: float, keep: float,
    ) -> None:  # fmt: skip
        """W <- keep W - rate G / max(RMS of each line along `dim`, eps); with M (rows alone), first
        M <- momentum M + (1 - momentum) G, and M for G.
        """
        if dim == -2:
            self._run("normalized_columns", {"W": W, "G": G}, eps, rate, keep)
        else:
            tensors = {"W": W, "G": G} | ({"M": M} if M else {})
            self._run("normalized_rows", tensors, 1.0 - momentum, eps, rate, keep)
        _written([*W, *(M or ())])

    def sinkhorn(
        self, G: Sequence[Tensor], *, iters: int, rows_first: bool, guard: float
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`sinkhorn_vectors` of every G: r (m,) and c (n,) of each."""
        r, c = ([g.new_empty(g.shape[side]) for g in G] for side in (0, 1))
        self._run("sinkhorn", {"G": G, "r": r, "c": c}, iters, rows_first, guard * guard)
        return r, c

    def haar_moments(
        self, G: Sequence[Tensor], M: Sequence[Tensor], V: Sequence[Tensor], *,
        level: int, betas: tuple[float, float], eps: float,
    ) -> Tensor:  # fmt: skip
        """GWT's moments (m, ceil(n / 2^level)), step 2; ||M / (sqrt(V) + eps)||_F of each (matrices,)."""
        norms = G[0].new_empty(len(G))
        self._run("haar_moments", {"G": G, "M": M, "V": V}, level, *betas, eps, norms.data_ptr())
        _written([*M, *V])
        return norms

    def haar_update(
        self, W: Sequence[Tensor], G: Sequence[Tensor], M: Sequence[Tensor], V: Sequence[Tensor], *,
        level: int, eps: float, details: Tensor, approximations: Tensor, keep: float,
    ) -> None:  # fmt: skip
        """W <- keep W - ((G - mean of its block) details + approximations M) / (sqrt(V) + eps); `details` and
        `approximations` (matrices,) are contiguous.
        """
        addresses = details.data_ptr(), approximations.data_ptr()
        self._run("haar_update", {"W": W, "G": G, "M": M, "V": V}, level, eps, *addresses, keep)
        _written(W)

    def _run(self, name: str, tensors: dict[str, Sequence[Tensor]], *numbers: float) -> None:
        count = len(tensors["G"])
        matrices = (_Matrix * count)()
        for key, each in tensors.items():
            for matrix, tensor in zip(matrices, each, strict=True):
                setattr(matrix, key, tensor.data_ptr())
                if key in ("W", "G"):
                    setattr(matrix, f"{key}_row", tensor.stride(0))
                    matrix.m, matrix.n = tensor.shape
        self._functions[name](matrices, count, torch.get_num_threads(), *numbers)


def passes_here() -> Passes | None:
    """The passes in C++, or None where torch's form is to run, whatever the tensors."""
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return None
    found = library(SOURCE) if path() == "native" else None
    return None if found is None else _bound(found)


@functools.cache
def _bound(found: Library) -> Passes:
    return Passes(found.handle)


def fits(matrices: Sequence[Tensor], whole: Sequence[Tensor] = ()) -> bool:
    """Whether these can go through the passes: `matrices` with contiguous rows, `whole` contiguous."""
    return all(map(_has_rows, matrices)) and all(_is_plain(t) and t.is_contiguous() for t in whole)


def _is_plain(t: Tensor) -> bool:
    return type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.dtype == torch.float32


def _has_rows(t: Tensor) -> bool:
    """Whether it is a matrix whose rows are contiguous and do not overlap."""
    return _is_plain(t) and t.ndim == 2 and t.numel() > 0 and t.stride(1) == 1 and t.stride(0) >= t.shape[1]


def _written(tensors: Sequence[Tensor]) -> None:
    """Autograd learns of it: a backward pass through what has changed since is an error, as ever."""
    torch.autograd.graph.increment_version(tensors)
