"""Whether a float32 matrix product is one, a region in which it is, and copies in other dtypes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Switch TF32, bfloat16 shortcuts and autocast off, and put the user's setting back afterwards.

    A bound that is proved for float32 rounding (2^-24) does not hold for TF32 (2^-11), which training scripts
    switch on for speed. Host-side flags only: no wait for the device.
    """
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    # torch 2.9 gave each backend a setting of its own, and its older global getter raises once one was used.
    own = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    before = "" if own else torch.get_float32_matmul_precision()
    try:
        for backend, _ in own:
            backend.fp32_precision = "ieee"
        if not own:
            torch.set_float32_matmul_precision("highest")
        with _no_autocast(device):
            yield
    finally:
        for backend, precision in own:
            backend.fp32_precision = precision
        if not own:
            torch.set_float32_matmul_precision(before)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off, where the device has any ("meta" has not)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def multiplies_in_full(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of matrices is rounded as their dtype says. Host-side flags only.

    No for float32 where the user allows TF32 or bfloat16 products on the device, and under autocast. Compiled
    code keeps the answer of when it was compiled.
    """
    if dtype == torch.float64:
        return True
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return False
    kind: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(kind, "matmul", None)
    # From the device's own setting to the general one; "none" leaves it to the next.
    settings = [getattr(place, "fp32_precision", "none") for place in (matmul, kind, torch.backends)]
    decided = next((setting for setting in settings if setting != "none"), None)
    if decided is not None:
        return decided == "ieee"
    if hasattr(matmul, "fp32_precision"):
        return True
    return torch.get_float32_matmul_precision() == "highest"


# All that torch.compiler.assume_constant_result does, without importing the compiler, which takes a second.
multiplies_in_full._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def multiplies_fast_in_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones: on CUDA, and on processors with
    instructions for them (AMX, AVX512-BF16, Arm's BF16); others widen each number first and are slower.

    Asked of the processor's flags and not of a stopwatch, so that one machine gives one answer at every start
    and a run that continues there does so to the last bit. False where the flags cannot be read.
    """
    if device_type != "cpu":
        return device_type == "cuda"
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


def in_dtypes(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Each tensor in its dtype: itself where it has that, else a copy; all copies at once."""
    result = list(tensors)
    other = [i for i, (t, dtype) in enumerate(zip(tensors, dtypes, strict=True)) if t.dtype != dtype]
    if other:
        copies = [torch.empty_like(tensors[i], dtype=dtypes[i]) for i in other]
        torch._foreach_copy_(copies, [tensors[i] for i in other])
        for i, copy in zip(other, copies, strict=True):
            result[i] = copy
    return result
