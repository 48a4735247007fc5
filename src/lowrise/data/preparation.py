"""Text -> token shards, once: the same request again opens what is there.

    1. find the files, hash them                                          (corpora.py)
    2. load the tokenizer, or train it on a bounded sample and keep it     (tokenizer_choice.py)
    3. fingerprint = hash of (contents, options, tokenizer, content version) names the directory
    4. documents -> pieces -> blocks -> token ids -> parts                 (pieces.py, parts.py, shards.py)
    5. index.json, which makes the corpus whole                            (index.py)
    6. compare every block with its checksum                               (verified.py)

One process prepares a corpus at a time (a lock that dies with it); others wait, and find it finished.

Tokenization runs on the threads of the tokenizers library, free of the GIL, while this process reads the next
block: the rest (reading, parsing, writing) costs about a twentieth of it, so processes should help
beyond some 16 cores only, and would ask every user script for a `__main__` guard.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lowrise.data.config import HOW_NOT_WHAT, DataConfig
from lowrise.data.corpora import Kept, SourceFile, find_held_out, find_sources, left_out
from lowrise.data.corpus import Corpus, open_corpus
from lowrise.data.hashes import HashCache, stamp_of
from lowrise.data.hub import BYTES_PER_TOKEN, is_on_hub, kept_text
from lowrise.data.index import INDEX, TOKENIZER, make_index, shard_of
from lowrise.data.limit import TokenLimit, token_limits
from lowrise.data.log import PrepareLog
from lowrise.data.parts import (
    SPLITS,
    PartWriter,
    Place,
    Progress,
    adding_up,
    blocks_from,
    part_path,
    remove_parts,
)
from lowrise.data.pieces import with_held_out_tail
from lowrise.data.readers import holds
from lowrise.data.samples import are_samples, template_place
from lowrise.data.shards import Split, damaged, explained_disk_errors, locked
from lowrise.data.tokenizer import Tokenizer
from lowrise.data.tokenizer_choice import (
    CONTENT_VERSION,
    digest,
    require_lossless,
    split_options,
    tokenizer_for,
)
from lowrise.data.verified import bytes_of, is_large, needs_verification, remember_verification, stamps_of
from lowrise.errors import LowriseError, UsageError
from lowrise.files import cache_root as cache_root
from lowrise.files import write_whole


def prepare(config: DataConfig | None = None, *, progress: Progress | None = None) -> Corpus:
    """Open the corpus of `config`, after preparing it if that has not been done yet.

    Raises:
        UsageError: the sources, the tokenizer or the text cannot be used as asked; the place is named.
        LowriseError: no space, an absent package, a damaged cache.
    """
    config = config or DataConfig()
    config.check()
    return _prepared(config, find_sources, progress)


def prepare_held_out(
    sources: Sequence[str],
    tokenizer: str | Path,
    like: DataConfig,
    *,
    progress: Progress | None = None,
) -> Corpus:
    """Texts to evaluate on, whole, with a given tokenizer: a corpus whose `valid` holds all of them and whose
    `train` is empty. How documents are found, separated and cached is as in `like`, and so is the template of
    chat messages; whether the lines are samples or text is told by the first of them (`are_samples`).

    Raises as `prepare`.
    """
    texts = tuple(sources)
    samples = _holds_samples(replace(like, source=texts, valid=texts, **_OF_TEXT), like)
    form: dict[str, Any] = (
        {"format": "samples", "chat_template": template_place(like)} if samples else _OF_TEXT
    )
    config = replace(
        like, source=texts, valid=texts, weights=(), tokenizer=str(tokenizer), max_tokens=None, **form
    )
    config.check()
    return _prepared(config, find_held_out, progress)


_OF_TEXT: dict[str, Any] = {"format": None, "keys": {}, "chat_template": None, "overlong": None}


def _holds_samples(config: DataConfig, like: DataConfig) -> bool:
    """Whether the first line of the held-out texts of `config` is a sample."""
    if any(map(is_on_hub, config.valid)):
        return False
    first = next(iter(find_held_out(config, None)), None)
    return first is not None and first.kind == "jsonl" and are_samples(first.paths[0], like)


def _prepared(
    config: DataConfig, find: Callable[[DataConfig, Kept], list[SourceFile]], progress: Progress | None
) -> Corpus:
    """The corpus of the files that `find` finds."""
    report = progress or (lambda done, total, what: None)
    if config.workers:
        # The library makes its threads once, at their first use; a number that the user has set stays.
        os.environ.setdefault("RAYON_NUM_THREADS", str(config.workers))
    root = cache_root(config.cache)
    with explained_disk_errors(root):
        for directory in (root / "corpora", root / "tokenizers"):
            directory.mkdir(parents=True, exist_ok=True)

        def kept(spec: str, tokens: int | None) -> list[Path] | None:
            limit = None if tokens is None else tokens * BYTES_PER_TOKEN
            return kept_text(spec, config.text_key, limit, root, report)

        files = find(config, kept)
        stamps = _stamps(files)
        hashes = _hash_all(files, root, report)
        _require_no_copies(files, hashes)
        files = with_held_out_tail(files, config, report)
        contents = [
            file.identity(sha256, config.text_key) for file, sha256 in zip(files, hashes, strict=True)
        ]
        tokenizer = tokenizer_for(config, files, contents, root, report)
        fingerprint = digest(
            CONTENT_VERSION,
            contents,
            split_options(config),
            tokenizer.sha256,
            tokenizer.separator_token,
            *tokenizer.reads_text_by(),
            *([list(token_limits(config).values())] if config.max_tokens else []),
        )
        directory = root / "corpora" / fingerprint[:32]
        if (directory / INDEX).exists():
            remove_parts(directory)  # of a process that was stopped after the index
        else:
            _require_separator(config, files, report)
            _tell_left_out(config)
            if config.tokenizer is not None:
                require_lossless(config, files, tokenizer, report)
            with locked(directory.with_suffix(".lock"), lambda: report(0, 0, "waiting for another process")):
                if not (directory / INDEX).exists():
                    unchanged = partial(_require_unchanged, files, stamps)
                    with PrepareLog(root, fingerprint).opened(config, files) as log:
                        parts = _tokenized(directory, config, files, tokenizer, report, unchanged, log)
                        _finish(directory, fingerprint, config, files, hashes, tokenizer, parts)
    corpus = _opened(directory, fingerprint, report)
    if config.overlong == "drop":
        corpus = corpus.without_overlong()
    return corpus.mixed(config.weights, _tokens_by_source(files, corpus)) if config.weights else corpus


def _opened(directory: Path, fingerprint: str, report: Progress) -> Corpus:
    """The prepared corpus, once its shards are known to be as they were written."""
    corpus = open_corpus(directory)
    if corpus.fingerprint != fingerprint:
        raise damaged(directory / INDEX, "is that of another corpus")
    with ExitStack() as stack:
        if is_large(corpus):
            # Of several processes one verifies, and the others find that it has. Where there are no locks, or
            # nothing can be written, each does it.
            waiting = partial(report, 0, 0, "waiting for another process")
            with suppress(OSError, LowriseError):
                stack.enter_context(locked(directory.with_suffix(".lock"), waiting))
        if needs_verification(corpus):
            verify(corpus, report)
    return corpus


def verify(corpus: Corpus, report: Progress = lambda done, total, what: None) -> None:
    """Compare all of a corpus with its checksums, and remember that.

    Raises `LowriseError` that names the file and the block that is not as it was written.
    """
    files = stamps_of(corpus)
    corpus.verify(adding_up(report, bytes_of(corpus), "verifying"))
    remember_verification(corpus, files)


def _tokens_by_source(files: list[SourceFile], corpus: Corpus) -> dict[str, int]:
    """Entry of data.source -> its tokens in the training stream, in the order in which they lie there."""
    tokens: dict[str, int] = {}
    for file, entry in zip(files, corpus.index["sources"], strict=True):
        if file.split != "valid":
            tokens[file.source] = tokens.get(file.source, 0) + entry["tokens"]["train"]
    return tokens


def _held_out(config: DataConfig, files: list[SourceFile]) -> str:
    """What `with_held_out_tail` has made of files whose sources name no split themselves: "prompts", "tail",
    or "documents" where nothing."""
    if config.valid:
        return "documents"
    if any(file.held_draws is not None for file in files):
        return "prompts"
    cut = any(file.split == "valid" or file.tail_from is not None for file in files)
    return "tail" if cut else "documents"


def _hash_all(files: list[SourceFile], root: Path, report: Progress) -> list[str]:
    cache = HashCache(root / "hashes.json")
    add = adding_up(report, sum(file.size for file in files), "reading")
    hashes = [cache.sha256(file, add) for file in files]
    cache.save()
    return hashes


def _require_no_copies(files: list[SourceFile], hashes: list[str]) -> None:
    """Refuse held-out text that is trained on under another name."""
    trained_on = {sha256: file for file, sha256 in zip(files, hashes, strict=True) if file.split == "train"}
    for file, sha256 in zip(files, hashes, strict=True):
        if file.split == "valid" and sha256 in trained_on:
            raise UsageError(
                f"{file.name} of data.valid has the content of {trained_on[sha256].name} of data.source, so "
                "it would be trained on and held out: hold out another text, or leave data.valid out to hold "
                "out a fraction of the documents."
            )


def _stamps(files: list[SourceFile]) -> dict[str, list[int]]:
    return {str(path): stamp_of(path) for file in files for path in file.paths}


def _require_unchanged(files: list[SourceFile], stamps: dict[str, list[int]]) -> None:
    """Refuse text that is no longer the one whose hash names the corpus."""
    changed = next((path for path, stamp in _stamps(files).items() if stamps[path] != stamp), None)
    if changed is not None:
        raise LowriseError(
            f"{changed} was changed while it was being read: start again, when nothing writes to it."
        )


def _require_separator(config: DataConfig, files: list[SourceFile], report: Progress) -> None:
    """Refuse a separator that is written in another way than in the text; say if it is not there at all."""
    separator = config.document_separator
    files = [file for file in files if file.separator is not None]
    if separator is None or not files:
        return
    typed = separator.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t")  # without $'...'
    unix = typed.replace("\r\n", "\n")
    written = list(dict.fromkeys([separator, typed, unix, unix.replace("\n", "\r\n")]))
    found = False
    for number, file in enumerate(files):
        report(number, len(files), "looking for the separator")
        there = holds(file.paths[0], written, file.limits)
        found = found or there[0]
        other = next((w for w, is_there in zip(written, there, strict=True) if is_there), separator)
        if other != separator:
            raise UsageError(
                f"{file.name} has no {separator!r} (data.document_separator), but {other!r}: give that one "
                f"(in a shell $'{repr(other)[1:-1]}'), or convert the file."
            )
    if not found:
        warnings.warn(
            f"data.document_separator {separator!r} occurs nowhere in the text: each of the {len(files)} "
            "text files is one document.",
            stacklevel=5,
        )


def _tell_left_out(config: DataConfig) -> None:
    """One warning of the hidden names and caches in folders that are sources."""
    left = left_out(config)
    if left:
        names = sorted({path.name for path in left})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warnings.warn(
            f"{len(left)} hidden files and folders or caches in the sources are left out "
            f"({', '.join(names[:3])}{more}): a glob such as 'DIR/.hidden/*.txt' reads them.",
            stacklevel=5,
        )


# 4. and 5. The shards


def _tokenized(
    directory: Path,
    config: DataConfig,
    files: list[SourceFile],
    tokenizer: Tokenizer,
    report: Progress,
    unchanged: Callable[[], None],
    log: PrepareLog,
) -> list[dict[str, Any]]:
    """All parts that `data.max_tokens` asks for, those that an earlier process has finished among them."""
    directory.mkdir(exist_ok=True)
    size = sum(file.size for file in files)
    work = PartWriter(directory, size, tokenizer, report, unchanged, config.is_samples)
    parts = work.finished_parts()
    limit = TokenLimit(files, token_limits(config))
    for part in parts:
        limit.count(part["splits"]["train"]["tokens_by_file"])
    while not parts or parts[-1]["next"] is not None:
        start = Place(*parts[-1]["next"]) if parts else Place(0, 0)
        # One pass over the sources for all parts: to begin anew at each would read a large file once a part.
        blocks = blocks_from(files, config, start, tokenizer.cut)
        limit.jumped = False
        while (not parts or parts[-1]["next"] is not None) and not limit.jumped:
            parts.append(work.write_part(len(parts), blocks, limit))
            log.part(len(parts), parts[-1]["splits"])
    return parts


def _finish(
    directory: Path,
    fingerprint: str,
    config: DataConfig,
    files: list[SourceFile],
    hashes: list[str],
    tokenizer: Tokenizer,
    parts: list[dict[str, Any]],
) -> None:
    """Write what makes the shards of the parts a corpus."""
    splits = {name: _total(parts, name) for name in SPLITS}
    asked = [name for name in SPLITS if any(file.split in (name, None) for file in files)]
    _require_text(config, splits, asked)
    tokenizer.write(directory / TOKENIZER)
    sources = [
        {
            "name": file.name,
            "bytes": file.size,
            "sha256": sha256,
            "split": file.split,
            "tokens": {name: _tokens_of_file(parts, name, number) for name in SPLITS},
        }
        for number, (file, sha256) in enumerate(zip(files, hashes, strict=True))
    ]
    options = asdict(config)
    for name in (*HOW_NOT_WHAT, "weights", "overlong"):
        del options[name]
    options["held_out"] = _held_out(config, files)
    index = make_index(fingerprint, tokenizer, splits, sources, options)
    write_whole(directory / INDEX, json.dumps(index, indent=1).encode())
    for number in range(len(parts)):
        part_path(directory, number).unlink(missing_ok=True)  # another process may have been first


def _total(parts: list[dict[str, Any]], name: str) -> Split:
    entries = [part["splits"][name] for part in parts]
    shards = tuple(shard_of(entry["shard"]) for entry in entries if entry["shard"] is not None)
    return Split(
        documents=sum(entry["documents"] for entry in entries),
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(entry["text_bytes"] for entry in entries),
        shards=shards,
    )


def _tokens_of_file(parts: list[dict[str, Any]], name: str, number: int) -> int:
    return sum(part["splits"][name]["tokens_by_file"].get(str(number), 0) for part in parts)


def _require_text(config: DataConfig, splits: dict[str, Split], asked: Collection[str]) -> None:
    """An empty split that was asked for is a mistake that should be heard of now."""
    documents = sum(split.documents for split in splits.values())
    if not any(split.text_bytes for split in splits.values()):
        raise UsageError(
            f"The corpus is empty: {', '.join(config.source)} has no text in its {documents} documents."
        )
    for name, other in (("train", "valid"), ("valid", "train")):
        if splits[name].text_bytes or name not in asked:
            continue
        if config.valid:
            sources = config.source if name == "train" else config.valid
            raise UsageError(f"The {name} split is empty: {', '.join(sources)} has no text.")
        what, apart = "documents", "split a text file into documents with data.document_separator"
        if config.is_samples:
            what, apart = "samples", "give samples of more prompts (those of one prompt stay together)"
        raise UsageError(
            f"The {name} split is empty: all {documents} {what} of {', '.join(config.source)} fell into "
            f"{other} (data.valid_fraction is {config.valid_fraction:g}). Name held-out files with "
            f"data.valid, or {apart}, or change data.valid_fraction."
        )
