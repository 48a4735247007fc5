"""Several prompts at a time through a `FrozenDecoder`: tokens step by step, each row as it would be alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lowrise.inference.decoder import FrozenDecoder
from lowrise.inference.generate import check_prompt
from lowrise.inference.sampling import Sampler, Sampling


class Batch:
    """The continuations of `prompts`, each of at least one token.

    Iteration yields, a step, the new token of every row, or None for a row that is over: after
    `max_new_tokens`, before `stop_token`, or when the reader has put True into `over`. It ends with the last
    row. Rows that are over are computed along until half of the rows are, and then left out. Raises
    `UsageError` at once, not at the first token, for a prompt that does not fit.
    """

    def __init__(
        self,
        decoder: FrozenDecoder,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop_token: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        for prompt in prompts:
            check_prompt(decoder.config, prompt, max_new_tokens)
        self.prompts = prompts
        self.over = [False] * len(prompts)
        self.stopped = [False] * len(prompts)
        """Rows that came to the stop token."""
        self._decoder = decoder
        self._tokens = max_new_tokens
        self._stop = stop_token
        self._sampler = Sampler(sampling, prompts, decoder.config.vocab_size, decoder.device, seeds)

    def __iter__(self) -> Iterator[list[int | None]]:
        state, logits = self._decoder.prefill(self.prompts, self._tokens)
        rows = list(range(len(self.prompts)))  # of the batch, still computed
        for number in range(self._tokens):
            tokens = self._sampler(logits)
            new: list[int | None] = [None] * len(self.prompts)
            # The one transfer of a step: what was drawn has to be read.
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if self.over[row]:
                    continue
                if token == self._stop:
                    self.over[row] = self.stopped[row] = True
                else:
                    new[row] = token
            if all(self.over):
                return
            yield new
            if all(self.over) or number + 1 == self._tokens:
                break
            alive = [i for i, row in enumerate(rows) if not self.over[row]]
            if 2 * len(alive) <= len(rows):
                rows = [rows[i] for i in alive]
                tokens = tokens[alive]
                state.keep(alive)
                self._sampler.keep(alive)
            logits = self._decoder.step(state, tokens)
        self.over = [True] * len(self.over)
