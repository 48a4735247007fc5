"""Decompositions that always return: what `torch.linalg` refuses is done again by other means.

LAPACK and cuSOLVER raise `LinAlgError` for input that is not finite, and now and then for matrices that are
finite but badly scaled or nearly singular. One such matrix stops a whole batch. Here the plain call comes
first, so whatever converges has the bits of `torch.linalg`. After a failure each matrix X of the batch is
taken by itself:

1. X / max|X| in float64 (float32 on a device without float64), by the same routine
2. by another one: the singular values of X^T, or the eigenvectors of a symmetric matrix as its singular
   vectors
3. where X is not finite, or nothing has converged: values of NaN, and the first columns of the identity as
   vectors, which are finite and orthonormal

A `RuntimeWarning` says which matrix it was. Results have the dtype of the input. All functions wait for the
device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError
Parts = tuple[Tensor, ...]


def svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD: U (..., m, k), s (..., k) descending, Vh (..., k, n), k = min(m, n)."""
    U, s, Vh = _robust(lambda Y: torch.linalg.svd(Y, full_matrices=False), X, _svd_ways, _no_svd)
    return U, s, Vh


def svdvals(X: Tensor) -> Tensor:
    """Singular values (..., min(m, n)), descending."""
    (s,) = _robust(lambda Y: (torch.linalg.svdvals(Y),), X, _svdvals_ways, lambda Y: _no_svd(Y)[1:2])
    return s


def eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., k) ascending and eigenvectors (..., k, k) of symmetric S."""
    values, vectors = _robust(lambda Y: tuple(torch.linalg.eigh(Y)), S, _eigh_ways, _no_eigh)
    return values, vectors


def eigvalsh(S: Tensor) -> Tensor:
    """Eigenvalues (..., k) of symmetric S, ascending."""
    (values,) = _robust(
        lambda Y: (torch.linalg.eigvalsh(Y),), S, lambda Y: _eigh_ways(Y, vectors=False), _no_eigvalsh
    )
    return values


def power_of_four(X: Tensor) -> Tensor:
    """4^k near max|X| of each matrix (..., 1, 1), 1 where that is zero or not finite.

    Dividing by it, and multiplying by its root, rounds nothing (in the range of normal numbers): products of
    scaled matrices have the bits of those of the matrices, but cannot overflow.
    """
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    usable = largest.isfinite() & (largest > 0)
    exponent = torch.frexp(torch.where(usable, largest, 1.0)).exponent
    return torch.ldexp(torch.ones_like(largest), exponent.div(2, rounding_mode="floor") * 2)


# ---- after a failure


def _robust(
    plain: Callable[[Tensor], Parts],
    X: Tensor,
    ways: Callable[[Tensor], Iterator[Callable[[], Parts]]],
    nothing: Callable[[Tensor], Parts],
) -> Parts:
    first: RuntimeError | None = None
    try:
        found = tuple(plain(X))
        if _converged(found):
            return found
    except LinAlgError as error:
        first = error
    matrices = X.reshape(-1, *X.shape[-2:])
    results = [_alone(plain, Y, ways, nothing, first) for Y in matrices]
    return tuple(
        torch.stack(parts).reshape(*X.shape[:-2], *parts[0].shape) for parts in zip(*results, strict=True)
    )


def _alone(
    plain: Callable[[Tensor], Parts],
    X: Tensor,
    ways: Callable[[Tensor], Iterator[Callable[[], Parts]]],
    nothing: Callable[[Tensor], Parts],
    first: RuntimeError | None,
) -> Parts:
    """One matrix: as it is, then steps 1 to 3."""
    if bool(X.isfinite().all()):
        for number, way in enumerate((lambda: plain(X), *ways(X))):
            try:
                found = way()
            except LinAlgError:
                continue
            if not _converged(found):
                continue
            if number:
                _say(X, "was decomposed another way")
            return tuple(part.to(X.dtype) for part in found)
        _say(X, f"cannot be decomposed{'' if first is None else f' ({first})'}")
    else:
        _say(X, "is not finite and cannot be decomposed")
    return nothing(X)


def _converged(parts: Parts) -> bool:
    """Whether the values are finite. Some routines return NaN instead of raising."""
    return bool(min(parts, key=torch.numel).isfinite().all())


def _say(X: Tensor, what: str) -> None:
    shape = " x ".join(map(str, X.shape))
    warnings.warn(f"a {shape} matrix in {X.dtype} {what}", RuntimeWarning, stacklevel=5)


def _wide(X: Tensor) -> tuple[Tensor, Tensor]:
    """Step 1's matrix, and the factor that was taken out."""
    Y = X if X.device.type == "mps" else X.double()
    scale = power_of_four(Y)
    return Y / scale, scale.view(())


def _svd_ways(X: Tensor) -> Iterator[Callable[[], Parts]]:
    Y, scale = _wide(X)

    def scaled(Z: Tensor) -> Parts:
        U, s, Vh = torch.linalg.svd(Z, full_matrices=False)
        return U, s * scale, Vh

    def transposed() -> Parts:
        V, s, Uh = scaled(Y.mT.contiguous())
        return Uh.mT, s, V.mT

    yield from (lambda: scaled(Y), transposed)


def _svdvals_ways(X: Tensor) -> Iterator[Callable[[], Parts]]:
    Y, scale = _wide(X)
    yield from ((lambda Z=Z: (torch.linalg.svdvals(Z) * scale,)) for Z in (Y, Y.mT.contiguous()))


def _eigh_ways(S: Tensor, *, vectors: bool = True) -> Iterator[Callable[[], Parts]]:
    Y, scale = _wide(S)

    def scaled() -> Parts:
        values, found = torch.linalg.eigh(Y)
        return (values * scale, found) if vectors else (values * scale,)

    def singular() -> Parts:
        U, _, _ = torch.linalg.svd(Y)
        values = (U * (Y @ U)).sum(dim=-2)  # Rayleigh quotients, for their sign
        order = values.argsort()
        return (values[order] * scale, U[:, order]) if vectors else (values[order] * scale,)

    yield from (scaled, singular)


def _no_svd(X: Tensor) -> Parts:
    k = min(X.shape)
    U, V = (torch.eye(rows, k, dtype=X.dtype, device=X.device) for rows in X.shape)
    return U, X.new_full((k,), torch.nan), V.mT


def _no_eigh(S: Tensor) -> Parts:
    U, values, _ = _no_svd(S)
    return values, U


def _no_eigvalsh(S: Tensor) -> Parts:
    return (_no_eigh(S)[0],)
