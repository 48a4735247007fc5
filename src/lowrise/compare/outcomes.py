"""How a run ended, read from its directory: completed, diverged or failed."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from lowrise.compare.workers import Ended
from lowrise.files import is_known
from lowrise.runs.history import judged, last_metrics, read_summary

Key = TypeVar("Key")


@dataclass(frozen=True)
class RunSpec(Generic[Key]):
    """One run made concrete: the name of its directory, and the settings that make it from its recipe. `key`
    is what those who asked for it know it by.
    """

    key: Key
    name: str
    recipe_path: str
    overrides: dict[str, Any]
    config_hash: str
    steps: int
    flops: float


@dataclass(frozen=True)
class Outcome:
    """How one run ended. `completed` has a finite validation loss; `diverged` ran and has none;
    `failed` tells nothing.
    """

    status: Literal["completed", "diverged", "failed"]
    val_loss: float | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def read_earlier(spec: RunSpec[Any], directory: Path) -> Outcome | None:
    """The outcome that an earlier start left, or None if the run must be started or continued.

    A diverged run is not repeated: it would give the same bits again. A failed one is tried once more.
    """
    summary = read_summary(directory)
    if not summary or summary.get("status") not in ("completed", "failed"):
        return None
    outcome = _judge(spec, directory, summary)
    return None if outcome.status == "failed" else outcome


def read_outcome(spec: RunSpec[Any], directory: Path, ended: Ended) -> Outcome:
    """How a run ended that was started here, from its summary, its exit status and the end of its stderr."""
    summary = read_summary(directory) or {}
    if summary.get("status") == "completed" and ended.returncode == 0:
        return _judge(spec, directory, summary)
    if summary.get("status") == "failed" and ended.returncode > 0:
        outcome = _judge(spec, directory, summary)
        tail = f"\n{ended.stderr_tail}" if ended.stderr_tail else ""
        return Outcome(outcome.status, None, outcome.summary, outcome.error + tail)
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        reason = f"The worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif ended.returncode == 0:
        reason = f"The worker exited without a completed summary.json (status {summary.get('status')!r})"
    else:
        reason = f"The worker exited with status {ended.returncode}"
    return Outcome("failed", None, summary, f"{reason}.\n{ended.stderr_tail}".strip())


def _judge(spec: RunSpec[Any], directory: Path, summary: dict[str, Any]) -> Outcome:
    """Completed, diverged or failed, from a final summary alone."""
    summary = judged(summary)
    error = str(summary.get("error") or "")
    recorded, planned = str(summary.get("config_hash") or ""), spec.config_hash
    if recorded and not (planned.startswith(recorded) or recorded.startswith(planned)):
        reason = (
            f"It ran configuration {recorded}, not {planned}: the recipe was changed meanwhile. Start again."
        )
        return Outcome("failed", None, summary, reason)
    if summary.get("status") == "completed":
        loss = summary.get("val_loss")
        if is_known(loss):
            return Outcome("completed", float(loss), summary)
        return Outcome("diverged", None, summary, f"The validation loss is {loss}.")
    last_loss = last_metrics(directory / "metrics.jsonl").get("loss")
    not_finite = isinstance(last_loss, float) and not is_known(last_loss)
    if not_finite or any(word in error.lower() for word in ("non-finite", "not finite", "diverged")):
        return Outcome("diverged", None, summary, error)
    return Outcome("failed", None, summary, error or "The run failed and recorded no reason.")
