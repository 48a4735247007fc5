"""Spectron and Muon for one matrix, in float64 numpy, written line by line from the dossiers. The batched
ones are tested against these; nothing here is shared with the package.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def ortho(M: Array, *, steps: int = 5, eps: float = 1e-7, maximum: bool = False) -> Array:
    """Algorithm 2 of Spectron, right-multiplied; `maximum` for torch.optim.Muon's max(norm, eps)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = np.linalg.norm(M)
    X = M / (max(norm, eps) if maximum else norm + eps)
    for _ in range(steps):
        S = X.T @ X
        X = a * X + X @ (b * S + c * S @ S)
    return X


def power_iteration(X: Array, u: Array, iters: int) -> tuple[float, Array]:
    """Algorithm 3 of Spectron, with the zero-factor rule of the dossier, section 5 item 4."""
    u = u / np.linalg.norm(u)
    start = u
    v = X.T @ u
    if np.linalg.norm(v) == 0:
        return 0.0, start
    v = v / np.linalg.norm(v)
    for _ in range(iters):
        u = X @ v
        u = u / np.linalg.norm(u)
        v = X.T @ u
        v = v / np.linalg.norm(v)
    return float(u @ X @ v), u


class SimpleSpectron:
    """Algorithm 1 for one pair, published variant."""

    def __init__(
        self, A: Array, B: Array, uA: Array, uB: Array, *, beta: float, wd: float, iters: int
    ) -> None:
        self.A, self.B, self.uA, self.uB = A.copy(), B.copy(), uA.copy(), uB.copy()
        self.MA, self.MB = np.zeros_like(A), np.zeros_like(B)
        self.beta, self.wd, self.iters = beta, wd, iters

    def step(self, GA: Array, GB: Array, eta: float) -> None:
        self.MA = self.beta * self.MA + (1 - self.beta) * GA
        self.MB = self.beta * self.MB + (1 - self.beta) * GB
        sigma_A, self.uA = power_iteration(self.A, self.uA, self.iters)
        sigma_B, self.uB = power_iteration(self.B, self.uB, self.iters)
        rho = eta / (sigma_A + sigma_B + 1)
        self.A = (1 - eta * self.wd) * self.A - rho * ortho(self.MA)
        self.B = (1 - eta * self.wd) * self.B - rho * ortho(self.MB)


class SimpleMuon:
    """torch.optim.Muon 2.13 for one matrix, in float64 throughout."""

    def __init__(self, W: Array, *, mu: float, nesterov: bool, wd: float, original: bool) -> None:
        self.W, self.M = W.copy(), np.zeros_like(W)
        self.mu, self.nesterov, self.wd, self.original = mu, nesterov, wd, original

    def step(self, G: Array, lr: float) -> None:
        self.M = self.M + (1 - self.mu) * (G - self.M)
        D = G + self.mu * (self.M - G) if self.nesterov else self.M
        m, n = self.W.shape
        scale = np.sqrt(max(1.0, m / n)) if self.original else 0.2 * np.sqrt(max(m, n))
        self.W = self.W * (1 - lr * self.wd) - lr * scale * ortho(D, maximum=True)
