"""A prepared corpus: two token streams, their tokenizer, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowrise.data.batches import TokenStream
from lowrise.data.index import INDEX, TOKENIZER, is_of_samples, read_index, split_of
from lowrise.data.mixture import Part
from lowrise.data.packing import SampleCounts, SampleStream
from lowrise.data.shards import damaged
from lowrise.data.tokenizer import Tokenizer
from lowrise.data.words import num_words
from lowrise.errors import LowriseError, UsageError


@dataclass(frozen=True)
class Corpus:
    """What `prepare` gives. The fingerprint stands for all that decides the tokens."""

    directory: Path
    fingerprint: str
    tokenizer: Tokenizer
    train: TokenStream
    valid: TokenStream
    index: dict[str, Any] = field(repr=False)

    def info(self) -> dict[str, Any]:
        """Plain values for logs and `summary.json`: sources, vocabulary, and a dictionary for each split."""
        return {
            "directory": str(self.directory),
            "fingerprint": self.fingerprint,
            "sources": list(self.index["options"]["source"]),
            "valid_sources": list(self.index["options"]["valid"]),
            "files": len(self.index["sources"]),
            "dtype": self.index["dtype"],
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "separator_token": self.tokenizer.separator_token,
            "train": _summary(self.train),
            "valid": _summary(self.valid),
        }

    @property
    def held_out_tail(self) -> str:
        """Which part of the text is held out where documents drawn by themselves would leave a split empty;
        else empty."""
        options = self.index["options"]
        if options.get("held_out") == "prompts":
            held = self.info()["valid"]["documents"]
            samples = f"{held:,} sample{'s' * (held != 1)}"
            return f"{samples}, all that their prompts have (too few prompts for data.valid_fraction alone)"
        if options.get("held_out") != "tail":
            return ""
        return (
            f"the last {options['valid_fraction']:.3g} of the text (too few documents to hold out whole ones)"
        )

    def __str__(self) -> str:
        from lowrise.console import in_columns  # rich is for those who look at the table

        info = self.info()
        held_out = self.held_out_tail or (
            ", ".join(info["valid_sources"])
            or f"{self.index['options']['valid_fraction']:g} of the documents"
        )
        head = [
            ("corpus", info["fingerprint"][:16]),
            ("directory", info["directory"]),
            ("source", f"{', '.join(info['sources'])} ({info['files']:,} files)"),
            ("held out", held_out),
            ("vocabulary", f"{info['vocab_size']:,} ({info['dtype']}), separator {info['separator_token']}"),
            ("tokenizer", info["tokenizer_sha256"][:16]),
        ]
        rows: list[tuple[str, ...]] = [("", "documents", "tokens", "text bytes", "bytes/token")]
        for name in ("train", "valid"):
            split = info[name]
            counts = [f"{split[key]:,}" for key in ("documents", "tokens", "text_bytes")]
            rows.append((name, *counts, f"{split['bytes_per_token']:.3f}"))
        for name, part in info["train"].get("mixture", {}).items():
            head.append(("mixture", f"{100 * part['share']:.3g}% {name} ({part['tokens']:,} tokens)"))
        table = in_columns(rows, [True] * len(rows[0]))
        return "\n".join([*(f"{name:<11} {value}" for name, value in head), "", table])

    def mixed(self, weights: Sequence[float], tokens_by_source: Mapping[str, int]) -> Corpus:
        """The corpus with a training stream that draws from its sources in proportion to `weights`.

        Raises `UsageError` for a source without training text.
        """
        parts, first = [], 0
        for (name, tokens), weight in zip(tokens_by_source.items(), weights, strict=True):
            parts.append(Part(name, first, tokens, weight))
            first += tokens
        assert first == self.train.tokens, (first, self.train.tokens)
        return replace(self, train=self.train.mixed(parts))

    def without_overlong(self) -> Corpus:
        """The corpus without the samples that are longer than a sequence; of text, the same."""
        train, valid = (
            stream.without_overlong() if isinstance(stream, SampleStream) else stream
            for stream in (self.train, self.valid)
        )
        return replace(self, train=train, valid=valid)

    def sample_counts(self, seq_len: int) -> dict[str, SampleCounts]:
        """What becomes of the samples of both splits in sequences of this length; nothing for text."""
        streams = {"train": self.train, "valid": self.valid}
        return {
            name: stream.counts(seq_len)
            for name, stream in streams.items()
            if isinstance(stream, SampleStream) and stream.tokens
        }

    def write_tokenizer(self, path: str | Path) -> None:
        """Write the tokenizer.json, byte for byte."""
        self.tokenizer.write(path)

    def verify(self, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Read every shard and compare it with its checksums; raises `LowriseError` that names the file and
        the block. `on_bytes` is called with the bytes of each shard.
        """
        for stream in (self.train, self.valid):
            stream.verify(on_bytes)


def _summary(stream: TokenStream) -> dict[str, Any]:
    total = sum(part.weight for part in stream.parts)
    mixture = {part.name: {"tokens": part.tokens, "share": part.weight / total} for part in stream.parts}
    return ({"mixture": mixture} if mixture else {}) | {
        "documents": stream.documents,
        "tokens": stream.tokens,
        "text_bytes": stream.text_bytes,
        "bytes_per_token": stream.text_bytes / max(1, stream.tokens),
    }


def open_corpus(directory: str | Path) -> Corpus:
    """Open a prepared corpus. Sizes are checked now, contents by `Corpus.verify`.

    Raises:
        UsageError: no finished corpus there, or one written by another version of the format.
        LowriseError: a file is missing, cut short, or not the one the index describes.
    """
    directory = Path(directory).expanduser()
    index = read_index(directory / INDEX)
    facts = index["tokenizer"]
    path = directory / TOKENIZER
    try:
        tokenizer = Tokenizer.load(
            path, separator_token=facts["separator_token"], is_known=lambda sha256: sha256 == facts["sha256"]
        )
    except UsageError as error:
        raise LowriseError(
            f"{error} It belongs to a prepared corpus: delete {directory} and prepare it again."
        ) from error
    if tokenizer.sha256 != facts["sha256"]:
        raise damaged(path, "is not the tokenizer that wrote the shards")
    if (tokenizer.vocab_size, tokenizer.separator_id) != (facts["vocab_size"], facts["separator_id"]):
        raise damaged(directory / INDEX, "says another vocabulary than its tokenizer has")
    samples = is_of_samples(index["options"])
    stream = SampleStream if samples else TokenStream
    train, valid = (
        stream(
            directory,
            name,
            split_of(index["splits"][name]),
            index["dtype"],
            tokenizer.separator_id,
            vocab_size=num_words(tokenizer.vocab_size, samples),
        )
        for name in ("train", "valid")
    )
    return Corpus(directory, index["fingerprint"], tokenizer, train, valid, index)


def inspect(directory: str | Path, *, full: bool = False) -> dict[str, Any]:
    """`Corpus.info()` of a prepared directory; `full` checks every shard. Raises as `open_corpus`."""
    corpus = open_corpus(directory)
    if full:
        corpus.verify()
    return corpus.info()
