"""Generation from a model as it is, token by token with a KV cache: the plain form, and a run's sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lowrise.config import RunConfig
from lowrise.data import Tokenizer
from lowrise.distributed import World
from lowrise.distributed.fsdp import gathered_root
from lowrise.errors import UsageError
from lowrise.inference.sampling import Sampler, Sampling
from lowrise.model.cache import KVCache
from lowrise.model.config import LlamaConfig
from lowrise.model.llama import Llama
from lowrise.runs.environment import autocast_for


def generate(
    model: Llama,
    tokens: Sequence[int] | Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Continue one prompt; yields token ids as they are drawn, up to `max_new_tokens`, and ends before
    `stop_token`.

    The plain form, on the model as it is; `lowrise.inference.batch` has the fast one, for weights that do not
    change. `temperature` 0 always takes the most likely token; the other settings are those of `Sampling`.
    Draws come from a CPU generator with `seed`, so the same logits give the same text on every device. Raises
    `UsageError` at the call, not at the first token, for an empty prompt, one that leaves no room within
    `model.config.max_seq_len`, and for settings out of range.
    """
    prompt = torch.as_tensor(tokens, dtype=torch.int64).flatten().tolist()
    settings = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    check_prompt(model.config, prompt, max_new_tokens)
    return _stream(model, prompt, max_new_tokens, settings, stop_token)


def check_prompt(config: LlamaConfig, prompt: Sequence[int], max_new_tokens: int) -> None:
    """`UsageError` for a prompt that the model cannot read or continue by so many tokens."""
    vocab, longest = config.vocab_size, config.max_seq_len
    if not prompt:
        raise UsageError("The prompt is empty; generation needs at least one token to continue.")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab:
            raise UsageError(
                f"The prompt has token {token}, but the model knows 0 to {vocab - 1}; "
                f"is this the tokenizer that the model was trained with?"
            )
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    if len(prompt) + max_new_tokens > longest:
        raise UsageError(
            f"A prompt of {len(prompt)} tokens and {max_new_tokens} new ones are longer than "
            f"model.max_seq_len {longest}; shorten the prompt or ask for fewer tokens."
        )


def _stream(
    model: Llama,
    prompt: list[int],
    max_new_tokens: int,
    settings: Sampling,
    stop_token: int | None,
    agreed: Callable[[int], int] = int,
) -> Iterator[int]:
    """`agreed(token)` is the token that is taken, where several processes compute together."""
    sampler = Sampler(settings, [prompt], model.config.vocab_size, torch.device("cpu"))
    cache = model.new_cache(len(prompt) + max_new_tokens)
    step = torch.tensor([prompt])
    for _ in range(max_new_tokens):
        token = agreed(int(sampler(_last_logits(model, step, cache)[None])))
        if token == stop_token:
            return
        yield token
        step = torch.tensor([[token]])


@torch.no_grad()  # on the step and not around the loop: a generator would leave it on for its caller
def _last_logits(model: Llama, tokens: Tensor, cache: KVCache) -> Tensor:
    """Logits (vocab,) after the last token, float32 on the CPU; only that position meets the head."""
    hidden = model.hidden(tokens.to(model.lm_head.weight.device), cache=cache)
    return model.lm_head(hidden[0, -1]).float().cpu()


def check_sample(shape: LlamaConfig, config: RunConfig, tokenizer: Tokenizer) -> None:
    """`UsageError`, before a run has begun, for a sample that its model could not give in the end."""
    tokens = config.sample.tokens
    longest = shape.max_seq_len
    length = len(_prompt_of(config, tokenizer))
    if tokens and length + tokens > longest:
        raise UsageError(
            f"sample.tokens = {tokens} after a prompt of {length} tokens (sample.prompt and a separator) are "
            f"more than model.max_seq_len = {longest}: ask for at most {max(0, longest - length)}, or "
            "shorten the prompt."
        )


def _prompt_of(config: RunConfig, tokenizer: Tokenizer) -> list[int]:
    prompt = config.sample.prompt
    return [tokenizer.separator_id, *(tokenizer.encode(prompt) if prompt else [])]


def sample_of(
    model: Llama, config: RunConfig, tokenizer: Tokenizer, device: torch.device, world: World | None = None
) -> str | None:
    """The text that `config.sample` asks for; None where it asks for no tokens.

    Where ranks of `world` share weights by rows, all call it and take the tokens of rank 0: other processors
    may round to another token, and every forward pass needs all ranks.
    """
    agreed = int if world is None else (lambda token: world.told_by_rank_0(token)[0])
    settings = config.sample
    if not settings.tokens:
        return None
    prompt = _prompt_of(config, tokenizer)
    check_prompt(model.config, prompt, settings.tokens)
    sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p, seed=config.seed)
    with autocast_for(config, device), gathered_root(model):
        new = _stream(model, prompt, settings.tokens, sampling, tokenizer.separator_id, agreed)
        return (settings.prompt or "") + tokenizer.decode(new)
