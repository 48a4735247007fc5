"""The text that a run ends with."""

from __future__ import annotations

import torch

from lowrise.config import RunConfig
from lowrise.data import Tokenizer
from lowrise.dist.fully_sharded import gathered_root
from lowrise.export.generate import generate
from lowrise.model import Llama
from lowrise.train.evaluation import autocast_for


def sample_of(model: Llama, config: RunConfig, tokenizer: Tokenizer, device: torch.device) -> str | None:
    """The text that `config.sample` asks for; None where it asks for no tokens."""
    settings = config.sample
    if not settings.tokens:
        return None
    prompt = [tokenizer.separator_id, *(tokenizer.encode(settings.prompt) if settings.prompt else [])]
    with autocast_for(config, device), gathered_root(model):
        new = generate(
            model,
            prompt,
            max_new_tokens=settings.tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=config.seed,
            stop_token=tokenizer.separator_id,
        )
        return (settings.prompt or "") + tokenizer.decode(new)
