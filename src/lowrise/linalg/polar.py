"""The polar factor of a matrix: U V^T for X = U diag(s) V^T, exactly (SVD) or nearly (matrix polynomials).

Every function takes X of shape (..., m, n), is batched over the leading dimensions, returns the shape and
dtype it was given, leaves its input alone and (but for `polar_svd`) never waits for the device.

The polynomial iterations all have one form. With the Gram matrix of the smaller side, S = X^T X for m >= n:

    X <- a X + X (b S + c S S)          an odd polynomial a x + b x^3 + c x^5 on every singular value

The iteration with X X^T on the left is the same map, so a wide matrix is transposed once at the entrance.

**Two forms.** The plain form does that, two products with X and one k x k product a step (k the smaller
side). The Gram form keeps the product Q of the polynomials instead of X and multiplies back at the end:

    S_0 = X^T X;   S_j = Q_j^T S_0 Q_j,  Q_{j+1} = Q_j (a I + b S_j + c S_j S_j);   X_end = X Q_end

two products with X in all, and four of k x k a step: 0.5 of the FLOPs for five steps at m = 4 k. S_j is
formed from Q_j anew and never carried along, so it is the Gram matrix of X Q_j for the very Q_j that will be
used, whatever rounding did to it; an error of step j is an error of that step and no more.

The Gram form squares the condition number: S_0 = X^T X + E with ||E|| about eps ||X||^2, and the step from
f(X^T X) to f(X^T X + E) changes a direction whose factor is f(lambda) by at most about f(0)^2 eps, relative;
f(0) is the product of the a. So the iteration is **restarted** (X <- X Q, a new S_0) before f(0)^2 eps passes
`GRAM_TOLERANCE`: a function of the triples and of eps alone. Five quintic steps (f(0)^2 = 2.4e5) are one
segment in float32; Polar Express (1.3e7) is 4 + 3; float64 never restarts; bfloat16 would restart at each
step, which is the plain form. ||Gram - plain||_2 over condition numbers of 1 to 1e6, measured: at most 2e-3
in float32 and 2e-10 in float64 (tests/invariants/test_polar_forms.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lowrise.linalg.norms import frobenius
from lowrise.linalg.polar_iteration import (
    Form,
    Start,
    Triple,
    chosen_segments,
    iterate,
    iterate_each,
    polynomials,
)
from lowrise.linalg.solvers import svd

# ||fl(A B) - A B||_2 <= PRODUCT_ERROR eps ||A||_2 ||B||_2. Measured: 0.3 to 6.3 for matrices of 1 to
# 1,024 columns and up to 8,192 rows, of one sign and of rank one (the worst) too; no growth with the columns.
PRODUCT_ERROR = 8.0
POLAR_ERROR = 600.0

# Keller Jordan's quintic (KellerJordan/Muon, muon.py; also torch.optim.Muon). Made for speed, not for
# convergence: it sends singular values into [0.6818, 1.2024] and keeps them there.
QUINTIC: Triple = (3.4445, -4.7750, 2.0315)

# sup of the quintic iterated any number of times on [0, 1]: its local maximum p(0.55453) = 1.20237, rounded
# up. [0, 1.2024] is mapped into itself, so the number of steps does not matter.
QUINTIC_SUPREMUM = 1.2024

# Polar Express, arXiv 2505.16932: one triple a step, fast growth first, the fixed point last.
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

# LoRA-Muon's schedule (arXiv 2606.12921, App. B.3 and Table 1, as two re-implementations have it): singular
# values above 1e-4 of ||X||_F end within 7e-4 of 1.
POLAR_EIGHT: tuple[Triple, ...] = (
    (7.2086, -15.5131, 9.0178),
    (3.9623, -2.5813, 0.4542),
    (3.9466, -2.5765, 0.4544),
    (3.8991, -2.5671, 0.4566),
    (3.7186, -2.5308, 0.4653),
    (3.1390, -2.3073, 0.4733),
    (2.1715, -1.5246, 0.3885),
    (1.8648, -1.2224, 0.3577),
)


def newton_schulz(
    X: Tensor,
    *,
    steps: int = 5,
    coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    eps_rule: Literal["add", "max"] = "add",
    dtype: torch.dtype | None = None,
    scale: Tensor | float = 1.0,
    form: Form = "auto",
) -> Tensor:
    """Iterate one quintic `steps` times from X / (||X||_F + eps), or from X / max(||X||_F, eps).

    eps_rule "add" is Spectron's and Keller Jordan's normalization, "max" that of torch.optim.Muon. With eps =
    0 the result does not depend on the scale of X at all (float32 inputs of 1e-30 and 1e30 give the same
    factor); a positive eps shrinks inputs near it, as published. Zero gives zero. `dtype` is that of the
    iteration (default: X's own). The result is multiplied by `scale`, a number or (..., 1, 1). `form`:
    "plain", "gram", or "auto" (the cheaper one, see `chosen_segments`).

    Range with QUINTIC, five steps, exact arithmetic: singular values above 0.0015 ||X||_F end in [0.6818,
    1.2024], smaller ones stay small; none ends above 1.20237 (`QUINTIC_SUPREMUM`).
    """
    a, b, c = coefficients
    start = Start(eps, eps_rule)
    return _iterate(X, [(a, b, c)] * steps, start, dtype=dtype or X.dtype, scale=scale, form=form)


def newton_schulz_each(
    Xs: Sequence[Tensor],
    *,
    steps: int = 5,
    coefficients: Sequence[float] = QUINTIC,
    eps: float = 1e-7,
    eps_rule: Literal["add", "max"] = "add",
    dtype: torch.dtype | None = None,
    scale: Tensor | float = 1.0,
    form: Form = "auto",
) -> list[Tensor]:
    """`newton_schulz` of each of several matrices (m, n) of any shapes, of one dtype and device: each further
    shape of the same smaller side costs two operations a step, or in the Gram form two in all. `scale`: a
    number or (len(Xs), 1, 1).
    """
    a, b, c = coefficients
    triples, start = [(a, b, c)] * steps, Start(eps, eps_rule)
    return iterate_each(Xs, triples, start, dtype=dtype or Xs[0].dtype, scale=scale, form=form)


def polar_times(
    Xs: Sequence[Tensor],
    rights: Tensor,
    triples: Sequence[Triple],
    *,
    safety: float = 1.0,
    scale: Tensor | float = 1.0,
    form: Form = "auto",
) -> list[Tensor]:
    """scale (The triples, one after another, from X / (safety ||X||_F)) @ right, for each stack X (b, m, k),
    m of any sizes and one k; rights (sum of b, k, k), scale a number or (sum of b, 1, 1).

    In the Gram form the k x k work of all of them is one batch, and `right` is multiplied into the factor of
    the last segment, so that it costs next to nothing. Entries of X must be of a size that can be squared, as
    nothing is divided beforehand; X = 0 gives 0.
    """
    counts = [len(X) for X in Xs]
    segments = [
        chosen_segments(
            X.shape[-2:], triples, X.device, X.dtype, form if X.shape[-2] >= X.shape[-1] else "plain"
        )
        for X in Xs
    ]
    order = sorted(range(len(Xs)), key=lambda i: segments[i][0] > 1)  # the plain form first
    if order != list(range(len(Xs))):
        rights = torch.cat([rights.split(counts)[i] for i in order])
        if isinstance(scale, Tensor):
            scale = torch.cat([scale.split(counts)[i] for i in order])
        moved = polar_times([Xs[i] for i in order], rights, triples, safety=safety, scale=scale, form=form)
        return [moved[order.index(i)] for i in range(len(Xs))]
    plain = sum(one[0] == 1 for one in segments)
    place = sum(counts[:plain])
    start, Ys = Start(0.0, safety=safety), list(Xs)
    if plain:
        divisors = start.divisor(frobenius(Ys[:plain]), None).split(counts[:plain])
        Ys[:plain] = [Y / divisor for Y, divisor in zip(Ys, divisors, strict=False)]
    last = scale[place:] if isinstance(scale, Tensor) else scale
    Ys = polynomials(
        Ys, plain, _shrunk(triples, safety), segments[-1],
        divisor=start.of_gram, scale=last, right=rights[place:],
    )  # fmt: skip
    if plain:
        own = (rights[:place] * (scale[:place] if isinstance(scale, Tensor) else scale)).split(counts[:plain])
        Ys[:plain] = [torch.bmm(Y, right) for Y, right in zip(Ys, own, strict=False)]
    return Ys


def polar_express(
    X: Tensor, *, steps: int = 7, safety: float = 1.01, scale: Tensor | float = 1.0, form: Form = "auto"
) -> Tensor:
    """Polar Express (arXiv 2505.16932) from X / (safety ||X||_F), its triples divided by (safety, safety^3,
    safety^5).

    With seven steps and safety 1.01, in exact arithmetic: no singular value ends above 0.9999984; those above
    1e-2 of ||X||_F end above 0.999995, those above 1e-3 above 0.99999. Six steps: 1.0012 at most; five:
    1.1236. Rounding adds at most what `rounding_guard` says. Scale free. `scale`, `form` as in
    `newton_schulz`.
    """
    triples, start = _express(steps, safety)
    return _iterate(X, triples, start, dtype=X.dtype, scale=scale, form=form)


def polar_express_each(
    Xs: Sequence[Tensor],
    *,
    steps: int = 7,
    safety: float = 1.01,
    scale: Tensor | float = 1.0,
    form: Form = "auto",
) -> list[Tensor]:
    """`polar_express` of each of several matrices, as `newton_schulz_each`."""
    triples, start = _express(steps, safety)
    return iterate_each(Xs, triples, start, dtype=Xs[0].dtype, scale=scale, form=form)


def _express(steps: int, safety: float) -> tuple[list[Triple], Start]:
    if not 1 <= steps <= len(POLAR_EXPRESS):
        raise ValueError(
            f"polar_express: steps is {steps}; choose 1 to {len(POLAR_EXPRESS)}, the triples there are"
        )
    return _shrunk(POLAR_EXPRESS[:steps], safety), Start(0.0, safety=safety)


def _shrunk(triples: Sequence[Triple], safety: float) -> list[Triple]:
    return [(a / safety, b / safety**3, c / safety**5) for a, b, c in triples]


def polar_svd(X: Tensor, *, rtol: float = 1e-12) -> Tensor:
    """The polar factor by SVD, the reference for the others. Singular values <= rtol times the largest are
    dropped.

    A null direction has no polar factor (an SVD routine returns some arbitrary one), so it gives 0, as the
    iterations do. rtol is at least 8 machine epsilons: below that a computed singular value is noise. Waits
    for the device.
    """
    U, s, Vh = svd(X)
    kept = s > max(rtol, 8 * torch.finfo(X.dtype).eps) * s[..., :1]
    return (U * kept.unsqueeze(-2)) @ Vh


def rounding_guard(dtype: torch.dtype) -> float:
    """1 + the most by which rounding in `dtype` may push ||polar factor||_2 above its bound.

    Holds for `polar_express` in either form and for the plain form of the quintic, wherever one matrix
    product errs by at most `PRODUCT_ERROR` eps of the product of the norms: then a scalar recursion over the
    steps (written out in tests/invariants/test_polar_forms.py) ends 545 eps above 1. Measured: 25.
    """
    return 1.0 + POLAR_ERROR * torch.finfo(dtype).eps


def _iterate(
    X: Tensor,
    triples: Sequence[Triple],
    start: Start,
    *,
    dtype: torch.dtype,
    scale: Tensor | float,
    form: Form,
) -> Tensor:
    """The odd quintics one after another on the singular values of X (..., m, n), normalized; times `scale`,
    in X's dtype.
    """
    wide = X.shape[-2] < X.shape[-1]
    Y = X.reshape(-1, *X.shape[-2:])
    if isinstance(scale, Tensor):
        scale = scale.expand(*X.shape[:-2], 1, 1).reshape(-1, 1, 1)
    stack = (Y.mT if wide else Y).contiguous()  # the bits of `iterate_each`
    (Y,) = iterate([stack], triples, start, dtype=dtype, scale=scale, form=form)
    return (Y.mT if wide else Y).reshape(X.shape)
