"""The flags of `lowrise serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lowrise.inference.options import Forms
from lowrise.runs.chosen_weights import Weights


@dataclass(kw_only=True)
class ServeConfig:
    """Answer requests in the OpenAI format with a run's newest checkpoint, or an exported model."""

    run: Positional[Path]
    """Folder of the run, or one that lowrise export wrote, a Hugging Face Llama's, or a GGUF file."""
    host: str = "127.0.0.1"
    """Address to listen on; the default reaches this machine alone."""
    port: int = 8000
    """Port; 0: any that is free."""
    name: str = ""
    """Name of the model; empty: the folder's."""
    max_tokens: int = 1024
    """Most new tokens that a request may ask for."""
    max_rows: int = 16
    """Most texts (prompts times n) of a request."""
    max_body: int = 1_000_000
    """Longest body of a request in bytes."""
    concurrency: int = 1
    """Requests that are answered at a time; more share the processor."""
    queue: int = 16
    """Requests that may wait; more are told to come again."""
    grace: int = 10
    """Seconds that running requests get to finish after a stop signal."""
    trust: bool = False
    """Read the tokenizer folder that a run of somebody else's names in its config.toml: it may hold a chat
    template."""
    forms: Forms = "auto"
    """Factored maps as they are stored, merged, whichever has fewer elements (auto) or was faster
    (measured)."""
    weights: Weights = "raw"
    """raw: the last weights; ema: with the average that the recipe's [ema] kept."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
