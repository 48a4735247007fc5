"""Results of entries on disk, and what keeps one from counting."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

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
