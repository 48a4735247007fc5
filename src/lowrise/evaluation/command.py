"""What `lowrise eval` does: models one after the other, texts and tasks, one table of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrise.console import Console
from lowrise.evaluation.conversation import Conversation
from lowrise.evaluation.harness import Tasks, show_tasks
from lowrise.evaluation.measure import Subject, check_subjects, measure, show
from lowrise.evaluation.options import EvalOptions
from lowrise.pretrained.load import load_model, template_folders


def evaluate_models(options: EvalOptions, console: Console) -> list[dict[str, Any]]:
    """Numbers of every model: `run`, `step`, those of `measure` where there is a text, and `tasks` where they
    were asked for. All that can be wrong with the request is said before the first model is loaded.
    """
    places = [place.expanduser() for place in options.runs]
    source, tasks, task_path = options.data.source, options.tasks, options.task_path
    check_subjects(places, source=source, trust=options.trust, tasks=bool(tasks))
    templates = [template_folders(place, options.trust) if options.chat else [] for place in places]
    harness = Tasks(tasks, task_path and task_path.expanduser()) if tasks else None
    results = []
    for place, folders in zip(places, templates, strict=True):
        loaded = load_model(place, options.device, console, weights=options.weights, look=True)
        subject = Subject(place, loaded)
        result: dict[str, Any] = {"run": str(place), "step": subject.loaded.step}
        if source or subject.is_run:
            result |= measure(subject, console, source=source, seq_len=options.seq_len)
        if harness is not None:
            talk = Conversation.of(folders) if options.chat else None
            result["tasks"] = harness.measure(
                subject.loaded, chat=talk, shots=options.shots, limit=options.limit
            )
        results.append(result)
    return results


def show_all(results: Sequence[dict[str, Any]], console: Console) -> None:
    """The table of losses, then that of tasks."""
    measured = [result for result in results if "val_loss" in result]
    if measured:
        show(measured, console)
    if results and "tasks" in results[0]:
        show_tasks(results, console)
