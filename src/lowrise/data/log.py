"""The log of a preparation: CACHE/logs/FINGERPRINT.log, one line an event, added to by every start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lowrise.data.config import DataConfig
from lowrise.files import append_text


class File(Protocol):
    """What is needed of a source file (`corpora.SourceFile`)."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...


class PrepareLog:
    """Appends lines, each with the time."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.path = log_path(root, fingerprint)

    def say(self, text: str) -> None:
        """One line; line ends in the text become spaces."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        append_text(self.path, f"{time} {' '.join(text.splitlines())}\n")

    @contextmanager
    def opened(self, config: DataConfig, files: Sequence[File]) -> Iterator[PrepareLog]:
        """Begins with what is prepared and ends with how it ended."""
        self.path.parent.mkdir(exist_ok=True)
        self.say(f"process {os.getpid()} prepares {len(files)} files: {json.dumps(asdict(config))}")
        for file in files:
            self.say(f"source {file.name}: {file.size} bytes")
        try:
            yield self
        except BaseException as error:
            self.say(f"ended by {type(error).__name__}: {error}")
            raise
        self.say("finished")

    def part(self, number: int, splits: Mapping[str, Mapping[str, Any]]) -> None:
        """A part is written."""
        told = [
            f"{name} {entry['documents']} documents, {sum(entry['tokens_by_file'].values())} tokens, "
            f"{entry['text_bytes']} bytes of text"
            for name, entry in splits.items()
        ]
        self.say(f"part {number}: {'; '.join(told)}")


def log_path(root: Path, fingerprint: str) -> Path:
    """Where the log of a corpus lies."""
    return root / "logs" / f"{fingerprint[:32]}.log"
