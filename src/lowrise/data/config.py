"""The `[data]` section of a recipe."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from lowrise.errors import UsageError
from lowrise.names import lookup

SAMPLE_KEYS = {"prompt": "prompt", "completion": "completion", "messages": "messages"}
"""What the parts of a sample are called in a JSON line, unless `data.keys` says otherwise."""

# More than a machine has cores. Libraries stand still, or end the process, while they make a million.
MOST_THREADS = 4096

# Keys that say how text is read, not what is read: no part of a corpus's identity or a recipe's.
HOW_NOT_WHAT = ("cache", "workers", "max_line_bytes", "max_expansion", "max_expanded_bytes")


@dataclass(kw_only=True)
class DataConfig:
    """Which text, which tokenizer, which split. (Sequence length and batch size belong to training.)

    `source` and `valid` also take a single string, which becomes a tuple of one.

    Raises:
        UsageError: a value that cannot be right, with the field's name and what it may be.
    """

    source: tuple[str, ...] = ("builtin",)
    """Where the text is: "builtin", files, globs, directories, "hf:NAME:config:split" (docs/data.md)."""

    weights: tuple[float, ...] = ()
    """Fraction of the training sequences from each entry of `source`, in any unit; empty: all text in
    order."""

    valid: tuple[str, ...] = ()
    """Held-out sources; when empty, `valid_fraction` of the documents of `source` are held out."""

    valid_fraction: float = 0.02
    """Fraction of documents to hold out, by a hash of the text (builtin: of the path). Unused with
    `valid`."""

    split_seed: int = 0
    """Another number holds out other documents."""

    text_key: str = "text"
    """Field of a JSON line, Parquet row or dataset row that holds the document."""

    format: Literal["text", "samples"] | None = None
    """samples: JSON Lines of prompts and completions or of chat messages, for fine-tuning: the loss is on the
    completions and the assistant's answers alone (docs/finetuning.md). None: text."""

    keys: dict[str, str] = field(default_factory=dict)
    """What prompt, completion and messages are called in the lines of samples, where it is otherwise."""

    chat_template: str | None = None
    """File in jinja that writes chat messages as text; None: the one beside the tokenizer, else a plain
    form."""

    overlong: Literal["cut", "drop"] | None = None
    """What becomes of samples longer than a sequence; None: their end is cut off. What is left without a part
    of its completion is dropped always."""

    document_separator: str | None = None
    """String that ends a document in plain text files, itself no text; None: a file is one document."""

    tokenizer: str | None = None
    """A tokenizer.json, or a directory that holds one; None: train a byte-level BPE on the training text."""

    vocab_size: int = 4096
    """Entries of the tokenizer to train. Unused with `tokenizer`."""

    tokenizer_sample_bytes: int = 64 * 2**20
    """The tokenizer is trained on about this much text at most, from every file in proportion to its size."""

    separator_token: str | None = None
    """Token that follows every document; None: the tokenizer's own end-of-text token."""

    max_tokens: int | None = None
    """Most training tokens to prepare; what lies after them is not read. 0: all text; None: all too, but of a
    dataset on the hub `lowrise train` takes what its updates need."""

    cache: str | None = None
    """Directory for prepared corpora; None: $LOWRISE_CACHE, else ~/.cache/lowrise."""

    workers: int = 0
    """Threads that tokenize; 0: one for each core. Fixed by the first preparation in a process."""

    max_line_bytes: int = 2**28
    """Longest JSON line or Parquet row, as UTF-8: it is held in memory several times."""

    max_expansion: int = 300
    """Times its own size that a compressed file may expand to; files that stay below 256 MiB may more."""

    max_expanded_bytes: int = 2**40
    """Bytes that a compressed file may expand to."""

    def __post_init__(self) -> None:
        self.source = _strings("source", self.source)
        self.valid = _strings("valid", self.valid)
        self.weights = tuple(self.weights)
        self.check()

    def check(self) -> None:
        """Raise `UsageError` if a value cannot be right; `prepare` does so again, as fields may be set."""
        if not self.source:
            raise UsageError('data.source is empty: name a file, a directory, "builtin" or "hf:NAME".')
        self._check_weights()
        if not -(2**63) <= self.split_seed < 2**63:
            raise UsageError(f"data.split_seed = {self.split_seed} cannot be: it has 64 bits.")
        for name, most in (("vocab_size", 2**31 - 1), ("workers", MOST_THREADS)):
            if getattr(self, name) > most:
                raise UsageError(f"data.{name} = {getattr(self, name)} cannot be: it is at most {most}.")
        if not self.valid and not 0 < self.valid_fraction < 1:
            raise UsageError(
                f"data.valid_fraction is {self.valid_fraction}: it must lie between 0 and 1 (for example "
                "0.02), or name held-out files with data.valid."
            )
        if not self.text_key:
            raise UsageError(
                'data.text_key is empty: name the field that holds the document, for example "text".'
            )
        self._check_samples()
        if self.document_separator == "":
            raise UsageError(
                'data.document_separator is the empty string: give a string such as "\\n\\n\\n", or leave it '
                "out so that each file is one document."
            )
        if self.tokenizer is None and self.vocab_size < 258:
            raise UsageError(
                f"data.vocab_size is {self.vocab_size}: a byte-level tokenizer needs at least 258 entries "
                "(256 bytes and two special tokens)."
            )
        if self.tokenizer_sample_bytes < 1:
            raise UsageError(
                f"data.tokenizer_sample_bytes is {self.tokenizer_sample_bytes}: it must be at least 1."
            )
        for name in ("max_line_bytes", "max_expansion", "max_expanded_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"data.{name} is {getattr(self, name)}: it must be at least 1.")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UsageError(
                f"data.max_tokens is {self.max_tokens}: it must be 0 (all text) or a number of tokens."
            )
        if self.workers < 0:
            raise UsageError(
                f"data.workers is {self.workers}: it must be 0 (every core) or a number of threads."
            )

    @property
    def is_samples(self) -> bool:
        """Whether the lines are samples for fine-tuning."""
        return self.format == "samples"

    def _check_samples(self) -> None:
        if self.format not in (None, "text", "samples"):
            raise UsageError(f'data.format is {self.format!r}: it may be "text" or "samples".')
        if self.overlong not in (None, "cut", "drop"):
            raise UsageError(f'data.overlong is {self.overlong!r}: it may be "cut" or "drop".')
        for name in ("keys", "chat_template", "overlong"):
            if getattr(self, name) and not self.is_samples:
                raise UsageError(
                    f"data.{name} is of samples, and data.format is {self.format or 'text'!r}: set "
                    'data.format = "samples", or leave it out.'
                )
        for part, key in self.keys.items():
            lookup(SAMPLE_KEYS, part, "part of a sample", "data.keys")
            if not isinstance(key, str) or not key:
                raise UsageError(f"data.keys.{part} is {key!r}: it must be the name of a key.")
        names = SAMPLE_KEYS | self.keys
        for first, second in itertools.combinations(names, 2):
            if names[first] == names[second]:
                raise UsageError(
                    f"data.keys: {first} and {second} are both {names[first]!r}: give each part a key of its "
                    "own."
                )

    def _check_weights(self) -> None:
        if not self.weights:
            return
        if len(self.weights) != len(self.source):
            raise UsageError(
                f"data.weights has {len(self.weights)} numbers for {len(self.source)} sources: give one for "
                "each entry of data.source (a directory or a pattern is one entry), or none."
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise UsageError(
                f"data.weights is {list(self.weights)}: each must be a number above 0; leave a source out "
                "that should not be read."
            )
        if len(set(self.source)) < len(self.source):
            raise UsageError("data.source names a source twice: name it once, with the sum of its weights.")


def _strings(name: str, value: object) -> tuple[str, ...]:
    """A string or a sequence of strings as a tuple, as TOML and command lines may write either."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, tuple | list) or not all(isinstance(item, str) and item for item in values):
        raise UsageError(f"data.{name} is {value!r}: it must be a string or a list of strings, none empty.")
    return tuple(values)
