"""What `lowrise eval` does: models one after the other, texts and tasks, one table of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.evaluation.conversation import Conversation
from lowrise.evaluation.harness import Tasks, show_tasks
from lowrise.evaluation.measure import Subject, check_subjects, measure, show
from lowrise.pretrained.load import load_model, template_folders
from lowrise.runs.chosen_weights import Weights


def evaluate_models(
    places: Sequence[Path],
    device: str,
    console: Console,
    *,
    source: Sequence[str] = (),
    trust: bool = False,
    seq_len: int = 0,
    tasks: Sequence[str] = (),
    task_path: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    weights: Weights = "raw",
) -> list[dict[str, Any]]:
    """Numbers of every model: `run`, `step`, those of `measure` where there is a text, and `tasks` where they
    were asked for. All that can be wrong with the request is said before the first model is loaded.
    """
    for flag, value in (("task_path", task_path), ("shots", shots), ("limit", limit), ("chat", chat or None)):
        if value is not None and not tasks:
            raise UsageError(f"--{flag} is of tasks, and none is named: add --tasks NAME, or leave it out.")
    expanded = [place.expanduser() for place in places]
    check_subjects(expanded, source=source, trust=trust, tasks=bool(tasks))
    templates = [template_folders(place, trust) if chat else [] for place in expanded]
    harness = Tasks(tasks, task_path and task_path.expanduser()) if tasks else None
    results = []
    for place, folders in zip(expanded, templates, strict=True):
        subject = Subject(place, load_model(place, device, console, weights=weights))
        result: dict[str, Any] = {"run": str(place), "step": subject.loaded.step}
        if source or subject.is_run:
            result |= measure(subject, console, source=source, seq_len=seq_len)
        if harness is not None:
            talk = Conversation.of(folders) if chat else None
            result["tasks"] = harness.measure(subject.loaded, chat=talk, shots=shots, limit=limit)
        results.append(result)
    return results


def show_all(results: Sequence[dict[str, Any]], console: Console) -> None:
    """The table of losses, then that of tasks."""
    measured = [result for result in results if "val_loss" in result]
    if measured:
        show(measured, console)
    if results and "tasks" in results[0]:
        show_tasks(results, console)
