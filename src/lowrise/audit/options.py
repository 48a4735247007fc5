"""The options of `lowrise inspect`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lowrise.errors import UsageError
from lowrise.files import require_file_place


@dataclass(kw_only=True)
class InspectOptions:
    """Audit the matrices of a run, an export or a Hugging Face folder: what they make of their rank."""

    folder: Positional[Path]
    """Folder of a run, of an export (hf dense or factored, safetensors), or of a Hugging Face model."""
    step: int | None = None
    """Checkpoint of a run; none: the newest."""
    energy: float = 0.99
    """Fraction of the squared singular values that a rank is to keep."""
    out: Path | None = None
    """Write a page with the spectra too, as HTML."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def check(self) -> None:
        """`UsageError` for what cannot be."""
        if not 0 < self.energy <= 1:
            raise UsageError(f"lowrise inspect --energy {self.energy:g}: a fraction above 0, at most 1.")
        if self.step is not None and self.step < 0:
            raise UsageError(f"lowrise inspect --step {self.step}: give the step of a checkpoint, 0 or more.")
        if self.out is not None:
            require_file_place(self.out, "lowrise inspect --out", "HTML")
