"""Text generation, token by token, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrise.config import RunConfig
from lowrise.console import Console
from lowrise.data import Tokenizer
from lowrise.distributed.fsdp import gathered_root
from lowrise.errors import UsageError
from lowrise.model.cache import KVCache
from lowrise.model.llama import Llama
from lowrise.runs.environment import autocast_for
from lowrise.runs.load import load_run


def generate(
    model: Llama,
    tokens: Sequence[int] | Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Continue one prompt; yields token ids as they are drawn, up to `max_new_tokens`, and ends before
    `stop_token`.

    `temperature` 0 always takes the most likely token. `top_k` keeps the k most likely tokens, then `top_p`
    the fewest of them that hold this much probability. Draws come from a CPU generator with `seed`, so the
    same logits give the same text on every device. Raises `UsageError` at the call, not at the first token,
    for an empty prompt, one that leaves no room within `model.config.max_seq_len`, and for settings out of
    range.
    """
    prompt = torch.as_tensor(tokens, dtype=torch.int64).reshape(1, -1)
    _check(model, prompt, max_new_tokens, temperature, top_k, top_p, seed)
    return _stream(model, prompt, max_new_tokens, temperature, top_k, top_p, seed, stop_token)


def _check(
    model: Llama,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> None:
    vocab, longest = model.config.vocab_size, model.config.max_seq_len
    if prompt.numel() == 0:
        raise UsageError("The prompt is empty; generation needs at least one token to continue.")
    if int(prompt.min()) < 0 or int(prompt.max()) >= vocab:
        raise UsageError(
            f"The prompt has token {int(prompt.max())}, but the model knows 0 to {vocab - 1}; "
            f"is this the tokenizer that the model was trained with?"
        )
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if prompt.numel() + max_new_tokens > longest:
        raise UsageError(
            f"A prompt of {prompt.numel()} tokens and {max_new_tokens} new ones are longer than "
            f"model.max_seq_len {longest}; shorten the prompt or ask for fewer tokens."
        )
    if not temperature >= 0:
        raise UsageError(f"The temperature must be 0 (most likely token) or above, not {temperature!r}.")
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"The seed must have 64 bits, not {seed}.")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, not {top_p!r}.")


def _stream(
    model: Llama,
    prompt: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop_token: int | None,
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(prompt.numel() + max_new_tokens)
    step = prompt
    for _ in range(max_new_tokens):
        token = pick(_last_logits(model, step, cache), temperature, top_k, top_p, generator)
        if token == stop_token:
            return
        yield token
        step = torch.tensor([[token]])


@torch.no_grad()  # on the step and not around the loop: a generator would leave it on for its caller
def _last_logits(model: Llama, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (vocab,) after the last token, float32 on the CPU; only that position meets the head."""
    hidden = model.hidden(tokens.to(model.lm_head.weight.device), cache=cache)
    return model.lm_head(hidden[0, -1]).float().cpu()


def pick(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    """A token id from logits (vocab,): the most likely at temperature 0, else a draw."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits / temperature
    if not scaled.isfinite().all():  # a temperature so small that the quotient overflows
        scaled = (logits.double() - logits.max()) / temperature
    ordered, ids = scaled.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    if top_k is not None:
        probabilities[top_k:] = 0
        probabilities /= probabilities.sum()
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # mass of the strictly more likely tokens
        probabilities[before >= top_p] = 0
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


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


def generate_from_run(
    folder: str | Path, prompt: str, console: Console, *, device: str = "auto", **options: Any
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece; `options` are those of `generate`."""
    run = load_run(folder, device, console)
    separator = run.tokenizer.separator_id
    tokens: list[int] = []
    # Prompt and new tokens are decoded together: alone, new ones lose the space before their first word.
    known = run.tokenizer.encode(prompt)
    shown = run.tokenizer.decode(known)
    with autocast_for(run.config, run.device):
        for token in generate(run.model, [separator, *known], stop_token=separator, **options):
            tokens.append(token)
            text = run.tokenizer.decode([*known, *tokens])
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character may need several tokens
                yield text[len(shown) :]
                shown = text
