"""The flags of `lowrise import` and `lowrise factorize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(kw_only=True)
class ImportOptions:
    """Make a run out of a Hugging Face folder: a Llama, dense or as an export in factored form writes it."""

    folder: Positional[Path]
    """Folder with config.json, safetensors and tokenizer.json."""
    run: Path
    """Folder of the run to write."""
    source: tuple[str, ...] = ("builtin",)
    """Text that lowrise eval measures it on, as data.source."""
    force: bool = False
    """Replace an earlier import in the same place."""


@dataclass(kw_only=True)
class FactorizeOptions:
    """Split the maps of a dense Hugging Face folder into two factors each."""

    folder: Positional[Path]
    """Folder of a dense Llama."""
    out: Path
    """Folder to write, in factored form."""
    rank: int | float | None = None
    """Rank of every map (1 or more), or the fraction of min(rows, columns) (up to 1.0)."""
    energy: float | None = None
    """Instead of a rank: the fraction of the squared singular values that every map keeps."""
    spread: Literal["alike", "energy"] = "alike"
    """alike: the rank as given. energy: as many parameters, shared out where they keep most."""
    calibrate: tuple[str, ...] = ()
    """Text, as data.source: the output's error on it is made small, not the weight's."""
    measure: tuple[str, ...] = ("builtin",)
    """Text, as data.source, whose held-out part is measured; with --calibrate, that text's."""
    tokens: int = 65536
    """Tokens to calibrate on, and to measure on, at most."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How the weights are stored."""
    force: bool = False
    """Replace an earlier folder in the same place."""
