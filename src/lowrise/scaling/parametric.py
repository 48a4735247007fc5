"""L(N, D) = E + A / N^alpha + B / D^beta, all points of a method at once (Hoffmann et al. 2022, section 3.3).

1. Unknowns e, a, b, alpha, beta: log L = logsumexp(e, a - alpha log N', b - beta log D'), with N' and D' the
   sizes and tokens over their geometric means, so that all five are of order one.
2. Minimized: the sum of Huber losses (delta 1e-3) of log L - log loss, by L-BFGS from the best `STARTS` of a
   grid of starting points.
3. Along C = k N D the optimum has N ~ C^(beta / (alpha + beta)) and D ~ C^(alpha / (alpha + beta)).

Intervals. As for the parabolas (`isoflop`): a draw takes a variance of nu s^2 / chi^2_nu, nu = points - 5,
adds normal noise of it to the fitted log losses, and fits again from the estimate, all draws at once by
Levenberg-Marquardt steps on the weighted squares that have the gradient of the Huber loss.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from lowrise.scaling.isoflop import Interval, interval
from lowrise.scaling.points import Points

STARTS = 24
UNKNOWNS = 5
_STEPS, _TOLERANCE = 200, 1e-7
_SHARES = (0.02, 0.1, 0.3)  # of the loss that the two terms may be at the mean size and tokens
_EXPONENTS = (0.1, 0.3, 0.6, 1.0)
_LIMITS = (
    (-12.0, 6.0),
    (-12.0, 6.0),
    (-12.0, 6.0),
    (0.0, 4.0),
    (0.0, 4.0),
)  # of the five, and of their draws


@dataclass(frozen=True)
class Parametric:
    """The fit of one method, with intervals; `params_exponent` and `tokens_exponent` are those of 3."""

    E: Interval
    A: Interval
    B: Interval
    alpha: Interval
    beta: Interval
    params_exponent: Interval
    tokens_exponent: Interval
    sigma: float
    """Standard deviation of the residuals of log loss."""
    points: int

    def loss(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return (
            self.E.value + self.A.value * params**-self.alpha.value + self.B.value * tokens**-self.beta.value
        )


def fit_parametric(points: Points, *, delta: float, level: float, draws: int, seed: int) -> Parametric | None:
    """Fit one method; None with fewer than six points, of three sizes and three numbers of tokens."""
    log_n, log_d, y = np.log(points.params), np.log(points.tokens), np.log(points.loss)
    if len(y) <= UNKNOWNS or min(len(np.unique(log_n)), len(np.unique(log_d))) < 3:
        return None
    mean_n, mean_d = float(log_n.mean()), float(log_d.mean())
    n, d = log_n - mean_n, log_d - mean_d
    theta = estimate(n, d, y, delta)
    fitted = model(theta[None], n, d)[0]
    freedom = len(y) - UNKNOWNS
    sigma = float(np.sqrt(np.sum((fitted - y) ** 2) / freedom))
    rng = np.random.default_rng(seed)
    scales = sigma * np.sqrt(freedom / rng.chisquare(freedom, draws))
    noisy = fitted + scales[:, None] * rng.standard_normal((draws, len(y)))
    drawn = refit(np.tile(theta, (draws, 1)), n, d, noisy, delta)
    columns = zip(_quantities(theta[None], mean_n, mean_d), _quantities(drawn, mean_n, mean_d), strict=True)
    E, A, B, alpha, beta, share, rest = (
        Interval(float(own[0]), *interval(many, level)) for own, many in columns
    )
    return Parametric(E, A, B, alpha, beta, share, rest, sigma, len(y))


def _quantities(theta: np.ndarray, mean_n: float, mean_d: float) -> tuple[np.ndarray, ...]:
    """E, A, B, alpha, beta and both exponents of (k, 5) unknowns, in the units of the points."""
    e, a, b, alpha, beta = theta.T
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        share = beta / (alpha + beta)
        A, B = np.exp(a + alpha * mean_n), np.exp(b + beta * mean_d)
    return np.exp(e), A, B, alpha, beta, share, 1 - share


def model(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """log L of (k, 5) unknowns at all points (k, points)."""
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    return np.logaddexp(np.logaddexp(e, a - alpha * n), b - beta * d)


def _slopes(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L (k, points), and its derivatives by the unknowns (k, points, 5)."""
    log_loss = model(theta, n, d)
    e, a, b, alpha, beta = (column[:, None] for column in theta.T)
    of_e, of_n, of_d = (np.exp(part - log_loss) for part in (e, a - alpha * n, b - beta * d))
    return log_loss, np.stack([of_e, of_n, of_d, -n * of_n, -d * of_d], axis=2)


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= delta, residual * residual / 2, delta * (size - delta / 2))


def estimate(n: np.ndarray, d: np.ndarray, y: np.ndarray, delta: float) -> np.ndarray:
    """The unknowns with the smallest Huber loss that is found from a grid of starts (5)."""
    level = float(y.mean())
    grid = [
        (level + np.log(1 - x - z), level + np.log(x), level + np.log(z), alpha, beta)
        for x, z, alpha, beta in itertools.product(_SHARES, _SHARES, _EXPONENTS, _EXPONENTS)
    ]
    starts = np.array(grid)
    order = np.argsort(_huber(model(starts, n, d) - y, delta).sum(axis=1))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        log_loss, slopes = _slopes(theta[None], n, d)
        residual = log_loss[0] - y
        gradient = np.clip(residual, -delta, delta) @ slopes[0]
        return float(_huber(residual, delta).sum()) / delta, gradient / delta

    results = [
        minimize(objective, starts[i], jac=True, method="L-BFGS-B", bounds=_LIMITS, options={"maxiter": 2000})
        for i in order[:STARTS]
    ]
    best = min(results, key=lambda result: float(result.fun))
    # What is left of the way is short and flat: L-BFGS stops early there.
    return refit(np.asarray(best.x)[None], n, d, y[None], delta)[0]


def refit(theta: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray, delta: float) -> np.ndarray:
    """Minima near `theta` (k, 5) of the Huber loss for losses y (k, points), all k at once.

    Iteratively reweighted: a residual beyond delta has weight delta / |residual|, whose weighted square has
    the Huber loss's gradient. A step that does not lower the Huber loss is taken back and damped tenfold.
    """
    theta, low, high = theta.copy(), *np.array(_LIMITS).T
    damping = np.full(len(theta), 1e-3)
    value = _huber(model(theta, n, d) - y, delta).sum(axis=1)
    active = np.arange(len(theta))
    for _ in range(_STEPS):
        log_loss, slopes = _slopes(theta[active], n, d)
        residual = log_loss - y[active]
        weight = np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-12))
        weighted = slopes * weight[:, :, None]
        normal = weighted.transpose(0, 2, 1) @ slopes
        gradient = np.einsum("kpi,kp->ki", weighted, residual)
        diagonal = np.einsum("kii->ki", normal)
        normal[:, range(UNKNOWNS), range(UNKNOWNS)] += damping[active, None] * diagonal + 1e-12
        step = np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
        moved = np.clip(theta[active] - step, low, high)
        new = _huber(model(moved, n, d) - y[active], delta).sum(axis=1)
        better = new < value[active]
        gain = value[active] - new
        theta[active[better]], value[active[better]] = moved[better], new[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 10.0), 1e-9, 1e9)
        done = (better & (gain < _TOLERANCE * value[active])) | (damping[active] >= 1e9)
        active = active[~done]
        if not len(active):
            break
    return theta
