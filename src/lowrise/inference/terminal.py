"""`lowrise generate`: continuations on a terminal, one by one as they are drawn, or a file of prompts.

Text goes to stdout, and nothing else; the rate and what `--explain` says go to stderr.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.table import Table

from lowrise.console import Console
from lowrise.errors import UsageError, printable
from lowrise.files import strict_json
from lowrise.inference.frozen import Choice
from lowrise.inference.options import Forms, GenerateConfig
from lowrise.inference.sampling import Sampling
from lowrise.inference.session import Load, Piece, TextModel, continue_texts, load_text_model
from lowrise.runs.load import load_run
from lowrise.signals import StopRequest, leave


def generate_on_terminal(
    command: GenerateConfig, console: Console, messages: Console, load: Load = load_run
) -> int:
    """Do what the command says with the model that `load` finds; texts to stdout, the rest to `messages`.
    Returns the exit code.
    """
    sampling = Sampling(
        temperature=command.temperature,
        top_k=command.top_k or None,
        top_p=command.top_p,
        repetition_penalty=command.repetition_penalty,
        seed=command.seed,
    )
    _check(command)
    prompts = None if command.prompt_file is None else read_prompts(command.prompt_file)
    forms: Forms = "measured" if command.explain and command.forms == "auto" else command.forms
    rows = 1 if prompts is None else min(command.batch, len(prompts))
    model = load_text_model(command.run, command.device, console, forms=forms, rows=rows, load=load)
    if model.choice:
        messages.print(model.choice, highlight=False)
    if command.explain:
        messages.print(explanation(model.decoder.choices, rows, model.decoder.native))
    if prompts is not None:
        _continue_all(model, prompts, command, sampling, messages)
    elif command.interactive:
        _converse(model, command, sampling, messages)
    else:
        _continue_one(model, command.prompt, command, sampling, messages)
    return 0


def _check(command: GenerateConfig) -> None:
    if command.batch < 1:
        raise UsageError(f"--batch {command.batch}: at least one prompt is continued at a time.")
    if command.tokens < 1:
        raise UsageError(f"--tokens {command.tokens}: at least one token is generated.")
    given = {
        "--prompt": bool(command.prompt),
        "--prompt_file": command.prompt_file is not None,
        "--interactive": command.interactive,
    }
    chosen = [flag for flag, is_given in given.items() if is_given]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other: each says where the prompts come from.")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file (see `GenerateConfig.prompt_file`); `UsageError` naming file and line."""
    try:
        # Lines end where editors end them: a form feed or U+2028 within a prompt is text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}: give a file of prompts, one a line.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): give a UTF-8 text of prompts, one a line."
        ) from error
    if path.suffix == ".jsonl":
        prompts = [_prompt_of(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        prompts = [line for line in lines if line]
    if not prompts:
        raise UsageError(f"{path} has no prompt: write one a line.")
    return prompts


def _prompt_of(path: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number} is not JSON ({error}).") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UsageError(f'{path}, line {number}: should be a string, or an object with a string "prompt".')
    return prompt


def explanation(choices: Sequence[Choice], rows: int, native: bool) -> Table:
    """The forms of the maps as a table, a row for every kind of group."""
    title = f"maps of one step at {rows} sequence{'s' if rows > 1 else ''}, " + (
        "a step being one call of C++" if native else "by operations of torch"
    )
    columns = ("maps", "layers", "elements stored", "merged", "us stored", "merged", "used")
    table = Table(*columns, title=title, title_justify="left", box=None, header_style="bold")
    for c in choices:
        times = ["-" if t is None else f"{t:.1f}" for t in (c.stored_us, c.merged_us)]
        elements = (f"{c.stored_elements:,}", f"{c.merged_elements:,}")
        table.add_row(c.maps, str(c.layers), *elements, *times, c.used)
    return table


class Rate:
    """Tokens a second, from the first token on: reading the prompt is no decoding."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self._last: dict[int, int] = {}

    def count(self, piece: Piece) -> None:
        self._last[piece.row] = piece.tokens
        if self._first is None:
            self._first = (time.perf_counter(), piece.tokens)

    def __str__(self) -> str:
        now, tokens = time.perf_counter(), sum(self._last.values())
        first, before = self._first or (now, 0)
        text = f"{tokens} tokens, the first after {first - self._started:.2f} s"
        if tokens > before and now > first:
            text += f", then {(tokens - before) / (now - first):.1f} tokens per second"
        return text


def _pieces(
    model: TextModel, prompts: Sequence[str], command: GenerateConfig, sampling: Sampling
) -> Iterator[Piece]:
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    return continue_texts(model, ids, max_new_tokens=command.tokens, sampling=sampling, stop=command.stop)


def _continue_one(
    model: TextModel,
    prompt: str,
    command: GenerateConfig,
    sampling: Sampling,
    messages: Console,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Continue one text, up to where `stop` says so."""
    pieces = _pieces(
        model, [prompt], command, sampling
    )  # a wrong request ends here, before anything is shown
    shown = printable if sys.stdout.isatty() else str  # a file gets the text as it is
    rate = Rate()
    _write(shown(prompt))
    for piece in pieces:
        rate.count(piece)
        _write(shown(piece.text))
        if stop():
            break
    _write("\n")
    messages.print(f"{rate}.", style="dim", highlight=False)


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _converse(model: TextModel, command: GenerateConfig, sampling: Sampling, messages: Console) -> None:
    """Continue line after line. Ctrl-C ends a continuation; while nothing is generated, the command."""
    if sys.stdin.isatty():
        messages.print("Type a line to continue; Ctrl-C stops a text, Ctrl-D ends.", style="dim")
    while True:
        if sys.stdin.isatty():
            messages.print("> ", end="", style="bold", highlight=False)
        line = sys.stdin.readline()
        if not line:
            return
        with StopRequest() as stop:
            try:
                prompt = line.rstrip("\r\n")
                _continue_one(model, prompt, command, sampling, messages, stop=stop.__bool__)
            except UsageError as error:  # a line that is too long is no reason to end
                messages.print(printable(str(error)), style="red", soft_wrap=True)
        if stop.signal is not None and stop.signal != signal.SIGINT:
            leave(stop.signal)


def _continue_all(
    model: TextModel, prompts: Sequence[str], command: GenerateConfig, sampling: Sampling, messages: Console
) -> None:
    started, total = time.perf_counter(), 0
    for begin in range(0, len(prompts), command.batch):
        part = prompts[begin : begin + command.batch]
        texts, last = ["" for _ in part], dict[int, Piece]()
        for piece in _pieces(model, part, command, sampling):
            texts[piece.row] += piece.text
            last[piece.row] = piece
        for row, (prompt, text) in enumerate(zip(part, texts, strict=True)):
            record = {"prompt": prompt, "text": text, "tokens": last[row].tokens, "finish": last[row].finish}
            _write(strict_json(record) + "\n")
            total += last[row].tokens
    rate = total / (time.perf_counter() - started)
    messages.print(
        f"{len(prompts)} prompts, {total} tokens, {rate:.1f} tokens per second.", style="dim", highlight=False
    )
