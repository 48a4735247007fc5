"""How far Spectron goes: the step size rho as a pure function of the norms, per variant."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spectron_step_size(sigma_A: Tensor, sigma_B: Tensor, lr: float, *, rule: str = "paper") -> Tensor:
    """rho of the published variant, per pair, with s = sigma_A + sigma_B.

    "paper": eta / (s + 1). "tight": the root of rho s + rho^2 = eta, the whole of the bound.
    """
    s = sigma_A + sigma_B
    return lr / (s + 1.0) if rule == "paper" else _tight(s, torch.full_like(s, lr), 1.0)


def certified_step_size(
    s_A: Tensor, s_B: Tensor, lr: float, *, rule: str, supremum: float, rank: int, eps: float
) -> Tensor:
    """rho per pair for which ||A_new B_new^T - A B^T||_2 <= eta is proved of the numbers that are stored.

    s_A >= ||A||_2, s_B >= ||B||_2, (pairs,); supremum c >= ||O||_2; eps that of the weights' dtype, 0 to
    leave their rounding out. With exact storage c rho (s_A + s_B) + c^2 rho^2 = eta would do ("tight";
    "paper" is never longer than eta / (c (s + 1))). Storing A_new rounds each entry by e with |e| <= eps/2
    |a_new| and |e| <= |rho o|, the latter because the old entry is a candidate of the rounding too. So either
    of two step sizes is safe, and the longer is taken:

    - by the first bound ||E_A||_2 <= eps/2 sqrt(r) ||A_new||_2, and E_A B^T + A E_B^T + ... costs at most
      eps sqrt(r) 2 (s_A + sqrt(eta)) (s_B + sqrt(eta)) of eta (twice what is needed): tight for what is left
      of eta;
    - by the second ||E_A||_2 <= rho sqrt(r) c: tight with c (1 + sqrt(r)). Short, but never 0.
    """
    s = s_A + s_B
    if lr == 0.0:
        return torch.zeros_like(s)
    eta = torch.full_like(s, lr)
    reserve = 2.0 * eps * math.sqrt(rank) * (s_A + math.sqrt(lr)) * (s_B + math.sqrt(lr))
    rho = _tight(s, (eta - reserve).clamp_min(0.0), supremum)
    rho = torch.maximum(rho, _tight(s, eta, supremum * (1.0 + math.sqrt(rank))))
    return rho if rule == "tight" else torch.minimum(rho, eta / (supremum * (s + 1.0)))


def _tight(s: Tensor, eta: Tensor, c: float) -> Tensor:
    """The root of c rho s + c^2 rho^2 = eta, in the form that neither cancels nor overflows."""
    return 2.0 * eta / (c * (s + torch.hypot(s, 2.0 * eta.sqrt()))).clamp_min(torch.finfo(s.dtype).tiny)
