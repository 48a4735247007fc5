"""The norm-growth limiter of Fira (arXiv 2410.01623, section 4.3), also in APOLLO and GWT: the norm of an
update may grow by at most the factor gamma a step over the norm that was last applied, and fall freely.

With n the norm of this update and q the remembered one:

    f = max(n / (q + 1e-8), gamma) / gamma        (1 at the first update)
    update <- update / f,  q <- n / f

In the authors' code a single zero gradient sets q = 0, after which the update is capped at 1.01e-8 and grows
by 1% a step: about 1,500 steps until it is back to half its size. A non-finite one makes q NaN for good. The
rule "safe" leaves q alone where n is 0 or not finite, and takes q = 0 as "no update yet".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lowrise.errors import UsageError

Limiter = Literal["safe", "reference", "off"]
GAMMA = 1.01  # the authors' constant
_EPS = 1e-8


def limit_growth(
    norms: Tensor, previous: Tensor, first: Tensor | bool, *, gamma: float = GAMMA, rule: Limiter = "safe"
) -> tuple[Tensor, Tensor]:
    """The divisors f and the norms to remember, for a batch of matrices; no waiting for the device.

    norms, previous: (batch,), of one dtype. first: (batch,) of bool, whether this is a matrix's first update,
    or one answer for all.
    `rule` "off": divisors of 1, and the norms as they are.
    """
    if rule == "off":
        return torch.ones_like(norms), norms
    divisors = (norms / (previous + _EPS)).clamp_(min=gamma).div_(gamma)
    if rule == "safe":
        first = (previous == 0) | first if first is not False else previous == 0
    if first is True:
        divisors = torch.ones_like(norms)
    elif first is not False:
        divisors.masked_fill_(first, 1.0)
    limited = norms / divisors
    if rule == "safe":
        limited = torch.where((norms > 0) & (norms < math.inf), limited, previous)
    return divisors, limited


def firsts(flags: Sequence[bool], device: torch.device) -> Tensor | bool:
    """`first` of `limit_growth` out of one flag a matrix; without a copy to the device where all agree."""
    if all(flags) or not any(flags):
        return flags[0]
    return torch.tensor(flags).to(device, non_blocking=True)


def check_limiter(who: str, group: Mapping[str, Any]) -> None:
    """Raise `UsageError` for options that the limiter cannot run with."""
    if not group.get("gamma", GAMMA) >= 1:
        raise UsageError(f"{who} has gamma = {group['gamma']}; a norm may grow by a factor of at least 1.")
