"""The files of a run. Text files are appended line by line or replaced whole, so that no kill leaves half a
file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from lowrise.checkpoint import Checkpoint, CheckpointStore
from lowrise.config import RunConfig, load, resolved
from lowrise.config.identity import Kind, differences, told
from lowrise.config.places import named_code
from lowrise.errors import LowriseError, UsageError
from lowrise.files import append_text, exclusive, read_json, remove_left_behind, strict_json, write_whole
from lowrise.runs.trust import require_known_code, seal


class RunDirectory:
    """Paths and writers below one folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.toml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.superseded = self.path / "metrics.superseded.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.tokenizer = self.path / "tokenizer.json"
        self.tensorboard = self.path / "tensorboard"
        self.sample = self.path / "sample.txt"
        self.services = self.path / "services.json"
        self.checkpoints = CheckpointStore(self.path / "checkpoints")

    def begin(self, config: RunConfig) -> RunConfig | None:
        """Make the folder, or check that what it holds has this configuration's mathematics; the
        configuration of the last start, if checkpoints are left of it. Nothing is written."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._own_files()
        if not self.checkpoints.steps():
            self._require_no_others()
            return None
        if not self.config.exists():
            return None
        require_known_code(self.path, named_code(config.to_dict()))
        before = load(self.config)
        changed = differences(before.to_dict(), config.to_dict(), Kind.MATHEMATICS)
        if changed:
            raise UsageError(
                f"{self.path} holds checkpoints of another recipe ({told(changed)}): "
                "continue it with its own recipe, or give another folder with --run."
            )
        return before

    def write_start(self, config: RunConfig, facts: dict[str, Any], start: dict[str, Any]) -> None:
        """Write down that the run goes on with this configuration, whose places become absolute:
        `config.toml`, and `environment.json` with the facts of this start and a line for every start so
        far."""
        try:
            history = json.loads(self.environment.read_text(encoding="utf-8"))["history"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            history = []  # none yet, or damaged: it is only told
        history = [*history, start] if isinstance(history, list) else [start]
        self.write_settings(config, facts | {"history": history})

    def write_settings(self, config: RunConfig, facts: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write `config.toml`, whose places become absolute, and `environment.json`: the facts, and the seal
        that these places are this user's.
        """
        config = resolved(config)
        write_whole(self.config, config.to_toml())
        self.write_json(self.environment, {**facts, "seal": seal(config)})

    def _own_files(self) -> None:
        """Refuse folders and links where a run writes files; nothing is written through a link."""
        for file in (
            self.config,
            self.environment,
            self.metrics,
            self.superseded,
            self.summary,
            self.report,
            self.tokenizer,
            self.path / "chat_template.jinja",
            self.path / "tokenizer_config.json",
            self.sample,
            self.services,
        ):
            if file.is_dir():
                raise UsageError(f"{file} is a folder, and the run writes a file there: move it away.")
            if file.is_symlink():
                raise UsageError(
                    f"{file} is a symbolic link, and a run writes no other file: remove the link."
                )
        for folder in (self.tensorboard, self.checkpoints.root):
            if folder.is_symlink():
                raise UsageError(
                    f"{folder} is a symbolic link, through which a run does not write: link the whole run "
                    "folder to another disk instead, or mount that disk there."
                )
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is not a folder: move it away.")

    def _require_no_others(self) -> None:
        """Refuse a folder without checkpoints whose files of our names another program wrote: they would be
        replaced. Of a run that was killed, `config.toml` is the first file; of one that could not write that,
        the summary of its failure."""
        if self.config.exists():
            try:
                values = tomllib.loads(self.config.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                values = {}
            if isinstance(values.get("method"), str) and isinstance(values.get("train"), dict):
                return
        elif self._has_own_summary():
            return
        files = (self.config, self.environment, self.metrics, self.summary, self.report, self.tokenizer)
        other = next((file for file in (*files, self.sample) if file.exists()), None)
        if other is not None:
            raise UsageError(
                f"{other} is there, which no run wrote (there is no run's config.toml), and a run would "
                "replace it: give a folder of its own with --run."
            )

    def _has_own_summary(self) -> bool:
        try:
            summary = read_json(self.summary)
        except (OSError, ValueError):
            return False
        return isinstance(summary, dict) and {"status", "config_hash"} <= summary.keys()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process. A folder that was not there before is not there after a request
        that cannot be right either, unless something was written."""

        def refuse(lock: IO[str]) -> None:
            raise UsageError(
                f"Another process is training in {self.path}: wait for it, or give another folder with --run."
            )

        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with exclusive(lock, refuse):
            remove_left_behind(self.path)
            try:
                yield
            except UsageError:
                if is_new and list(self.path.iterdir()) == [lock]:
                    lock.unlink()  # still held: whoever waits for it is refused
                    self.path.rmdir()
                raise

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line."""
        append_text(self.metrics, strict_json(record) + "\n")

    def rewind_metrics(self, step: int, *, evaluated: bool = True) -> None:
        """Move the lines after `step` to `metrics.superseded.jsonl`: the run will write them again. With
        `evaluated` False the evaluation at `step` too.
        """
        if not self.metrics.exists():
            return
        kept: list[str] = []
        moved: list[str] = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                again = "val_loss" in record and not evaluated
                keep = record["step"] < step if again else record["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):
                keep = False  # a line that a kill cut short
            (kept if keep else moved).append(line)
        if moved:
            append_text(self.superseded, "".join(line + "\n" for line in moved))
            write_whole(self.metrics, "".join(line + "\n" for line in kept))

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        write_whole(path, strict_json(values, indent=2) + "\n")


def open_run(path: str | Path) -> RunDirectory:
    """A run that was trained before, whose configuration may be loaded: it names no code of somebody else's.
    A sentence if the folder is not one."""
    run = RunDirectory(Path(path).expanduser())
    if run.path.is_file():
        raise UsageError(f"{run.path} is a file: name the folder of the run, which is the DIR of --run.")
    if not run.config.is_file():
        raise UsageError(
            f"{run.path} is not a run directory: it has no config.toml. Train one with lowrise train --run."
        )
    require_known_code(run.path)
    return run


def require_recipe(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse a checkpoint that another recipe or seed wrote, or none of our runs."""
    require_numbers(checkpoint, "mathematics", "corpus", "step", "tokens")
    recipe = checkpoint.numbers["mathematics"]
    if recipe != config.mathematics:
        raise UsageError(
            f"{checkpoint.path} was written by a run of another recipe or seed ({recipe}, this run's is "
            f"{config.mathematics}): it was copied here. Remove it, or start from it with init.run."
        )


def require_numbers(checkpoint: Checkpoint, *keys: str) -> None:
    """Refuse a checkpoint without what every one of our runs tells in it."""
    missing = [key for key in keys if key not in checkpoint.numbers]
    if missing:
        raise LowriseError(
            f"{checkpoint.path} has no {missing[0]}: lowrise train did not write it. Remove it."
        )
