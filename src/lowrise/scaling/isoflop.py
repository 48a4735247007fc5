"""Parabolas of loss in log size, one a budget, and the powers that their minima follow.

1. In each budget: loss = a + b x + c x^2, x = log N - mean log N, by least squares. Its minimum is at
   x* = -b / (2 c) where c > 0.                             (Hoffmann et al. 2022, 2203.15556, section 3.2)
2. The tokens there, D*: log D as a parabola in x through the points of the budget (exact FLOPs make tokens a
   smooth function of the size), at x*.
3. log N* = log k + e log C, and log D* likewise, by least squares over the budgets whose minimum lies between
   the smallest and the largest size.

Intervals. The residuals of all parabolas of a method share one variance, s^2 = RSS / nu, with nu = points - 3
for each parabola. A draw takes a variance nu s^2 / chi^2_nu and adds normal noise of it to the fitted losses;
then 1 to 3 are repeated. Without the chi-square, intervals of few degrees of freedom are too narrow: 4 sizes
leave one for each budget. A draw without a minimum counts half below and half above everything, so that an
interval is infinite where the data do not close it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrise.scaling.points import Points

LEAST_SIZES = 3


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval; NaN where there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True)
class Parabola:
    """The fit of one budget. `params`, `tokens` and `loss` are those of its minimum."""

    budget: float
    sizes: int
    coefficients: tuple[float, float, float]
    """a, b, c."""
    center: float
    """Mean log N."""
    params: Interval
    tokens: Interval
    loss: Interval
    inside: bool
    """Whether the minimum lies between the smallest and the largest size."""

    @property
    def has_minimum(self) -> bool:
        return self.coefficients[2] > 0

    @property
    def counts(self) -> bool:
        """Whether laws follow from its minimum: one that lies outside the sizes was never seen."""
        return self.has_minimum and self.inside

    def at(self, params: np.ndarray) -> np.ndarray:
        """The parabola at other sizes."""
        x = np.log(params) - self.center
        a, b, c = self.coefficients
        return a + b * x + c * x * x


@dataclass(frozen=True)
class Power:
    """y = k C^exponent."""

    exponent: Interval
    log_k: float

    def at(self, flops: np.ndarray) -> np.ndarray:
        return np.exp(self.log_k + self.exponent.value * np.log(flops))


@dataclass(frozen=True)
class Draws:
    """What every draw of a method gives: minima as (draws, budgets), NaN where a draw has none."""

    flops: np.ndarray
    """Of the budgets that count, ascending (budgets)."""
    loss: np.ndarray
    """Estimates (budgets)."""
    drawn_loss: np.ndarray
    """(draws, budgets)"""


@dataclass(frozen=True)
class IsoFlop:
    """The isoFLOP fit of a method. The powers are None with fewer than two budgets that count."""

    parabolas: tuple[Parabola, ...]
    params: Power | None
    tokens: Power | None
    sigma: float
    """Standard deviation of a loss around its parabola; NaN without degrees of freedom."""
    freedom: int
    left_out: tuple[str, ...]
    draws: Draws


@dataclass(frozen=True)
class _Budget:
    """One group: the linear map from losses to coefficients, and what turns a minimum into tokens."""

    flops: float
    budget: float
    x: np.ndarray
    center: float
    loss: np.ndarray
    solve: np.ndarray
    """(3, n)"""
    design: np.ndarray
    """(n, 3)"""
    log_tokens: np.ndarray
    """Coefficients of log D in x, highest power first."""


def fit_isoflop(points: Points, *, level: float, draws: int, seed: int) -> IsoFlop:
    """Fit one method. Budgets with fewer than three sizes are left out, and told."""
    groups, left_out = _groups(points)
    freedom = sum(len(group.x) - 3 for group in groups)
    fitted = [group.design @ (group.solve @ group.loss) for group in groups]
    rss = sum(float(np.sum((g.loss - f) ** 2)) for g, f in zip(groups, fitted, strict=True))
    sigma = float(np.sqrt(rss / freedom)) if freedom else np.nan
    rng = np.random.default_rng(seed)
    scales = sigma * np.sqrt(freedom / rng.chisquare(freedom, draws)) if freedom else np.full(draws, np.nan)
    minima, parabolas = [], []
    for group, mean in zip(groups, fitted, strict=True):
        noise = scales[:, None] * rng.standard_normal((draws, len(mean)))
        drawn = _minima((mean + noise) @ group.solve.T, group)
        own = _minima((group.solve @ group.loss)[None], group)
        parabolas.append(_parabola(group, own, drawn, level))
        minima.append((own, drawn))
        if not parabolas[-1].has_minimum:
            left_out.append(f"{group.budget:.3g} FLOPs: loss has no minimum in the size; no law counts it.")
        elif not parabolas[-1].inside:
            left_out.append(
                f"{group.budget:.3g} FLOPs: the minimum lies outside the sizes that were run; no law counts "
                "it. Run further sizes."
            )
    kept = [i for i, parabola in enumerate(parabolas) if parabola.counts]
    flops = np.array([groups[i].flops for i in kept])
    powers: list[Power | None] = [None, None]
    if len(kept) >= 2:
        for which in (0, 1):
            estimates = np.stack([minima[i][0][which] for i in kept], axis=1)
            many = np.stack([minima[i][1][which] for i in kept], axis=1)
            powers[which] = power_of(flops, estimates, many, level)
    loss = np.array([minima[i][0][2][0] for i in kept])
    drawn_loss = np.stack([minima[i][1][2] for i in kept], axis=1) if kept else np.empty((draws, 0))
    return IsoFlop(
        tuple(parabolas),
        powers[0],
        powers[1],
        sigma,
        freedom,
        tuple(left_out),
        Draws(flops, loss, drawn_loss),
    )


def _groups(points: Points) -> tuple[list[_Budget], list[str]]:
    groups, left_out = [], []
    for budget in np.unique(points.budget):
        here = points.budget == budget
        sizes = len(np.unique(points.params[here]))
        if sizes < LEAST_SIZES:
            left_out.append(f"{budget:.3g} FLOPs: {sizes} size(s), and a parabola needs {LEAST_SIZES}.")
            continue
        log_params = np.log(points.params[here])
        center = float(log_params.mean())
        x = log_params - center
        design = np.stack([np.ones_like(x), x, x * x], axis=1)
        log_tokens = np.polyfit(x, np.log(points.tokens[here]), 2)
        flops = float(np.exp(np.log(points.flops[here]).mean()))
        solve = np.linalg.pinv(design)
        groups.append(_Budget(flops, float(budget), x, center, points.loss[here], solve, design, log_tokens))
    return groups, left_out


def _minima(coefficients: np.ndarray, group: _Budget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log N*, log D* and loss at the minima of parabolas (k, 3); NaN where there is none."""
    a, b, c = coefficients.T
    curved = np.where(c > 0, c, np.nan)
    x = -b / (2 * curved)
    return x + group.center, np.polyval(group.log_tokens, x), a - b * b / (4 * curved)


def _parabola(
    group: _Budget, own: tuple[np.ndarray, ...], drawn: tuple[np.ndarray, ...], level: float
) -> Parabola:
    a, b, c = (group.solve @ group.loss).tolist()
    params, tokens, loss = (
        Interval(float(value[0]), *interval(draws, level)) for value, draws in zip(own, drawn, strict=True)
    )
    sizes = len(np.unique(group.x))
    inside = bool(group.x.min() <= own[0][0] - group.center <= group.x.max())
    return Parabola(
        group.budget, sizes, (a, b, c), group.center, exponential(params), exponential(tokens), loss, inside
    )


def exponential(one: Interval) -> Interval:
    """The interval of exp(y) from that of y."""
    with np.errstate(over="ignore"):
        return Interval(*(float(np.exp(v)) for v in (one.value, one.low, one.high)))


def power_of(flops: np.ndarray, own: np.ndarray, drawn: np.ndarray, level: float) -> Power:
    """The power of C that log minima (1, budgets) follow, with the interval of the drawn ones."""
    x = np.log(flops)
    slope = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    exponent = float(own[0] @ slope)
    return Power(
        Interval(exponent, *interval(drawn @ slope, level)), float(own[0].mean() - exponent * x.mean())
    )


def interval(draws: np.ndarray, level: float) -> tuple[float, float]:
    """The ends that leave (1 - level) / 2 of the draws on each side; draws that are NaN count half as minus
    and half as plus infinity. NaN where all are NaN.
    """
    finite = np.sort(draws[~np.isnan(draws)])
    if not len(finite):
        return np.nan, np.nan
    missing = (len(draws) - len(finite)) / 2
    tail = (1 - level) / 2 * len(draws) - missing
    if tail < 0:
        return -np.inf, np.inf
    ends = np.interp([tail, len(finite) - tail], np.arange(len(finite)) + 0.5, finite)
    return float(ends[0]), float(ends[1])
