"""A region in which a float32 matrix product is a float32 matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in own:
            backend.fp32_precision = precision
        if not own:
            torch.set_float32_matmul_precision(before)
