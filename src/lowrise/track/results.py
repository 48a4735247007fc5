"""Results of entries on disk, and the rule by which they are placed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lowrise.compare.statistics import Interval, Statistic, holm, welch
from lowrise.errors import LowriseError
from lowrise.files import is_known, read_json, strict_json, write_whole
from lowrise.track.track import Entry, Track


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the runs of one entry gave. `losses`: seed -> validation loss, None where the run diverged."""

    identity: str
    losses: dict[int, float | None]
    bits_per_byte: dict[int, float | None]
    val_tokens: int
    steps: int
    tokens: int
    params: int
    inference_bytes: int
    train_flops: float
    seconds: float
    """Median of the runs' training time, on the machine of `environment`."""
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A line of the leaderboard. `place`: 1 + the number of entries that are better beyond doubt; None where
    a seed diverged. `behind`: this entry's mean loss minus the leader's.
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
        "and the p value of Welch's test on their losses, corrected by Holm's rule for all pairs of entries, "
        f"is below {track.alpha:g}. An entry's place is one more than the number of entries that are better "
        "beyond doubt; so several may share one. A seed that diverges leaves an entry without a place. "
        "Learning rates and other settings are chosen by the entrant with other seeds or less text; the "
        "validation text is for the score alone."
    )


def write_result(track: Track, name: str, result: Result) -> None:
    track.result_path(name).parent.mkdir(exist_ok=True)
    write_whole(track.result_path(name), strict_json(asdict(result), indent=1) + "\n")


def read_result(track: Track, name: str) -> Result | None:
    """None where there is none. Raises `LowriseError` for a file that is not what `track run` writes."""
    path = track.result_path(name)
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        for key in ("losses", "bits_per_byte"):
            values[key] = {int(seed): value for seed, value in values[key].items()}
        result = Result(**values)
        numbers = [*result.losses.values(), *result.bits_per_byte.values()]
        if not all(value is None or is_known(value) for value in numbers):
            raise ValueError("a loss that is no number")
    except (KeyError, TypeError, ValueError, AttributeError, json.JSONDecodeError) as error:
        raise LowriseError(f"{path} is damaged ({error}): run the entry again.") from error
    return result


def faults_of(track: Track, entry: Entry, result: Result) -> list[str]:
    """Why a result does not count, in words; empty where it does."""
    faults = []
    if result.identity != entry.identity:
        faults.append("the result is of another recipe, other code or other rules: run the entry again")
    missing = [seed for seed in track.seeds if seed not in result.losses]
    if missing:
        faults.append(f"the seed(s) {', '.join(map(str, missing))} were not run")
    if result.inference_bytes > track.inference_bytes:
        faults.append(f"{result.inference_bytes:,} bytes of weights are more than {track.inference_bytes:,}")
    if result.train_flops > track.train_flops:
        faults.append(f"{result.train_flops:.4g} FLOPs are more than {track.train_flops:.4g}")
    return faults


def places(track: Track, results: Mapping[str, Result]) -> list[Place]:
    """The leaderboard by the rule of `rule_in_words`, the best first, entries without a score last."""
    scored = {
        name: Statistic.of([result.losses[seed] for seed in track.seeds])
        for name, result in results.items()
        if all(is_known(result.losses.get(seed)) for seed in track.seeds)
    }
    order = sorted(scored, key=lambda name: (_score(scored[name]), name))
    ahead = _ahead(order, scored, track.alpha)
    leader = order[0] if order else None
    board = []
    for name in order:
        better = tuple(other for other in order if (other, name) in ahead)
        behind = None if leader is None or name == leader else welch(scored[name], scored[leader])
        board.append(Place(name, results[name], 1 + len(better), scored[name], behind, better))
    for name in sorted(results.keys() - scored.keys()):
        board.append(Place(name, results[name], None, Statistic.of([*results[name].losses.values()])))
    return board


def _score(statistic: Statistic) -> float:
    assert statistic.mean is not None, "every seed has a loss"
    return statistic.mean


def _ahead(order: Sequence[str], scored: Mapping[str, Statistic], alpha: float) -> set[tuple[str, str]]:
    """Pairs (better, worse) beyond doubt."""
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    p_values = holm([welch(scored[b], scored[a]).p for a, b in pairs])
    return {pair for pair, p in zip(pairs, p_values, strict=True) if p is not None and p < alpha}
