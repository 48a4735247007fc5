"""A region in which a float32 matrix product is a float32 matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Switch TF32, bfloat16 shortcuts and autocast off, and put the user's setting back afterwards.

    A bound that is proved for float32 rounding (2^-24) does not hold for TF32 (2^-11), which training scripts
    switch on for speed with `torch.set_float32_matmul_precision("high")`. Host-side flags only: no wait for
    the device.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
