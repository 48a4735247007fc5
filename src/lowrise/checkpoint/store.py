"""A folder of checkpoints.

`step-00001000/` holds one safetensors file a part (model, optimizer, random) and `checkpoint.json` with the
trainer's numbers and the SHA-256 of every file. It is written under another name, flushed to the disk and
renamed, so a folder of that name is complete. Loading reads tensors and JSON: nothing is executed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrise.errors import LowriseError
from lowrise.files import flush

FORMAT = 1
MANIFEST = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: `parts[part][name]` tensors on the CPU and the trainer's numbers."""

    path: Path
    step: int
    parts: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


class DamagedCheckpoint(LowriseError):
    """A checkpoint whose files are not what its manifest says."""


class CheckpointStore:
    """Save, find and retire checkpoints below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.root.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, Any]) -> Path:
        """Write one checkpoint; on any failure the folder is as before, and a full disk gets a sentence."""
        self.root.mkdir(parents=True, exist_ok=True)
        target, aside = self.path(step), self.root / f".writing-{step:08d}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            files = {}
            for part, tensors in parts.items():
                file = aside / f"{part}.safetensors"
                save_file({name: t.detach().contiguous() for name, t in tensors.items()}, file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                flush(file)
            manifest = {"format": FORMAT, "step": step, "files": files, "numbers": dict(numbers)}
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            flush(aside / MANIFEST)
            flush(aside)
            if target.exists():  # written before a restart that fell back to an older one
                retired = self.root / f".retired-{step:08d}"
                shutil.rmtree(retired, ignore_errors=True)
                target.rename(retired)
                aside.rename(target)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                aside.rename(target)
            flush(self.root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise LowriseError(
                    f"No space left to write the checkpoint of step {step} in {self.root}: free some space "
                    f"and start again; the run continues from step {max(self.steps(), default=0)}."
                ) from error
            raise
        return target

    def load(self, step: int) -> Checkpoint:
        """Read and verify one checkpoint; raises `DamagedCheckpoint` with the file and the reason."""
        path = self.path(step)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            files, numbers = manifest["files"], manifest["numbers"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{path / MANIFEST} cannot be read ({error}).") from error
        if manifest.get("format") != FORMAT:
            raise LowriseError(
                f"{path} has checkpoint format {manifest.get('format')}; this version reads {FORMAT}: "
                "use the version of lowrise that wrote it."
            )
        parts = {}
        for name, expected in files.items():
            file = path / name
            if not file.is_file():
                raise DamagedCheckpoint(f"{file} is missing.")
            if file.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes, not {expected['bytes']}.")
            if _sha256(file) != expected["sha256"]:
                raise DamagedCheckpoint(
                    f"{file} does not have the SHA-256 that was recorded when it was written."
                )
            parts[file.stem] = load_file(file)
        return Checkpoint(path, step, parts, numbers)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint. Damaged ones are set aside as `step-N.damaged` and named through
        `warn`."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except DamagedCheckpoint as error:
                path = self.path(step)
                aside = path.with_name(path.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                warn(
                    f"The checkpoint of step {step} is damaged: {error} It is kept as {aside.name}; "
                    "the one before it is used."
                )
        return None

    def retire(self, keep: int, keep_every: int = 0) -> None:
        """Delete all but the newest `keep` checkpoints and those whose step is a multiple of `keep_every`."""
        for step in self.steps()[:-keep]:
            if not (keep_every and step % keep_every == 0):
                # Renamed first: a kill in the middle of deleting must not leave a half-deleted checkpoint.
                retired = self.root / f".retired-{step:08d}"
                shutil.rmtree(retired, ignore_errors=True)
                self.path(step).rename(retired)
                shutil.rmtree(retired, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
