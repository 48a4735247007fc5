"""The options of `lowrise generate`: what its help and its usage errors need, which is no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lowrise.runs.chosen_weights import Weights

Forms = Literal["auto", "stored", "merged", "measured"]
"""How a factored map is used: "stored" in its factors, "merged" as their product, "auto" whichever has fewer
elements, "measured" whichever was faster at the batch size."""


@dataclass(kw_only=True)
class GenerateConfig:
    """Continue texts with a run's newest checkpoint, or an exported model."""

    run: Positional[Path]
    """Folder of the run, or one that lowrise export wrote, a Hugging Face Llama's, or a GGUF file."""
    prompt: str = ""
    """Text to continue; empty: begin a document."""
    prompt_file: Path | None = None
    """File of prompts, continued several at a time: one a line, or .jsonl with strings or objects that have
    "prompt". The results are JSON lines in the same order."""
    batch: int = 8
    """Prompts of a file that are continued at a time."""
    interactive: bool = False
    """Continue every line that is typed, until the end of the input (Ctrl-D)."""
    tokens: int = 200
    """Most tokens to generate."""
    temperature: float = 0.8
    """Softmax temperature; 0: the likeliest token always."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens with this probability."""
    repetition_penalty: float = 1.0
    """Make tokens that are in the text already less likely; 1: off."""
    stop: tuple[str, ...] = ()
    """Texts that end a continuation and are not shown."""
    seed: int = 0
    """Seed of the sampling."""
    forms: Forms = "auto"
    """Factored maps as they are stored, merged, whichever has fewer elements (auto) or was faster
    (measured)."""
    explain: bool = False
    """Measure both forms of the maps, take the faster, and show the times."""
    weights: Weights = "raw"
    """raw: the last weights; ema: with the average that the recipe's [ema] kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
