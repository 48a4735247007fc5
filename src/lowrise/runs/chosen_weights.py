"""Which weights of a checkpoint a command takes; needs no torch."""

from __future__ import annotations

from typing import Literal

Weights = Literal["raw", "ema"]
"""The last ones, or those with the average of the tail (`[ema]`)."""


def told(weights: Weights) -> str:
    """The choice as a line, for runs that have an average."""
    other = "--weights ema takes the average" if weights == "raw" else "--weights raw takes the last ones"
    return f"weights: {weights} ({other})"
