"""The options of `lowrise eval`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from lowrise.errors import UsageError
from lowrise.runs.chosen_weights import Weights


@dataclass(kw_only=True)
class OtherText:
    """Text to evaluate on instead of the run's held-out text."""

    source: tuple[str, ...] = ()
    """Files, directories, globs, "hf:NAME...": all of it, with the model's tokenizer."""


@dataclass(kw_only=True)
class EvalOptions:
    """Exact validation loss, perplexity and bits per byte of the newest checkpoints of runs and of exported
    or imported models; tasks of lm-eval too."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or models in another form: what lowrise export wrote, a Hugging Face Llama, a GGUF
    file. Several are shown in one table."""
    data: OtherText = field(default_factory=OtherText)
    seq_len: int = 0
    """Tokens a window; 0: each as it was trained, another form 128."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval to measure too (the extra eval)."""
    task_path: Path | None = None
    """Folder with tasks of your own, in lm-eval's YAML."""
    shots: int | None = None
    """Examples before each question; none: as the task says."""
    limit: int | None = None
    """Questions of each task; none: all."""
    chat: bool = False
    """Ask the questions of tasks as turns of a conversation: by the model's chat template, or in the plain
    form."""
    trust: bool = False
    """Read the files that a run of somebody else's names in its config.toml."""
    weights: Weights = "raw"
    """raw: the last weights; ema: with the average that the recipe's [ema] kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print a JSON object for every run, one a line."""

    def check(self) -> None:
        """`UsageError` for what cannot be."""
        if not self.runs:
            raise UsageError("lowrise eval needs a run: give the folder of one, or of several.")
        numbers = (("seq_len", self.seq_len, 0), ("limit", self.limit, 1), ("shots", self.shots, 0))
        for flag, value, least in numbers:
            if value is not None and value < least:
                raise UsageError(f"--{flag} {value}: give at least {least}, or leave it out.")
        of_tasks = {"task_path": self.task_path, "shots": self.shots, "limit": self.limit}
        for flag, given in (*of_tasks.items(), ("chat", self.chat or None)):
            if given is not None and not self.tasks:
                raise UsageError(
                    f"--{flag} is of tasks, and none is named: add --tasks NAME, or leave it out."
                )
