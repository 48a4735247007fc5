"""Tasks of lm-eval (the extra `eval`) in this process, on any model that lowrise loads."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.evaluation.conversation import Conversation
from lowrise.evaluation.measure import short_names
from lowrise.evaluation.scoring import Scorer
from lowrise.runs.load import TrainedRun


def require_harness() -> None:
    """Say what to install where lm-eval is missing."""
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise LowriseError(
            f"--tasks needs the package lm-eval ({error}): pip install 'lowrise[eval]'."
        ) from error


class Tasks:
    """Tasks by their names, those in the files of a folder among them.

    Raises `UsageError` for a name that nothing has, `LowriseError` without lm-eval.
    """

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        require_harness()
        from lm_eval.tasks import TaskManager

        if folder is not None and not folder.is_dir():
            raise UsageError(f"--task_path {folder} is no folder: name one with the YAML files of tasks.")
        with _quiet():
            self._manager = TaskManager(include_path=None if folder is None else str(folder))
        self.names = list(names)
        unknown = [name for name in self.names if name not in self._manager.all_tasks]
        if unknown:
            raise UsageError(
                f"lm-eval has no task {unknown[0]!r}: `lm-eval ls tasks` lists them, and --task_path adds "
                "those of a folder of yours."
            )

    def measure(
        self,
        run: TrainedRun,
        *,
        chat: Conversation | None = None,
        shots: int | None = None,
        limit: int | None = None,
        batch_size: int = 16,
    ) -> dict[str, dict[str, Any]]:
        """Task (or group, or a task of one) -> metric -> value; `NAME_stderr` beside it where it is known.
        With `chat`, questions are turns of a user and examples are turns before them. Raises `LowriseError`
        with what lm-eval met, for example a data set that is not there offline.
        """
        from lm_eval import simple_evaluate

        marked = chat is not None and chat.template is not None
        model = _adapter(Scorer(run, batch_size, marked=marked), chat)
        try:
            with _quiet():
                answer = simple_evaluate(
                    model=model,
                    tasks=self.names,
                    task_manager=self._manager,
                    num_fewshot=shots,
                    limit=limit,
                    apply_chat_template=chat is not None,
                    fewshot_as_multiturn=chat is not None,
                    log_samples=False,
                    bootstrap_iters=1000,
                )
        except (LowriseError, KeyboardInterrupt):
            raise
        except Exception as error:  # of lm-eval, datasets, a task's own code
            raise LowriseError(
                f"lm-eval failed on {', '.join(self.names)} ({type(error).__name__}: {error}). Offline, a "
                "task needs its data set in the cache of the datasets library, or as local files."
            ) from error
        assert answer is not None
        return {name: _metrics(values) for name, values in answer["results"].items()}


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a task: `acc,none` becomes `acc`, another filter stays in the name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        found[name if filtered in ("", "none") else f"{name} ({filtered})"] = value
    found.pop("sample_len", None)
    return found


def _adapter(scorer: Scorer, chat: Conversation | None) -> Any:
    """The model in lm-eval's own terms."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        def loglikelihood(self, requests: Any) -> Any:
            return scorer.log_likelihoods([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Any) -> Any:
            return scorer.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Any) -> Any:
            if chat is None:
                return scorer.generated([request.args for request in requests])
            marks = scorer.tokenizer.special_tokens
            asked = [chat.asked(r.args[0], r.args[1], marks) for r in requests]
            return [chat.answer(text) for text in scorer.generated(asked)]

        # What lm-eval asks for where conversations are asked for; it does not call these otherwise.

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            assert chat is not None
            return chat.context(chat_history, answer_follows=add_generation_prompt)

        def chat_template(self, chat_template: Any = False) -> str:
            return chat.name if chat is not None else ""

        @property
        def tokenizer_name(self) -> str:
            return chat.name if chat is not None else ""

    return Adapter()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log, and without its bars where nobody watches them: they would stand between our
    lines. On a terminal they are the only sign of life in minutes.

    tqdm reads TQDM_DISABLE when it is first imported, which is long before; a call may say `disable=False`.
    """
    from lm_eval import evaluator
    from tqdm.std import tqdm

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    begin = tqdm.__init__

    def without_bar(self: Any, *words: Any, **options: Any) -> None:
        begin(self, *words, **options | {"disable": True})

    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with ExitStack() as patched:
            if not sys.stderr.isatty():
                patched.enter_context(_replaced(tqdm, "__init__", without_bar))
            # git says "fatal" on our stderr where the working folder is no repository.
            patched.enter_context(_replaced(evaluator, "get_git_commit_hash", lambda: None))
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value, where there is one of that name."""
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def show_tasks(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """All models in one table: a row for each task and metric and a column for each model, or, where these
    are wider than the screen, a row for each model too."""
    names = short_names([str(result["run"]) for result in results])
    rows = dict.fromkeys(
        (task, metric)
        for result in results
        for task, metrics in result["tasks"].items()
        for metric in metrics
        if _STDERR not in metric
    )
    cells = {row: [_cell(result["tasks"].get(row[0], {}), row[1]) for result in results] for row in rows}
    wide = _table("task", "metric", *names)
    for row, values in cells.items():
        wide.add_row(*row, *values)
    if console.measure(wide, options=console.options.update(max_width=10**6)).maximum <= console.width:
        console.print(wide)
        return
    long = _table("task", "metric", "model", "value")
    for (task, metric), values in cells.items():
        for name, value in zip(names, values, strict=True):
            long.add_row(task, metric, name, value)
    console.print(long)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold")
    for column in columns:
        text = column in ("task", "metric", "model")
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


_STDERR = "_stderr"
_LARGE = 1e6  # of a perplexity: digits after the point say nothing


def _cell(metrics: Mapping[str, Any], metric: str) -> str:
    if metric not in metrics:
        return ""
    name, space, filtered = metric.partition(" ")
    value, error = metrics[metric], metrics.get(f"{name}{_STDERR}{space}{filtered}")
    known = isinstance(error, float) and math.isfinite(error)
    text = f"{value:.4f}" if abs(value) < _LARGE else f"{value:.6g}"
    return text + (f" ± {error:.4f}" if known else "")
