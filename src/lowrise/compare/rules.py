"""The rules that a comparison is read by, written down before its first run, and the verdicts they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowrise.compare.plan import Plan
from lowrise.compare.statistics import CONFIDENCE, Interval, Statistic, holm, paired, welch

LEAST_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """Mean validation loss against the first recipe's. `verdict`: reference, better, worse, no difference
    shown, or undecided; then `because` says why. `mean`, `low`, `high` and `p` are of the test that decides,
    `p_corrected` is p where no correction was asked for.
    """

    verdict: str
    because: str = ""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    welch: Interval | None = None
    paired: Interval | None = None


@dataclass(frozen=True)
class Side:
    """What a verdict needs to know of one recipe."""

    label: str
    losses: Mapping[int, float]
    """Seed -> validation loss, of the completed runs at the chosen point."""
    edges: tuple[str, ...]
    tuned: bool
    lost: int
    waiting: int

    @property
    def statistic(self) -> Statistic:
        return Statistic.of(list(self.losses.values()))


def rules(plan: Plan) -> dict[str, str]:
    """The rules in words."""
    decides = {
        "welch": "the 95% Welch interval of the difference of their mean validation losses (standard error "
        "sqrt(s1^2/n1 + s2^2/n2), Student t with Welch-Satterthwaite degrees of freedom) leaves out zero",
        "paired": "the 95% interval of the mean of the differences seed by seed (Student t, one degree of "
        "freedom fewer than seeds) leaves out zero",
    }[plan.test]
    others = max(1, len(plan.recipes) - 1)
    corrected = (
        f" The p values are corrected for {others} comparison(s) by Holm's rule, and the corrected one must "
        "be below 0.05 too; intervals are not corrected."
        if plan.correction == "holm"
        else ""
    )
    return {
        "selection": "The learning rate of a recipe (with what else is tuned) is the grid point with the "
        "lowest final validation loss; each point is run once, with the first seed, at the full budget. "
        "Diverged and failed runs cannot be chosen. The same factors apply to every recipe.",
        "average": "A recipe that keeps an average of its weights ([ema]) is judged by the average.",
        "edge": "A chosen point is marked as an edge where no run of its grid beyond it completed or "
        "diverged: a better one may lie outside.",
        "statistics": "Validation loss is the mean over the seeds at the chosen point, with the sample "
        "standard deviation. The seed that chose it is one of them, so a mean is slightly optimistic, the "
        "more so the larger the grid.",
        "significance": f"Two recipes differ if {decides}.{corrected}",
        "undecided": f"Nothing is decided with fewer than {LEAST_SEEDS} seeds on either side, with a seed "
        "that diverged, failed or is still to do, or while the choice of either recipe lies at an edge of "
        "its grid or was not tuned (one learning rate).",
    }


def differences(plan: Plan, sides: Sequence[Side]) -> list[Difference]:
    """The verdict on every recipe, the first one being what the others are measured against."""
    if not sides:
        return []
    first, others = sides[0], sides[1:]
    found = [_measured(plan, side, first) for side in others]
    decided = [None if difference.because else difference.p for difference in found]
    corrected = holm(decided) if plan.correction == "holm" else decided
    return [Difference("reference"), *(_judged(d, p) for d, p in zip(found, corrected, strict=True))]


def _measured(plan: Plan, side: Side, first: Side) -> Difference:
    """Intervals, as far as there are values, and what stands in the way of a verdict."""
    a, b = side.statistic, first.statistic
    because = _obstacle(side, first)
    mean = a.mean - b.mean if a.mean is not None and b.mean is not None else None
    both = len(side.losses.keys() & first.losses.keys())
    by_welch = welch(a, b) if min(a.n, b.n) >= 2 else None
    by_seed = paired(side.losses, first.losses) if both >= 2 else None
    decides = by_welch if plan.test == "welch" else by_seed
    if decides is None:
        return Difference("undecided", because, mean, welch=by_welch, paired=by_seed)
    return Difference(
        "undecided",
        because,
        decides.mean,
        decides.low,
        decides.high,
        decides.p,
        welch=by_welch,
        paired=by_seed,
    )


def _obstacle(side: Side, first: Side) -> str:
    """Why nothing may be said, the baseline's faults first; empty where something may."""
    for one in (first, side):
        if one.waiting:
            return f"{one.waiting} run(s) of {one.label} are still to do"
        if not one.losses:
            return f"{one.label} has no result"
        if one.lost:
            return f"{one.lost} seed(s) of {one.label} diverged or failed"
    for one in (first, side):
        if len(one.losses) < LEAST_SEEDS:
            return f"{one.label} has {len(one.losses)} seed(s), fewer than {LEAST_SEEDS}"
    for one in (first, side):
        if not one.tuned:
            return f"the learning rate of {one.label} was not tuned here (one point)"
        if one.edges:
            where = " and ".join(one.edges)
            return f"the choice of {one.label} lies at the edge of its grid ({where} tried)"
    return ""


def _judged(difference: Difference, p: float | None) -> Difference:
    if difference.because or difference.mean is None or p is None:
        return difference
    assert difference.low is not None
    assert difference.high is not None
    differ = p < 1 - CONFIDENCE and not difference.low <= 0 <= difference.high
    verdict = ("better" if difference.mean < 0 else "worse") if differ else "no difference shown"
    return Difference(**{**vars(difference), "verdict": verdict, "p_corrected": p})
