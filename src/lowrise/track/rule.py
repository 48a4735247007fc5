"""The rule of a track: which entries are better than others beyond doubt, and the places that follow.

Few seeds each and many entries: a test that knows the spread of two entries alone (Welch's at three seeds has
2 to 4 degrees of freedom) sees next to nothing once it is corrected for all pairs. So the entries estimate
one spread together, as in the analysis of variance, and Tukey's range test compares all pairs at one level.
An entry that spreads more than the others (Cochran's test) is left out of that and compared by Welch's test.

Sources: J. W. Tukey, "The problem of multiple comparisons" (1953); W. G. Cochran, Annals of Eugenics 11
(1941), his critical value from the F distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from lowrise.compare.statistics import Interval, Statistic, pooled_sd, welch
from lowrise.files import is_known
from lowrise.track.results import Result
from lowrise.track.track import Track


@dataclass(frozen=True)
class Place:
    """A line of the leaderboard. `place`: 1 + the number of entries that are better beyond doubt; None where
    a seed diverged. `behind`: this entry's mean loss minus the leader's, with the interval outside of which
    zero means "beyond doubt".
    """

    name: str
    result: Result
    place: int | None
    loss: Statistic
    behind: Interval | None = None
    better: tuple[str, ...] = ()
    """The entries that are better beyond doubt."""


def rule_in_words(track: Track) -> str:
    return (
        f"Every entry is trained with the seeds {', '.join(map(str, track.seeds))} for as many whole updates "
        f"as {track.train_flops:.4g} FLOPs pay for (forward, backward, optimizer, as lowrise plan counts). "
        f"Its weights take at most {track.inference_bytes:,} bytes in bfloat16. Its score is the mean of the "
        "validation losses at the end. One entry is better than another beyond doubt if its score is lower "
        f"by Tukey's range test over all entries at the level {track.alpha:g}, with the spread of the seeds "
        "estimated from all entries together. An entry whose spread is beyond that of the others (Cochran's "
        "test at the same level) does not count in it, and its pairs are compared by Welch's test, corrected "
        "for their number. An entry's place is one more than the number of entries that are better beyond "
        "doubt; so several may share one. A seed that diverges leaves an entry without a place. "
        "Learning rates and other settings are chosen by the entrant with other seeds or less text; the "
        "validation text is for the score alone."
    )


def places(track: Track, results: Mapping[str, Result]) -> list[Place]:
    """The leaderboard by the rule of `rule_in_words`, the best first, entries without a score last."""
    scored = {
        name: Statistic.of([result.losses[seed] for seed in track.seeds])
        for name, result in results.items()
        if all(is_known(result.losses.get(seed)) for seed in track.seeds)
    }
    order = sorted(scored, key=lambda name: (_score(scored[name]), name))
    judge = _Judge.of(scored, track.alpha)
    ahead = {(a, b) for a, b in combinations(order, 2) if judge.difference(b, a).low > 0}
    board = []
    for name in order:
        better = tuple(other for other in order if (other, name) in ahead)
        behind = None if name == order[0] else judge.difference(name, order[0])
        board.append(Place(name, results[name], 1 + len(better), scored[name], behind, better))
    for name in sorted(results.keys() - scored.keys()):
        board.append(Place(name, results[name], None, Statistic.of([*results[name].losses.values()])))
    return board


@dataclass(frozen=True)
class _Judge:
    """Differences of scores with intervals that hold for all pairs together."""

    scored: Mapping[str, Statistic]
    alpha: float
    alike: frozenset[str]
    """Entries that have one spread."""
    error: float
    """The standard error of one of their scores."""
    freedom: int
    """Degrees of freedom of that."""

    @classmethod
    def of(cls, scored: Mapping[str, Statistic], alpha: float) -> _Judge:
        alike = dict(scored)
        while (name := _widest(alike, alpha)) is not None:
            del alike[name]
        sd, freedom = pooled_sd([*alike.values()]) or (0.0, 0)
        n = max((s.n for s in alike.values()), default=1)
        return cls(scored, alpha, frozenset(alike), sd / math.sqrt(n), freedom)

    @cached_property
    def margin(self) -> float:
        """Half the interval of a difference between two of them."""
        from scipy import stats

        return self.error * float(stats.studentized_range.ppf(1 - self.alpha, len(self.alike), self.freedom))

    def difference(self, a: str, b: str) -> Interval:
        """Score of a minus score of b; beyond doubt where the interval is on one side of zero."""
        from scipy import stats

        if not {a, b} <= self.alike:
            pairs = len(self.scored) - 1
            one = welch(self.scored[a], self.scored[b], confidence=1 - self.alpha / pairs)
            return replace(one, p=min(1.0, pairs * one.p))
        mean = _score(self.scored[a]) - _score(self.scored[b])
        if self.error == 0:
            return Interval(mean, mean, mean, 0.0 if mean else 1.0)
        p = float(stats.studentized_range.sf(abs(mean) / self.error, len(self.alike), self.freedom))
        return Interval(mean, mean - self.margin, mean + self.margin, p)


def _widest(scored: Mapping[str, Statistic], alpha: float) -> str | None:
    """The entry of the largest spread, if that is beyond what the others' leave to chance."""
    from scipy import stats

    variances = {name: s.sd**2 for name, s in scored.items() if s.sd is not None}
    if len(variances) < 3 or not any(variances.values()):
        return None
    name = max(variances, key=lambda entry: variances[entry])
    share, others, freedom = variances[name] / sum(variances.values()), len(variances) - 1, scored[name].n - 1
    if share == 1.0:
        return name
    ratio = others * share / (1 - share)
    p = len(variances) * float(stats.f.sf(ratio, freedom, others * freedom))
    return name if p < alpha else None


def _score(statistic: Statistic) -> float:
    assert statistic.mean is not None, "every seed has a loss"
    return statistic.mean
