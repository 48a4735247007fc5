"""What a harness of tasks asks of a language model: how likely a text is, and how it would go on.

Every text is read after the document separator, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrise.data import Tokenizer
from lowrise.errors import UsageError
from lowrise.inference.sampling import Sampling
from lowrise.inference.session import continue_texts, text_model
from lowrise.runs.environment import autocast_for
from lowrise.runs.load import TrainedRun


class Scorer:
    """A loaded model that scores texts, `batch_size` at a time. `marked`: contexts were written by a chat
    template, and special tokens in them are marks.
    """

    def __init__(self, run: TrainedRun, batch_size: int = 16, *, marked: bool = False) -> None:
        self.run, self.batch_size, self.marked = run, batch_size, marked
        self.tokenizer: Tokenizer = run.tokenizer
        self.longest = run.model.config.max_seq_len

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the natural logarithm of the continuation's probability, and
        whether it is what greedy decoding would write. A context that is too long loses its beginning; a
        continuation that is too long is a `UsageError`.
        """
        asked = [self._ids(context, continuation) for context, continuation in pairs]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(asked)
        longest_first = sorted(range(len(asked)), key=lambda i: -len(asked[i][0]))
        for start in range(0, len(asked), self.batch_size):
            numbers = longest_first[start : start + self.batch_size]
            for number, result in zip(numbers, self._scored([asked[i] for i in numbers]), strict=True):
                found[number] = result
        return found

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The natural logarithm of each text's probability, every token predicted once: windows do not
        overlap but for the token before each, as in `lowrise eval`."""
        separator = self.tokenizer.separator_id
        totals = []
        for text in texts:
            ids = [separator, *self.tokenizer.encode(text)]
            windows = [
                (ids[start : start + self.longest + 1], min(self.longest, len(ids) - 1 - start))
                for start in range(0, len(ids) - 1, self.longest)
            ]
            total = 0.0
            for start in range(0, len(windows), self.batch_size):
                total += sum(value for value, _ in self._scored(windows[start : start + self.batch_size]))
            totals.append(total)
        return totals

    def generated(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """What follows each context by its settings: `until` (strings that end it, left out), `max_gen_toks`,
        and `temperature` where `do_sample` is set; else greedy."""
        model = text_model(self.run)
        return [self._continued(model, context, settings) for context, settings in asked]

    # --- the parts ----------------------------------------------------------------------------------------

    def _ids(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Tokens of both after a separator, and how many of the last are the continuation's. Spaces between
        them belong to the continuation, as they do to its tokens; what a chat template ends with does not.
        """
        stripped = context if self.marked else context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before, whole = self._encoded(stripped), self._encoded(stripped + continuation)
        if whole[: len(before)] != before:  # a token across the border
            whole = before + self.tokenizer.encode(continuation)
        counted = len(whole) - len(before)
        if counted > self.longest:
            raise UsageError(
                f"A task's continuation has {counted} tokens, more than the model reads "
                f"({self.longest}, model.max_seq_len): leave the task out."
            )
        return [self.tokenizer.separator_id, *whole][-(self.longest + 1) :], counted

    def _encoded(self, context: str) -> list[int]:
        """Tokens of a context, without the separator, which a template may write too."""
        if not self.marked:
            return self.tokenizer.encode(context)
        ids = self.tokenizer.encode_marked(context)
        return ids[1:] if ids[:1] == [self.tokenizer.separator_id] else ids

    @torch.no_grad()
    def _scored(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, bool]]:
        """Of each row of tokens, the last `counted` of which are scored. In rows of one length, padded at the
        end, which nothing before it sees."""
        length = max(len(ids) for ids, _ in rows) - 1
        tokens = torch.zeros(len(rows), max(length, 1), dtype=torch.int64)
        for row, (ids, _) in enumerate(rows):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        model = self.run.model
        with autocast_for(self.run.config, self.run.device):
            hidden = model.hidden(tokens.to(self.run.device))
            return [self._row(hidden[row], ids, n) for row, (ids, n) in enumerate(rows)]

    def _row(self, hidden: Tensor, ids: Sequence[int], counted: int) -> tuple[float, bool]:
        if not counted:
            return 0.0, True
        end = len(ids) - 1
        logits = self.run.model.lm_head(hidden[end - counted : end]).float()
        wanted = torch.tensor(ids[-counted:], device=logits.device)
        chosen = logits.log_softmax(-1).gather(1, wanted[:, None]).double()
        return float(chosen.sum()), bool((logits.argmax(-1) == wanted).all())

    def _continued(self, model: Any, context: str, settings: dict[str, Any]) -> str:
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = max(1, min(int(settings.get("max_gen_toks") or 256), self.longest // 2))
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        ids = self._encoded(context)[-(self.longest - most - 1) :]
        pieces = continue_texts(
            model,
            [ids],
            max_new_tokens=most,
            sampling=Sampling(temperature=temperature),
            stop=[stop for stop in stops if stop],
        )
        return "".join(piece.text for piece in pieces)
