"""From logits to tokens: how the next token of each row of a batch is chosen.

In this order: repetition penalty, temperature, top-k, top-p, a draw. Draws come from CPU generators, one a
row, so the same logits give the same tokens on every device, and a row of a batch those it gets alone; only
these random numbers travel to the device, nothing travels back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrise.errors import UsageError

_SMALLEST_QUOTIENT = 1e-30  # logits below 1e8 divided by more than this are finite in float32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn; `UsageError` for settings out of range."""

    temperature: float = 1.0
    """Softmax temperature; 0: always the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float | None = None
    """Then keep the fewest of them that hold this much probability."""
    repetition_penalty: float = 1.0
    """Divide the positive logits of tokens that are in the text already by it and multiply the negative ones
    (CTRL, Keskar et al. 2019, arXiv 1909.05858, section 4.1; the sign as Hugging Face has it); 1: off."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(
                f"The temperature must be 0 (most likely token) or above, not {self.temperature!r}."
            )
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"The seed must have 64 bits, not {self.seed}.")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p!r}.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(
                f"repetition_penalty must be positive (1: off, 1.1: mild), not {self.repetition_penalty!r}."
            )


def pick_rows(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """A token id from every row of logits (B, vocab): the most likely at temperature 0, else a draw with the
    row's own CPU generator; (B,) on their device."""
    if temperature == 0:
        return logits.argmax(-1)
    if temperature > _SMALLEST_QUOTIENT:
        scaled = logits / temperature
    else:  # the quotient could overflow
        scaled = (logits.double() - logits.amax(-1, keepdim=True)) / temperature
    ordered, ids = scaled.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
        probabilities /= probabilities.sum(-1, keepdim=True)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # mass of the strictly more likely tokens
        probabilities[before >= top_p] = 0
    # With q exponential the largest p / q is a draw from p, and the very one of torch.multinomial on a CPU.
    vocab, dtype = logits.shape[-1], probabilities.dtype
    noise = torch.stack([torch.empty(vocab, dtype=dtype).exponential_(generator=g) for g in generators])
    drawn = (probabilities / noise.to(logits.device, non_blocking=True)).argmax(-1, keepdim=True)
    return ids.gather(-1, drawn)[:, 0]


class Sampler:
    """Draws the tokens of a batch, one step at a time, and remembers what each row has seen."""

    def __init__(
        self,
        settings: Sampling,
        prompts: Sequence[Sequence[int]],
        vocab: int,
        device: torch.device,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """`seeds`: one a row; None: every row has `settings.seed`, as it would alone."""
        self._settings = settings
        seeds = [settings.seed] * len(prompts) if seeds is None else seeds
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._seen: Tensor | None = None
        if settings.repetition_penalty != 1.0:
            seen = torch.zeros(len(prompts), vocab, dtype=torch.bool)
            for row, prompt in zip(seen, prompts, strict=True):
                row[torch.tensor(list(prompt))] = True
            self._seen = seen.to(device)

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token (B,) of every row, from logits (B, vocab)."""
        s = self._settings
        logits = logits.float()
        if self._seen is not None:
            penalty = s.repetition_penalty
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen, punished, logits)
        tokens = pick_rows(logits, s.temperature, s.top_k, s.top_p, self._generators)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone."""
        self._generators = [self._generators[row] for row in rows]
        if self._seen is not None:
            self._seen = self._seen[list(rows)]
