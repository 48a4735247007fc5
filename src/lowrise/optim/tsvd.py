"""TSVD: Adam on orthonormal factors; the algorithm is in the class's docstring."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.linalg.orthonormal import polar_from, qr_from, tangent
from lowrise.linalg.precision import full_precision_matmul
from lowrise.optim.engine.base import Optimizer
from lowrise.optim.engine.units import Layout, Shape, Unit, buckets, stacked, state_dtype
from lowrise.optim.rules.adamw import adam_moments_, adamw_update_

Project = Literal["none", "step", "both"]
Retraction = Literal["qr", "polar"]
MOMENTS = ("exp_avg", "exp_avg_sq")


class Member(NamedTuple):
    """One parameter of a layer, with the tau of the layer's columns."""

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    tau: Tensor
    number: float | None
    """tau as a number, where it is known to be the same for all columns."""


class TSVD(Optimizer):
    """TSVD: Adam on U, s, V of W = U diag(s) V^T, with U and V orthonormal after every step.

    After Kamali, Schweighofer, Shahrzad, Francon, Hodjat and Miikkulainen 2026 (arXiv 2605.28573):
    truncated-SVD layers that stay exactly orthonormal through the whole run. Its method section was not
    available to us and no code is public, so everything more precise than that sentence is ours; there is no
    variant that claims to be the paper's.

    Per layer U (m x r), s (r), V (n x r), gradients g at the old factors, eta = lr at this step:

    1. tau <- tau + 1                                        (r): steps that column j has seen
    2. X in (U, V), p rows: m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g g;
       D_ij = (m_ij / (1 - b1^tau_j)) / (sqrt(v_ij / (1 - b2^tau_j)) + eps)                        (p x r)
    3. Z = -eta factor_scale sqrt(reference_rows / p) D      (reference_rows = 0: no such factor)
       A column of X has length 1, so sqrt(p) eta is an angle: the factor makes the angle of a step
       eta factor_scale sqrt(reference_rows), 0.034 rad at eta = 3e-3, the same for every width.
    4. X <- qf(X + Z), the Q of its QR with positive diagonal, by Cholesky (`linalg.retract_qr`)
    5. s: the same Adam, eta_s = spectrum_scale eta: s <- s (1 - eta_s wd) - eta_s D_s
       U and V have no decay: step 4 undoes a radial shrink. Decay of s is decay of W. s may become negative.

    No projection and QR by default because that trained best (docs/methods/tsvd.md): QR takes the rotation of
    each column against every less dominant one just as Adam asked for it, and lets the less dominant one
    follow. So s must start in descending order.

    Orthonormality is that of one retraction, it does not drift: max |X^T X - I| <= 1e-6 in float32 for ever.
    Where lr is 0 the factors are not updated. Factors narrower than float32 are updated in float32 and
    rounded: then only what their format can hold is kept (4e-3 in bfloat16). The factors are expected
    orthonormal at the start (`SVDLinear`); others become so at the first step, unless their columns are
    dependent: then they are never updated.

    State per layer: `exp_avg`, `exp_avg_sq` of U, s, V (2 r (m + n + 1) elements), `updates` of s (tau, r
    elements), and `step`. Role: "svd"; all other parameters by built-in AdamW (betas, eps). FLOPs per step
    for a p x r factor: 3 p r^2 + r^3 / 3 + 16 p r, plus 4 p r^2 per projection.

    Args:
        params: Groups of `lowrise.param_groups`, or parameters; `from_model` makes the groups by itself.
        lr: Learning rate eta; 3e-3 trained a toy model best (docs/methods/tsvd.md).
        betas: Decay rates b1, b2 of the two moments.
        eps: Added to the root of the second moment, after its bias correction.
        weight_decay: Decoupled weight decay wd of the singular values s, and so of W; U and V have none.
        factor_scale: Factor on the step of U and V; 0.5 and 2 trained worse.
        spectrum_scale: Learning rate of s as a multiple of lr; 1 and 10 were close to 3.
        reference_rows: Rows at which U and V take steps of exactly lr; others by the root of the ratio, so
            that the angle of a step does not depend on the width. 0: no such factor.
        project: Projection to the tangent space. none; step: of the step, Z - X sym(X^T Z); both: of the
            gradient too, before the moments.
        retraction: Way back to orthonormal columns. qr: step 4; polar: (X + Z)((X + Z)^T (X + Z))^(-1/2).
        transport: Project the first moments to the tangent space at the new factors, m - X sym(X^T m).

    Raises:
        UsageError: A group holds an option, role, shape or dtype that the rule cannot run with.
    """

    roles: ClassVar[frozenset[str]] = frozenset({"svd"})
    keeps_orthonormal: ClassVar[bool] = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        factor_scale: float = 1.0,
        spectrum_scale: float = 3.0,
        reference_rows: float = 128.0,
        project: Project = "none",
        retraction: Retraction = "qr",
        transport: bool = False,
    ) -> None:
        super().__init__(params, self.options(locals()))

    def _check_options(self, group: Mapping[str, Any]) -> None:
        for key in ("factor_scale", "spectrum_scale", "reference_rows"):
            if not 0.0 <= group[key] < math.inf:
                raise UsageError(f"TSVD has {key} = {group[key]}; it must be a finite number, 0 or more.")

    @classmethod
    def _state_layout(
        cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]
    ) -> tuple[Layout, ...]:
        U, s, V = ({"exp_avg": shape, "exp_avg_sq": shape} for shape in shapes)
        return U, s | {"updates": shapes[1]}, V

    def _update(self, group: dict[str, Any], units: list[Unit]) -> None:
        taus = [unit.states[1]["updates"] for unit in units]
        torch._foreach_add_(taus, 1.0)  # 1
        factors: list[Member] = []
        spectra: list[Member] = []
        for unit, tau in zip(units, taus, strict=True):
            number = _same_number(tau)
            for place, member in enumerate(zip(unit.params, unit.grads, unit.states, strict=True)):
                (spectra if place == 1 else factors).append(Member(*member, tau, number))
        for bucket in buckets(factors, lambda member: member.param):
            device = bucket[0].param.device
            with full_precision_matmul(device):
                # A stack would be a copy, and gain nothing on a CPU.
                for some in [[member] for member in bucket] if device.type == "cpu" else [bucket]:
                    _update_factors(group, some)
        for bucket in buckets(spectra, lambda member: member.param):
            _update_spectra(group, bucket)

    @classmethod
    def _unit_flops(cls, role: str, shapes: tuple[Shape, ...], options: Mapping[str, Any]) -> int:
        (m, r), _, (n, _) = (tuple(shape) for shape in shapes)
        projections = {"none": 0, "step": 1, "both": 2}[options["project"]] + int(options["transport"])
        polar = 2 * r**3 + 20 * r**3 if options["retraction"] == "polar" else r**3 // 3
        per_entry = (5 if options["retraction"] == "polar" else 3) * r + 4 * r * projections + 16
        return (m + n) * r * per_entry + 2 * polar + 18 * r


def _update_factors(group: Mapping[str, Any], bucket: Sequence[Member]) -> None:
    """Steps 2 to 4 for factors (U and V alike) of one shape p x r; on a CPU for one."""
    rows = bucket[0].param.shape[0]
    X = stacked([member.param for member in bucket]).to(state_dtype(bucket[0].param))  # (batch, p, r)
    reference = group["reference_rows"]
    size = group["lr"] * group["factor_scale"] * (math.sqrt(reference / rows) if reference else 1.0)
    Y = _stepped(group, bucket, X, size)  # 2 and 3
    if group["lr"] != 0.0:
        X = (polar_from if group["retraction"] == "polar" else qr_from)(X, Y)  # 4
        torch._foreach_copy_([member.param for member in bucket], list(X.unbind()))
    if group["transport"]:
        moments = [member.state["exp_avg"] for member in bucket]
        torch._foreach_copy_(moments, list(_tangent(X, stacked(moments)).unbind()))


def _stepped(group: Mapping[str, Any], bucket: Sequence[Member], X: Tensor, size: float) -> Tensor:
    """X + Z with the moments updated, in a new tensor."""
    grads = [member.grad for member in bucket]
    numbers = [member.number for member in bucket if member.number is not None]
    if group["project"] == "none" and len(numbers) == len(bucket):
        Y = X.clone()
        ms, vs = ([member.state[key] for member in bucket] for key in MOMENTS)
        adamw_update_(
            list(Y.unbind()), grads, ms, vs, numbers,
            lr=size, betas=group["betas"], eps=group["eps"], weight_decay=0.0,
        )  # fmt: skip
        return Y
    if group["project"] == "both":
        grads = list(_tangent(X, stacked(grads)).unbind())
    Z = _adam_direction(group, bucket, grads).mul_(-size)
    return X + (Z if group["project"] == "none" else _tangent(X, Z))


def _same_number(tau: Tensor) -> float | None:
    """The updates that all columns have seen, if it is one number and lies on a CPU, which may be asked."""
    if tau.device.type != "cpu":
        return None
    least, most = (float(t) for t in tau.aminmax())
    return most if least == most else None


def _tangent(X: Tensor, Z: Tensor) -> Tensor:
    """Its tangent part, at most twice as long; Z itself where the formula gives more, because X is far from
    orthonormal, as factors not made by `SVDLinear` may be at first.
    """
    part = tangent(X, Z)
    norms = [torch.linalg.vector_norm(Y, dim=(-2, -1), keepdim=True) for Y in (part, Z)]
    return torch.where(norms[0] <= 2.5 * norms[1], part, Z)


def _update_spectra(group: Mapping[str, Any], bucket: Sequence[Member]) -> None:
    """Step 5 for spectra of one rank."""
    lr = group["spectrum_scale"] * group["lr"]
    s = torch.stack([member.param for member in bucket]).to(state_dtype(bucket[0].param))  # (batch, r)
    D = _adam_direction(group, bucket, [member.grad for member in bucket])
    s.mul_(1.0 - lr * group["weight_decay"]).sub_(D, alpha=lr)
    torch._foreach_copy_([member.param for member in bucket], list(s.unbind()))


def _adam_direction(group: Mapping[str, Any], bucket: Sequence[Member], grads: list[Tensor]) -> Tensor:
    """Step 2: update the moments; D (batch, ..., r), each column corrected by its own tau."""
    b1, b2 = group["betas"]
    ms, vs = ([member.state[key] for member in bucket] for key in MOMENTS)
    adam_moments_(ms, vs, grads, (b1, b2))
    m, v = torch.stack(ms), torch.stack(vs)
    tau = torch.stack([member.tau for member in bucket])  # (batch, r)
    tau = tau.unsqueeze(-2) if m.ndim == 3 else tau
    return m.div_(1.0 - b1**tau).div_(v.div_(1.0 - b2**tau).sqrt_().add_(group["eps"]))
