"""A step on the manifold of m x n matrices of rank r, in factors: W = A B^T, never formed.

Given directions D_A (m x r), D_B (n x r) that are derivatives by the factors (D_A = G B, D_B = G^T A for a
dense G), a step size s, and A = U R_A, B = V R_B (thin QR):

a. Z_A = D_A R_B^-1 (m x r), Z_B = D_B R_A^-1 (n x r); for one G these are G V and G^T U
b. the core K (r x r): Z_B^T V ("B", what LORO's code does) or the mean of that and U^T Z_A ("mean"). For
   one G both are U^T G V; for directions that do not come from one G they differ
c. the normal parts Y_A = Z_A - U U^T Z_A, Y_B = Z_B - V V^T Z_B
d. the tangent vector xi = U K V^T + Y_A V^T + U Y_B^T; for one G it is the projection
   P(G) = U U^T G + G V V^T - U U^T G V V^T. If a `length` is asked for, xi is scaled to ||xi||_F = length
e. back to rank r: "svd" W' = svd_r(W - s xi), the nearest matrix of rank r (metric projection), or
   "orthographic" W' = (U - s Y_A S^-1) S (V - s Y_B S^-T)^T with S = R_A R_B^T - s K, another second-order
   retraction
f. W' = A' B'^T in the balanced gauge, A'^T A' = B'^T B' = diag(sigma), with the signs of `column_signs`

`tangent_step_reference` does this by QR, triangular solves and an SVD of 2r x 2r. `tangent_step` needs none
of them: all is a function of six r x r Gram matrices, in the coordinates of the factors themselves.

1. P = A^T A, Q = B^T B, E = A^T D_A, F = B^T D_B; p = P^-1, q = Q^-1 by Cholesky. Y = D_A - A p E and
   Z = D_B - B q F are orthogonal to A and B; N_Y = Y^T Y = D_A^T D_A - E^T p E, N_Z likewise. K stands for
   F^T or the mean of E and F^T (r x r), so that xi = A p K q B^T + Y q B^T + A p Z^T
2. S_0 = Q - s p K, S_20 = P - s q K^T
3. the r leading right singular directions of W - s xi span [B, Z] [I; -s X_2], where
   X = (S_0 + s^2 p N_Z X_2)^-1 and X_2 = (S_20 + s^2 q N_Y X)^-1. Repeating these two from X = S_0^-1 is
   subspace iteration: it converges by (sigma_{r+1} / sigma_r)^2 a sweep. X_2 = S_20^-1, no sweep at all, is
   the orthographic retraction
4. the singular vectors in that span. With G = Q + s^2 X_2^T N_Z X_2 = H H^T (Cholesky),
   S = S_0 + s^2 p N_Z X_2 and J = S^T P S + s^2 N_Y, the Gram matrix of (W - s xi) [B, Z] [I; -s X_2]:
   w = eigenvectors of a~^T J a~, a = a~ w, b = H^-T w, where a~ = H^-T (orthographic: S = S_0, a~ = q H)
5. A' ~ A (H w + s (p E - p K) a + (S - S_0 - G + Q) a) - s D_A a (orthographic: without the third term) and
   B' ~ B (b + s q F X_2 b) - s D_B X_2 b; the lengths of the columns of the former are sigma

What is left are matrix products and small factorizations (two symmetric inverses, one inverse, a Cholesky
factor, a symmetric r x r eigenproblem).

Accuracy. A' B'^T = A H w w^T H^-1 B^T for s = 0: W stays, to the rounding of H H^-1, whatever the errors of P
and Q. A Gram matrix that is off by eps puts an error of eps / sin^2 into the step, sin being that of the
smallest angle between a column of a factor and those before it (whatever the columns' lengths, so balanced
factors are harmless). Pairs with sin < 0.05 are repeated in float64 (and orthographic ones whose X_2 is not
accurate), those with sin < 1e-4, or whose sweeps have not converged, by the reference in float64. Pairs that
are float64 all take the reference: the error of the Gram form reaches 1e-10 of W' there (16 x 40, rank 14),
that of the reference 2e-15. Pairs without full rank have no tangent space of dimension r (m + n - r); they
come back unchanged with ok = False.

Batched over the first dimension. Waits for the device (checks and eigensolver).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.linalg.balance import column_signs
from lowrise.linalg.precision import full_precision_matmul, widest
from lowrise.linalg.solvers import eigh, svd

Core = Literal["B", "mean"]
Retraction = Literal["svd", "orthographic"]

MAX_SWEEPS = 12
# Relative error of the inverse in an orthographic step, which multiplies all that is left of small singular
# values; about 100 for the condition of W in float32.
LEAST_ACCURACY = 1e-5


class Moved(NamedTuple):
    """A' (b, m, r), B' (b, n, r) and how they came about.

    T_A = A^+ A' and T_B = B^+ B' (b, r, r) are the change of basis, for whatever else is written in the old
    one; for s = 0 A' = A T_A, B' = B T_B, T_B = T_A^-T. `ok` (b,): False where the pair was left alone.
    """

    A: Tensor
    B: Tensor
    T_A: Tensor
    T_B: Tensor
    ok: Tensor


@torch.no_grad()
def tangent_step(
    A: Tensor,
    B: Tensor,
    D_A: Tensor,
    D_B: Tensor,
    step: Tensor,
    *,
    core: Core = "B",
    retraction: Retraction = "svd",
    length: Tensor | None = None,
) -> Moved:
    """Steps a-f for a batch of pairs of one shape, `step` and `length` (b,); all of one dtype, float32 or
    float64. In float64 as they are written: Gram matrices square the condition of the factors.
    """
    if A.dtype == torch.float64:
        return tangent_step_reference(A, B, D_A, D_B, step, core=core, retraction=retraction, length=length)
    wide = widest(A.device)
    options: dict[str, Any] = {"core": core, "retraction": retraction}
    with full_precision_matmul(A.device):
        moved, slow = _by_grams(
            A, B, D_A, D_B, step, length=length, least_sine=0.05, by_newton=True, **options
        )
        again = ~moved.ok & ~slow if A.dtype != wide else torch.zeros_like(slow)
        for careful in (True, False):
            places = torch.nonzero(again if careful else ~moved.ok).squeeze(-1)
            if places.numel() == 0:
                continue
            arguments = [X[places].to(wide) for X in (A, B, D_A, D_B, step)]
            wanted = None if length is None else length[places].to(wide)
            if careful:
                better, _ = _by_grams(*arguments, length=wanted, least_sine=1e-4, by_newton=False, **options)
            else:
                better = tangent_step_reference(*arguments, length=wanted, **options)
            for target, source in zip(moved, better, strict=True):
                target.index_copy_(0, places, source.to(target.dtype))
    return moved


@torch.no_grad()
def tangent_step_reference(
    A: Tensor,
    B: Tensor,
    D_A: Tensor,
    D_B: Tensor,
    step: Tensor,
    *,
    core: Core = "B",
    retraction: Retraction = "svd",
    length: Tensor | None = None,
) -> Moved:
    """Steps a-f as they are written, in the dtype of the arguments. The bottom blocks of T hold the R of
    Y_A and Y_B, as in LORO's Algorithm 1 and code (the listing of its Algorithm 2 has R_A there, a misprint).
    """
    r = A.shape[-1]
    ok = _finite(A) & _finite(B) & _finite(D_A) & _finite(D_B)
    unchanged = A, B
    A, B, D_A, D_B = (_where(ok, X, torch.zeros_like(X)) for X in (A, B, D_A, D_B))  # SVD raises for NaN
    U, R_A = torch.linalg.qr(A)
    V, R_B = torch.linalg.qr(B)
    ok = ok & _full_rank(R_A) & _full_rank(R_B)
    identity = _identity(A)
    R_A, R_B = (torch.where(ok[:, None, None], R, identity) for R in (R_A, R_B))
    Z_A = torch.linalg.solve_triangular(R_B, D_A, upper=True, left=False)  # a
    Z_B = torch.linalg.solve_triangular(R_A, D_B, upper=True, left=False)
    K = _core(U.mT @ Z_A, Z_B.mT @ V, core)  # b
    Y_A, Y_B = Z_A - U @ (U.mT @ Z_A), Z_B - V @ (V.mT @ Z_B)  # c
    squares = [torch.linalg.matrix_norm(X).square() for X in (K, Y_A, Y_B)]
    s = _scaled(step, length, sum(squares[1:], squares[0]))  # d
    Q_A, K_A = torch.linalg.qr(Y_A)
    Q_B, K_B = torch.linalg.qr(Y_B)
    C = R_A @ R_B.mT - s * K
    if retraction == "svd":  # e
        T = torch.cat(
            [torch.cat([C, -s * K_B.mT], dim=-1), torch.cat([-s * K_A, torch.zeros_like(C)], dim=-1)], dim=-2
        )
        ok = ok & _finite(T)
        P, sigma, Qh = svd(_where(ok, T, torch.eye(2 * r, dtype=A.dtype, device=A.device)))
        P, sigma, Q = P[..., :r], sigma[..., :r], Qh[..., :r, :].mT
        left, right = torch.cat([U, Q_A], dim=-1) @ P, torch.cat([V, Q_B], dim=-1) @ Q
    else:
        inverse, failed = torch.linalg.inv_ex(C)
        ok = ok & (failed == 0) & _finite(inverse)
        L, M = (_where(ok, x, y) for x, y in ((U - s * Y_A @ inverse, U), (V @ C.mT - s * Y_B, V)))
        Q_L, R_L = torch.linalg.qr(L)
        Q_M, R_M = torch.linalg.qr(M)
        P, sigma, Qh = svd(R_L @ R_M.mT)
        left, right = Q_L @ P, Q_M @ Qh.mT
    root = sigma.sqrt().unsqueeze(-2)  # f
    new_A, new_B = left * root, right * root
    T_A = torch.linalg.solve_triangular(R_A, U.mT @ new_A, upper=True)
    T_B = torch.linalg.solve_triangular(R_B, V.mT @ new_B, upper=True)
    signs = column_signs(T_B)
    return _or_unchanged(Moved(new_A * signs, new_B * signs, T_A * signs, T_B * signs, ok), *unchanged)


class _Grams(NamedTuple):
    """What the coordinates need of the m x r and n x r matrices; all (b, r, r) but `ok` (b,)."""

    P: Tensor  # A^T A
    Q: Tensor  # B^T B
    p: Tensor  # P^-1
    q: Tensor  # Q^-1
    pE: Tensor  # p A^T D_A
    qF: Tensor  # q B^T D_B
    N_Y: Tensor  # Y^T Y
    N_Z: Tensor  # Z^T Z
    pK: Tensor
    qK: Tensor  # q K^T
    ok: Tensor


def _by_grams(
    A: Tensor,
    B: Tensor,
    D_A: Tensor,
    D_B: Tensor,
    step: Tensor,
    *,
    core: Core,
    retraction: Retraction,
    length: Tensor | None,
    least_sine: float,
    by_newton: bool,
) -> tuple[Moved, Tensor]:
    """Steps 1 to 5 of the module; ok = False also where this way is not accurate enough. The second result
    (b,) is True where the sweeps of step 3 are the reason.
    """
    g = _grams(A, B, D_A, D_B, core, least_sine)  # 1
    s = _scaled(step, length, _squared_length(g)) if length is not None else step[:, None, None]
    S_0, S_20 = g.Q - s * g.pK, g.P - s * g.qK  # 2
    if retraction == "svd":
        X_2, converged = _right_graph(g, s, S_0, S_20, by_newton=by_newton)  # 3
    else:
        X_2 = torch.linalg.inv_ex(S_20).inverse
        converged = torch.ones_like(g.ok)
        g = g._replace(ok=g.ok & (_inverse_error(S_20, X_2) <= LEAST_ACCURACY))
    normal = s * s * (g.N_Z @ X_2)
    inner = X_2.mT @ normal  # 4
    S = torch.baddbmm(S_0, g.p, normal) if retraction == "svd" else S_0
    J = torch.baddbmm(s * s * g.N_Y, S.mT, g.P @ S)
    ok = g.ok & converged & _finite(inner) & _finite(J)
    H, failed = torch.linalg.cholesky_ex(_where(ok, g.Q + inner, g.Q))
    ok = ok & (failed == 0)
    identity = _identity(A).expand_as(H)
    H = _where(ok, H, identity)
    h = torch.linalg.solve_triangular(H, identity, upper=False)
    half = h.mT if retraction == "svd" else g.q @ H
    middle = _where(ok, half.mT @ J @ half, identity)
    w = eigh(middle)[1].flip(-1)  # largest first
    b = h.mT @ w
    signs = column_signs(b)
    b, w = b * signs, w * signs
    a = b if retraction == "svd" else half @ w
    change = s * (g.pE - g.pK)
    if retraction == "svd":
        change = change + (S - S_0) - inner
    c, x = torch.baddbmm(H @ w, change, a), X_2 @ b  # 5
    new_A = torch.baddbmm(A @ c, D_A, s * a, alpha=-1)
    new_B = torch.baddbmm(B @ torch.baddbmm(b, g.qF, s * x), D_B, s * x, alpha=-1)
    root = torch.linalg.vector_norm(new_A, dim=-2, keepdim=True).sqrt()
    new_A, new_B = new_A.div_(root), new_B.mul_(root)
    ok = ok & _finite(new_A) & _finite(new_B)
    T_A = torch.baddbmm(c, g.pE, s * a, alpha=-1) / root
    return _or_unchanged(Moved(new_A, new_B, T_A, b * root, ok), A, B), g.ok & ~converged


def _grams(A: Tensor, B: Tensor, D_A: Tensor, D_B: Tensor, core: Core, least_sine: float) -> _Grams:
    P, Q, E, F = A.mT @ A, B.mT @ B, A.mT @ D_A, B.mT @ D_B
    p, ok_P = _inverse_gram(P, least_sine)
    q, ok_Q = _inverse_gram(Q, least_sine)
    pE, qF = p @ E, q @ F
    N_Y = torch.baddbmm(D_A.mT @ D_A, E.mT, pE, alpha=-1)
    N_Z = torch.baddbmm(D_B.mT @ D_B, F.mT, qF, alpha=-1)
    pK, qK = p @ F.mT, qF  # K = F^T
    if core == "mean":
        pK, qK = (pE + pK) / 2, (q @ E.mT + qF) / 2
    return _Grams(P, Q, p, q, pE, qF, N_Y, N_Z, pK, qK, ok_P & ok_Q)


def _inverse_gram(gram: Tensor, least_sine: float) -> tuple[Tensor, Tensor]:
    """(gram^-1, ok), ok where every column of the factor keeps this sine to the span of those before it."""
    L, failed = torch.linalg.cholesky_ex(gram)
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    sine = (L.diagonal(dim1=-2, dim2=-1) / lengths).amin(-1)  # NaN compares as False
    ok = (failed == 0) & (sine > least_sine)
    return torch.cholesky_inverse(_where(ok, L, _identity(gram))), ok


def _right_graph(
    g: _Grams, s: Tensor, S_0: Tensor, S_20: Tensor, *, by_newton: bool
) -> tuple[Tensor, Tensor]:
    """X_2 of step 3 and where it has converged.

    By Newton the inverses follow their matrix: X <- X + X (I - S X) squares the residual I - S X, which is
    small as long as a sweep changes S little. It is several times faster than an inverse a sweep, and
    diverges where the discarded singular values are close to the kept ones.

    The residual before an update of X_2 is also its relative change. An error of that size in X_2 turns the
    right subspace so far that W' is off by it times ||s Z p||, so it may be larger than eps by
    ||W|| / ||s Z p||; it cannot become smaller than the rounding of the product S_2 X_2 (`floor`).
    """
    eps, identity = torch.finfo(S_0.dtype).eps, _identity(S_0).expand_as(S_0)
    normal = s[:, 0, 0] * (g.p * g.N_Z).sum((-2, -1)).clamp_min(0.0).sqrt()
    enough = 4.0 * eps * (g.P * g.Q).sum((-2, -1)).clamp_min(0.0).sqrt() / normal
    pN, qN = s * s * (g.p @ g.N_Z), s * s * (g.q @ g.N_Y)
    X = torch.linalg.inv_ex(S_0).inverse
    X_2 = g.p @ (X.mT @ g.Q)
    last = torch.ones_like(normal)
    for sweep in range(MAX_SWEEPS):
        if sweep:
            X = _inverse(torch.baddbmm(S_0, pN, X_2), X, identity, by_newton=by_newton)
        S_2 = torch.baddbmm(S_20, qN, X)
        residual = torch.baddbmm(identity, S_2, X_2, alpha=-1)
        X_2 = torch.baddbmm(X_2, X_2, residual) if by_newton else torch.linalg.inv_ex(S_2).inverse
        change = torch.linalg.matrix_norm(residual)
        floor = _inverse_error(S_2, X_2)
        rate = change / last
        left = torch.maximum(rate, change) * change  # the next change, or what Newton has left
        converged = ((rate < 0.5) & (left <= enough)) | (change <= floor)
        last = change
        if bool(converged.all()):
            break
    return X_2, converged


def _inverse_error(S: Tensor, X: Tensor) -> Tensor:
    """The rounding of I - S X for X = S^-1, in the Frobenius norm, and so the relative error of X (b,)."""
    norms = torch.linalg.matrix_norm(S) * torch.linalg.matrix_norm(X)
    return torch.finfo(S.dtype).eps * norms / math.sqrt(S.shape[-1])


def _inverse(S: Tensor, X: Tensor, identity: Tensor, *, by_newton: bool) -> Tensor:
    """S^-1 exactly, or a Newton step towards it from X."""
    if not by_newton:
        return torch.linalg.inv_ex(S).inverse
    return torch.baddbmm(X, X, torch.baddbmm(identity, S, X, alpha=-1))


def _core(K_1: Tensor, K_2: Tensor, core: Core) -> Tensor:
    return K_2 if core == "B" else (K_1 + K_2) / 2


def _scaled(step: Tensor, length: Tensor | None, square: Tensor) -> Tensor:
    """s as (b, 1, 1), so that ||s xi||_F = step * length if a length is given; `square` is ||xi||_F^2."""
    if length is not None:
        norm = square.sqrt()
        step = step * torch.where(norm > 0, length / norm, torch.zeros_like(norm))
    return step[:, None, None]


def _full_rank(R: Tensor) -> Tensor:
    """No diagonal entry of R that is rounding beside the largest one, and nothing that is not finite."""
    if R.shape[-2] < R.shape[-1]:
        return torch.zeros(R.shape[:-2], dtype=torch.bool, device=R.device)
    d = R.diagonal(dim1=-2, dim2=-1).abs()
    return d.amin(-1) > R.shape[-1] * torch.finfo(R.dtype).eps * d.amax(-1)


def _squared_length(g: _Grams) -> Tensor:
    """||xi||_F^2 (b,) of step d."""
    K = g.P @ g.pK
    squares = (g.pK * (K @ g.q)).sum((-2, -1)), (g.q * g.N_Y).sum((-2, -1)), (g.p * g.N_Z).sum((-2, -1))
    return torch.stack(squares).clamp_min(0.0).sum(0)


def _identity(X: Tensor) -> Tensor:
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)


def _finite(X: Tensor) -> Tensor:
    return X.sum(dim=(-2, -1)).isfinite()


def _where(ok: Tensor, this: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(ok[:, None, None], this, otherwise)


def _or_unchanged(moved: Moved, A: Tensor, B: Tensor) -> Moved:
    if bool(moved.ok.all()):
        return moved
    identity, ok = _identity(A), moved.ok
    return Moved(
        _where(ok, moved.A, A),
        _where(ok, moved.B, B),
        _where(ok, moved.T_A, identity),
        _where(ok, moved.T_B, identity),
        ok,
    )
