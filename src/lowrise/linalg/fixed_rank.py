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
f. W' = A' B'^T in the balanced gauge, A'^T A' = B'^T B' = diag(sigma)

`tangent_step_reference` does this by QR, triangular solves and an SVD of 2r x 2r. `tangent_step` needs none
of them: everything above is a function of six r x r Gram matrices. In the bases [U, Y_A] and [V, Y_B] (the
second halves orthogonal to the first, not orthonormal), with N_A = Y_A^T Y_A, N_B = Y_B^T Y_B and
C = R_A R_B^T - s K,

    W - s xi = [U, Y_A] [[C, -s I], [-s I, 0]] [V, Y_B]^T

and its dominant subspaces are the graphs [I; Phi], [I; Psi] with Phi = -s S^-1, Psi = -s S_2^-1, where
S = C + s^2 N_B S_2^-1 and S_2 = C^T + s^2 N_A S^-1. Repeating these two lines from S = S_2^T = C is subspace
iteration: it converges to the r leading singular directions by (sigma_{r+1} / sigma_r)^2 a sweep. Without any
sweep they are the orthographic retraction. What is left are matrix products and small factorizations
(Cholesky, an inverse, a symmetric r x r eigenproblem): A' = A X_1 + D_A X_2.

Accuracy. W' = W for s = 0 whatever the error of R_A, R_B, because they cancel; a Gram matrix that is off by
eps puts an error of eps / sin^2 into the step, sin being that of the smallest angle between a column of a
factor and those before it (whatever the columns' lengths, so balanced factors are harmless). Pairs with
sin < 0.05 are repeated in float64, those with sin < 1e-4, or whose sweeps have not converged, by the
reference in float64. Pairs without full rank have no tangent space of dimension r (m + n - r); they come
back unchanged with ok = False.

Batched over the first dimension. Waits for the device (checks and eigensolver).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lowrise.linalg.precision import full_precision_matmul

Core = Literal["B", "mean"]
Retraction = Literal["svd", "orthographic"]

MAX_SWEEPS = 12


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
    float64.
    """
    wide = torch.float32 if A.device.type == "mps" else torch.float64
    with full_precision_matmul(A.device):
        newton = A.dtype == torch.float32
        moved = _by_grams(A, B, D_A, D_B, step, core, retraction, length, least_sine=0.05, by_newton=newton)
        for careful in (True, False) if A.dtype != wide else (False,):
            left = torch.nonzero(~moved.ok).squeeze(-1)
            if left.numel() == 0:
                break
            a, b, d_a, d_b, s = (X[left].to(wide) for X in (A, B, D_A, D_B, step))
            wanted = None if length is None else length[left].to(wide)
            if careful:
                again = _by_grams(
                    a, b, d_a, d_b, s, core, retraction, wanted, least_sine=1e-4, by_newton=False
                )
            else:
                again = tangent_step_reference(
                    a, b, d_a, d_b, s, core=core, retraction=retraction, length=wanted
                )
            for target, source in zip(moved, again, strict=True):
                target.index_copy_(0, left, source.to(target.dtype))
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
    identity = torch.eye(r, dtype=A.dtype, device=A.device)
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
        P, sigma, Qh = torch.linalg.svd(_where(ok, T, torch.eye(2 * r, dtype=A.dtype, device=A.device)))
        P, sigma, Q = P[..., :r], sigma[..., :r], Qh[..., :r, :].mT
        left, right = torch.cat([U, Q_A], dim=-1) @ P, torch.cat([V, Q_B], dim=-1) @ Q
    else:
        inverse, failed = torch.linalg.inv_ex(C)
        ok = ok & (failed == 0) & _finite(inverse)
        L, M = (_where(ok, x, y) for x, y in ((U - s * Y_A @ inverse, U), (V @ C.mT - s * Y_B, V)))
        Q_L, R_L = torch.linalg.qr(L)
        Q_M, R_M = torch.linalg.qr(M)
        P, sigma, Qh = torch.linalg.svd(R_L @ R_M.mT)
        left, right = Q_L @ P, Q_M @ Qh.mT
    root = sigma.sqrt().unsqueeze(-2)  # f
    new_A, new_B = left * root, right * root
    T_A = torch.linalg.solve_triangular(R_A, U.mT @ new_A, upper=True)
    T_B = torch.linalg.solve_triangular(R_B, V.mT @ new_B, upper=True)
    return _or_unchanged(Moved(new_A, new_B, T_A, T_B, ok), *unchanged)


def _by_grams(
    A: Tensor,
    B: Tensor,
    D_A: Tensor,
    D_B: Tensor,
    step: Tensor,
    core: Core,
    retraction: Retraction,
    length: Tensor | None,
    *,
    least_sine: float,
    by_newton: bool,
) -> Moved:
    """Steps a-f by Gram matrices; ok = False also where this way is not accurate enough. All r x r below."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    invert_A, ok_A, R_A = _inverse_root(A.mT @ A, least_sine, identity)
    invert_B, ok_B, R_B = _inverse_root(B.mT @ B, least_sine, identity)
    ok = ok_A & ok_B
    K_1 = invert_A.mT @ (A.mT @ D_A) @ invert_B  # U^T Z_A
    K_2 = invert_A.mT @ (D_B.mT @ B) @ invert_B  # Z_B^T V
    N_A = invert_B.mT @ (D_A.mT @ D_A) @ invert_B - K_1.mT @ K_1
    N_B = invert_A.mT @ (D_B.mT @ D_B) @ invert_A - K_2 @ K_2.mT
    K = _core(K_1, K_2, core)
    traces = N_A.diagonal(dim1=-2, dim2=-1).sum(-1) + N_B.diagonal(dim1=-2, dim2=-1).sum(-1)
    s = _scaled(step, length, torch.linalg.matrix_norm(K).square() + traces.clamp_min(0.0))
    C = R_A @ R_B.mT - s * K
    X, X_2, converged = _graphs(C, s * s * N_A, s * s * N_B, retraction, by_newton=by_newton)
    Phi, Psi = -s * X, -s * X_2
    S = C - s * (N_B @ Psi)
    G_Phi, G_Psi = identity + Phi.mT @ N_A @ Phi, identity + Psi.mT @ N_B @ Psi
    F, failed_F = torch.linalg.cholesky_ex(G_Phi)  # lower
    H, failed_H = torch.linalg.cholesky_ex(G_Psi)
    ok = ok & converged & (failed_F == 0) & (failed_H == 0)
    F, H = _where(ok, F, identity), _where(ok, H, identity)
    if retraction == "svd":
        middle = F.mT @ torch.linalg.solve_triangular(H.mT, S, upper=True, left=False)  # F^T S H^-T
    else:
        middle = F.mT @ C @ H
    ok = ok & _finite(middle)
    middle = _where(ok, middle, identity)
    eigenvectors = torch.linalg.eigh(middle.mT @ middle).eigenvectors.flip(-1)
    weighted = middle @ eigenvectors  # P sigma; its columns' norms are sigma, whatever the eigenvalues' error
    root = torch.linalg.vector_norm(weighted, dim=-2, keepdim=True).sqrt()
    ok = ok & (root > 0).all(-1).all(-1)
    c_A = torch.linalg.solve_triangular(F.mT, weighted / root, upper=True)  # U^T A'
    c_B = torch.linalg.solve_triangular(H.mT, eigenvectors * root, upper=True)  # V^T B'
    new_A = torch.baddbmm(A @ (invert_A @ (c_A - K_1 @ (Phi @ c_A))), D_A, invert_B @ (Phi @ c_A))
    new_B = torch.baddbmm(B @ (invert_B @ (c_B - K_2.mT @ (Psi @ c_B))), D_B, invert_A @ (Psi @ c_B))
    ok = ok & _finite(new_A) & _finite(new_B)
    return _or_unchanged(Moved(new_A, new_B, invert_A @ c_A, invert_B @ c_B, ok), A, B)


def _inverse_root(gram: Tensor, least_sine: float, identity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R^-1, ok, R) with R^T R = gram, R upper triangular; the identity where that is not accurate enough."""
    L, failed = torch.linalg.cholesky_ex(gram)
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    sine = (L.diagonal(dim1=-2, dim2=-1) / lengths).amin(-1)  # NaN compares as False
    ok = (failed == 0) & (sine > least_sine)
    R = _where(ok, L.mT, identity)
    return torch.linalg.solve_triangular(R, identity.expand_as(R), upper=True), ok, R


def _graphs(
    C: Tensor, sN_A: Tensor, sN_B: Tensor, retraction: Retraction, *, by_newton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """S^-1, S_2^-1 and whether they have converged; sN are s^2 N.

    By Newton the inverses follow their matrix: X <- X + X (I - S X) squares the residual I - S X, which is
    small as long as a sweep changes S little. It is several times faster than an inverse a sweep, and
    diverges where the discarded singular values are close to the kept ones; then the pair is done again
    with inverses.
    """
    X = torch.linalg.inv_ex(C).inverse
    X_2 = X.mT
    if retraction == "orthographic":
        return X, X_2, _finite(X)
    identity = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    tolerance = 4.0 * torch.finfo(C.dtype).eps * torch.linalg.matrix_norm(C)
    before, last_change = torch.zeros_like(C), torch.zeros_like(tolerance)
    converged = torch.zeros_like(tolerance, dtype=torch.bool)
    for _ in range(MAX_SWEEPS):
        correction = sN_B @ X_2
        S = C + correction
        X = X + X @ (identity - S @ X) if by_newton else torch.linalg.inv_ex(S).inverse
        S_2 = C.mT + sN_A @ X
        X_2 = X_2 + X_2 @ (identity - S_2 @ X_2) if by_newton else torch.linalg.inv_ex(S_2).inverse
        change = torch.linalg.matrix_norm(correction - before)
        # What is left is the next change, at most rate times this one.
        rate = change / last_change
        converged = (change == 0) | ((rate < 0.5) & (rate * change <= tolerance))
        before, last_change = correction, change
        if bool(converged.all()):
            break
    return X, X_2, converged


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


def _finite(X: Tensor) -> Tensor:
    return X.sum(dim=(-2, -1)).isfinite()


def _where(ok: Tensor, this: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(ok[:, None, None], this, otherwise)


def _or_unchanged(moved: Moved, A: Tensor, B: Tensor) -> Moved:
    if bool(moved.ok.all()):
        return moved
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    ok = moved.ok
    return Moved(
        _where(ok, moved.A, A),
        _where(ok, moved.B, B),
        _where(ok, moved.T_A, identity),
        _where(ok, moved.T_B, identity),
        ok,
    )
