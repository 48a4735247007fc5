"""The iteration behind `polar.py`: odd quintics over stacks of matrices of several sizes in lockstep.

`polar.py` says what the plain form and the Gram form are. Both need k x k matrices alone once the Gram
matrices are there, k the smaller side, so stacks of one k and any other side share these products: a step is
one product of k x k for all of them, and one or two more for each stack that takes the plain form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from lowrise.linalg.norms import largest_entries, nonzero
from lowrise.linalg.precision import multiplies_in_full
from lowrise.linalg.stacks import joined, stacked
from lowrise.linalg.symmetric import symmetric_baddbmm, symmetric_products

Triple = tuple[float, float, float]
Form = Literal["auto", "plain", "gram"]

# Most that f(0)^2 eps may reach within a segment of the Gram form: the relative error of the directions that
# suffer most (those at about 1/f(0) of ||X||), a tenth of what the quintic's own range of [0.68, 1.20] leaves
# open. A bfloat16 iteration, as published, has 1 to 2% everywhere.
GRAM_TOLERANCE = 1 / 32

# The Gram form is taken where it saves a fifth of the FLOPs: its products are smaller and more in number.
GRAM_SHARE = 0.8


@dataclass(frozen=True)
class Start:
    """How an iteration normalizes its input: X / (safety (||X||_F + eps)), or with max instead of the sum."""

    eps: float
    eps_rule: Literal["add", "max"] = "add"
    safety: float = 1.0

    def divisor(self, norm: Tensor, eps: Tensor | None) -> Tensor:
        """By what X is divided, (b, 1, 1), from its norm and `eps` in units of that (None: 0); not 0 for a
        zero matrix.
        """
        if eps is None:
            rest = norm.masked_fill(norm == 0, 1.0)
        else:
            rest = norm + eps if self.eps_rule == "add" else torch.maximum(norm, eps)
        return rest if self.safety == 1.0 else rest * self.safety

    def of_gram(self, S: Tensor, eps: Tensor | None = None) -> Tensor:
        """The same from S = X^T X, (b, k, k), whose trace is ||X||_F^2."""
        return self.divisor(S.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[:, None, None].sqrt(), eps)


def chosen_segments(
    shape: Sequence[int], triples: Sequence[Triple], device: torch.device, dtype: torch.dtype, form: Form
) -> list[int]:
    """Steps of each segment for matrices of this shape; segments of one step are the plain form.

    "auto" takes the Gram form where it saves a fifth of the FLOPs (tall or wide by 2.2 and more), unless
    float32 products on the device are rounded to TF32 or bfloat16, of which the segments know nothing.
    """
    plain = [1] * len(triples)
    if form == "plain":
        return plain
    segments = gram_segments(triples, torch.finfo(dtype).eps)
    small, large = sorted(shape)
    pays = segment_flops(small, large, segments) <= GRAM_SHARE * segment_flops(small, large, plain)
    return segments if form == "gram" or (pays and multiplies_in_full(device, dtype)) else plain


def gram_segments(triples: Sequence[Triple], eps: float) -> list[int]:
    """Steps of each segment: as many as keep f(0)^2 eps within `GRAM_TOLERANCE`, one at least."""
    segments: list[int] = []
    growth = 1.0
    for a, _, _ in triples:
        growth *= a * a
        if not segments or growth * eps > GRAM_TOLERANCE:
            segments.append(0)
            growth = a * a
        segments[-1] += 1
    return segments


def segment_flops(small: int, large: int, segments: Sequence[int]) -> int:
    """FLOPs of the products: two with X a segment, 4 s - 3 of k x k for s steps (S S; Q P; Q^T (S_0 Q))."""
    return sum(4 * small * small * large + 2 * small**3 * (4 * steps - 3) for steps in segments)


def iterate_each(
    Xs: Sequence[Tensor],
    triples: Sequence[Triple],
    start: Start,
    *,
    dtype: torch.dtype,
    scale: Tensor | float,
    form: Form,
) -> list[Tensor]:
    """`iterate` for matrices of any shapes, each (m, n); `scale` is a number or (len(Xs), 1, 1).

    Matrices of one shape are stacked, with those of the transposed shape.
    """
    kinds: dict[tuple[int, int], list[int]] = {}
    for i, X in enumerate(Xs):
        kinds.setdefault((min(X.shape), max(X.shape)), []).append(i)
    sides: dict[int, list[list[int]]] = {}
    for (small, _), places in kinds.items():
        sides.setdefault(small, []).append(places)
    scales = scale.unbind() if isinstance(scale, Tensor) else None
    results: dict[int, Tensor] = {}
    for alike in sides.values():
        stacks = [stacked([_tall(Xs[i]) for i in places]).contiguous() for places in alike]
        own: Tensor | float = 1.0 if isinstance(scale, Tensor) else scale
        if scales is not None:
            own = torch.stack([scales[i] for places in alike for i in places])
        Ys = iterate(stacks, triples, start, dtype=dtype, scale=own, form=form)
        for places, Y in zip(alike, Ys, strict=True):
            results.update(_as_given(Xs, places, Y))
    return [results[i] for i in range(len(Xs))]


def _as_given(Xs: Sequence[Tensor], places: Sequence[int], Y: Tensor) -> dict[int, Tensor]:
    """The matrices of a stack (b, m, k), m >= k, by their places, the wide ones transposed: contiguous, as
    list operations are one launch for tensors of one layout alone.
    """
    wide = [Xs[i].shape[0] < Xs[i].shape[1] for i in places]
    if not any(wide):
        return dict(zip(places, Y.unbind(), strict=True))
    found: dict[int, Tensor] = {}
    for is_wide in (False, True):
        own = [j for j, flag in enumerate(wide) if flag == is_wide]
        if not own:
            continue
        # Most often the ones before the others, so that a slice is enough.
        whole = own == list(range(own[0], own[-1] + 1))
        part = Y[own[0] : own[-1] + 1] if whole else torch.stack([Y[j] for j in own])
        part = part.mT.contiguous() if is_wide else part
        found.update(zip([places[j] for j in own], part.unbind(), strict=True))
    return found


def iterate(
    stacks: Sequence[Tensor],
    triples: Sequence[Triple],
    start: Start,
    *,
    dtype: torch.dtype,
    scale: Tensor | float,
    form: Form,
) -> list[Tensor]:
    """The odd quintics one after another on the singular values of the stacks (b, m, k), m >= k, any m and
    one k, normalized; times `scale`, a number or (sum of b, 1, 1), in the dtype of the stacks.
    """
    given = stacks[0].dtype
    first = [chosen_segments(X.shape[-2:], triples, X.device, dtype, form) for X in stacks]
    order = sorted(range(len(stacks)), key=lambda i: first[i][0] > 1)  # the plain form first
    if order != list(range(len(stacks))):
        if isinstance(scale, Tensor):
            parts = scale.split([len(X) for X in stacks])
            scale = torch.cat([parts[i] for i in order])
        moved = iterate([stacks[i] for i in order], triples, start, dtype=dtype, scale=scale, form=form)
        return [moved[order.index(i)] for i in range(len(stacks))]
    plain = sum(segments[0] == 1 for segments in first)
    counts = [len(X) for X in stacks]
    place = sum(counts[:plain])
    largest = nonzero(largest_entries(stacks))
    # so that the squares cannot overflow or vanish
    Ys = [X / entry for X, entry in zip(stacks, largest.split(counts), strict=True)]
    eps = start.eps / largest if start.eps else None
    if plain:
        norms = [torch.linalg.vector_norm(Y, dim=(-2, -1), keepdim=True) for Y in Ys[:plain]]
        divisors = start.divisor(joined(norms), eps if eps is None else eps[:place]).split(counts[:plain])
        Ys[:plain] = [_quotient(Y, d, dtype) for Y, d in zip(Ys, divisors, strict=False)]
    Ys[plain:] = [Y.to(dtype) for Y in Ys[plain:]]

    last = scale[place:] if isinstance(scale, Tensor) else scale
    divisor = partial(start.of_gram, eps=eps if eps is None else eps[place:].to(dtype))
    Ys = polynomials(Ys, plain, triples, first[-1], divisor=divisor, scale=last)
    scales = scale.split(counts) if isinstance(scale, Tensor) else [scale] * len(stacks)
    Ys[:plain] = [_scaled(Y, own, given) for Y, own in zip(Ys[:plain], scales, strict=False)]
    return [Y.to(given) for Y in Ys]


def polynomials(
    Ys: Sequence[Tensor],
    plain: int,
    triples: Sequence[Triple],
    segments: Sequence[int],
    *,
    divisor: Callable[[Tensor], Tensor] | None = None,
    scale: Tensor | float = 1.0,
    right: Tensor | None = None,
) -> list[Tensor]:
    """The iteration from stacks Y (b, m, k), m >= k and one k: the first `plain` of them in the plain form,
    the others in the Gram form with these segments.

    What follows is for the Gram form alone. divisor: normalizes Y, from S_0 = Y^T Y of all its stacks, as
    ||Y||_F^2 is the trace of it. The last factor is multiplied by `scale` and by `right` (sum of b, k, k).
    """
    ends = list(accumulate(segments))
    starts = {0, *ends}
    Ys, counts = list(Ys), [len(Y) for Y in Ys]
    place = sum(counts[:plain])
    gram = place < sum(counts)
    S_0, Q, by = None, None, None
    for j, (a, b, c) in enumerate(triples):
        pairs = [(Y.mT, Y) for Y in (Ys if gram and j in starts else Ys[:plain])]
        if gram and j not in starts:
            assert S_0 is not None
            assert Q is not None
            pairs.append((Q.mT, torch.bmm(S_0, Q)))
        S = symmetric_products(pairs)
        if gram and j in starts:
            S_0 = S[place:]
            if j == 0 and divisor is not None:
                by = divisor(S_0)
                S_0.div_(by).div_(by)
        P = symmetric_baddbmm(S, S, S, beta=b, alpha=c)
        factors = P[:place].split(counts[:plain]) if plain else ()
        Ys[:plain] = [torch.baddbmm(Y, Y, own, beta=a) for Y, own in zip(Ys, factors, strict=False)]
        if not gram:
            continue
        own = P[place:]
        own.diagonal(dim1=-2, dim2=-1).add_(a)
        Q = own if Q is None or j in starts else torch.bmm(Q, own)
        if j + 1 in starts:
            if by is not None:
                Q, by = Q.div_(by), None
            if j + 1 == len(triples):
                Q = Q if isinstance(scale, float) and scale == 1.0 else Q.mul_(scale)
                Q = Q if right is None else torch.bmm(Q, right)
            parts = Q.split(counts[plain:])
            Ys[plain:] = [torch.bmm(Y, own) for Y, own in zip(Ys[plain:], parts, strict=True)]
    return Ys


def _tall(X: Tensor) -> Tensor:
    return X if X.shape[-2] >= X.shape[-1] else X.mT


def _quotient(Y: Tensor, divisor: Tensor, dtype: torch.dtype) -> Tensor:
    """Y / divisor in another dtype, rounded once; Y is used up."""
    return (
        Y.div_(divisor) if Y.dtype == dtype else torch.div(Y, divisor, out=torch.empty_like(Y, dtype=dtype))
    )


def _scaled(Y: Tensor, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
    """scale Y in the dtype of the scale, or in `dtype`; Y is used up."""
    if isinstance(scale, Tensor):
        return Y.mul_(scale) if Y.dtype == scale.dtype else Y * scale
    Y = Y.to(dtype)
    return Y if scale == 1.0 else Y.mul_(scale)
