"""`index.json` of a prepared corpus: written with a checksum of its own, and read by a strict schema.

`sha256` is over all the rest, and each shard has the checksums of its blocks. Keys: docs/data.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowrise.data.shards import BLOCK_BYTES, DTYPES, Shard, Split, damaged, dtype_for
from lowrise.data.tokenizer import Tokenizer
from lowrise.data.words import num_words
from lowrise.errors import LowriseError, UsageError
from lowrise.files import is_count, is_known, is_plain_name, read_json, require_seal, sealed

INDEX, TOKENIZER = "index.json", "tokenizer.json"
VERSION = 3

_SPLIT = {"documents", "tokens", "text_bytes", "shards"}
_SHARD = {"file", "tokens", "sha256", "blocks"}
_SOURCE = {"name", "bytes", "sha256", "split", "tokens"}
_TOKENIZER = {"file", "sha256", "vocab_size", "separator_token", "separator_id"}
_KEYS = {
    "format",
    "version",
    "fingerprint",
    "dtype",
    "byte_order",
    "block_bytes",
    "tokenizer",
    "splits",
    "sources",
    "options",
    "sha256",
}


def make_index(
    fingerprint: str,
    tokenizer: Tokenizer,
    splits: Mapping[str, Split],
    sources: list[dict[str, Any]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The contents of `index.json`."""
    return sealed(
        {
            "format": "lowrise-shards",
            "version": VERSION,
            "fingerprint": fingerprint,
            "dtype": dtype_for(num_words(tokenizer.vocab_size, is_of_samples(options))),
            "byte_order": "little",
            "block_bytes": BLOCK_BYTES,
            "tokenizer": {
                "file": TOKENIZER,
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "separator_token": tokenizer.separator_token,
                "separator_id": tokenizer.separator_id,
            },
            "splits": {name: asdict(split) for name, split in splits.items()},
            "sources": sources,
            "options": options,
        }
    )


def is_of_samples(options: Mapping[str, Any]) -> bool:
    """Whether an index with these options is of samples for fine-tuning."""
    return options.get("format") == "samples"


def read_index(path: Path) -> dict[str, Any]:
    """`index.json`, looked at from end to end.

    Raises:
        UsageError: there is none, or it is of another format.
        LowriseError: it is not what was written.
    """
    try:
        index = read_json(path)
        _require(isinstance(index, dict), "it is not an object")
        form, version = index.get("format"), index.get("version")
        known = form == "lowrise-shards" and type(version) is int and version == VERSION
        if known:
            _check(index)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"There is no prepared corpus in {path.parent} (no {INDEX}, which is written last): run "
            "`lowrise data prepare`."
        ) from error
    except IsADirectoryError as error:
        raise damaged(path, "is a folder") from error
    except OSError as error:
        raise LowriseError(
            f"{path} cannot be read ({error.strerror or error}): check its rights and the disk."
        ) from error
    except ValueError as error:
        raise damaged(path, f"is not what was written ({error})") from error
    if not known:
        raise UsageError(
            f"{path} is of format {form!r}, version {version!r}; this lowrise reads 'lowrise-shards', "
            f"version {VERSION}: prepare the corpus again."
        )
    return index


def split_of(entry: Mapping[str, Any]) -> Split:
    """A split as `read_index` has found it."""
    return Split(
        entry["documents"], entry["tokens"], entry["text_bytes"], tuple(map(shard_of, entry["shards"]))
    )


def shard_of(entry: Mapping[str, Any]) -> Shard:
    """A shard as `check_shard` has found it."""
    return Shard(**{**entry, "blocks": tuple(entry["blocks"])})


def check_shard(entry: Any, itemsize: int) -> None:
    """Raise `ValueError` unless this describes a shard, `blocks` and all."""
    _object(entry, _SHARD, "a shard")
    _require(is_plain_name(entry["file"]), f"{entry['file']!r} is not the name of a file in the folder")
    _require(is_count(entry["tokens"]) and entry["tokens"] > 0, f"{entry['file']} has no number of tokens")
    _require(_is_hash(entry["sha256"], 64), f"{entry['file']} has no SHA-256")
    found = entry["blocks"]
    wanted = -(-entry["tokens"] * itemsize // BLOCK_BYTES)
    right = isinstance(found, list | tuple) and len(found) == wanted
    _require(right and all(_is_hash(block, 32) for block in found), f"{entry['file']} lacks checksums")


def _check(index: dict[str, Any]) -> None:
    _object(index, _KEYS, "it")
    require_seal(index)
    _require(index["block_bytes"] == BLOCK_BYTES, f"its blocks have not {BLOCK_BYTES} bytes")
    _require(_is_hash(index["fingerprint"], 64), "its fingerprint is none")
    _require(isinstance(index["dtype"], str) and index["dtype"] in DTYPES, "its dtype is unknown")
    _require(index["byte_order"] == "little", "its byte order is not little")
    _require(isinstance(index["options"], dict), "its options are not an object")
    _check_tokenizer(index["tokenizer"], index["dtype"], is_of_samples(index["options"]))
    _object(index["splits"], {"train", "valid"}, "splits")
    _check_options(index["options"])
    _require(isinstance(index["sources"], list), "its sources are no list")
    for source in index["sources"]:
        _check_source(source)
    names: set[str] = set()
    for name, split in index["splits"].items():
        _check_split(name, split, DTYPES[index["dtype"]].itemsize)
        from_sources = sum(source["tokens"][name] for source in index["sources"])
        _require(split["tokens"] == from_sources, f"the tokens of {name} are not those of its sources")
        files = {shard["file"] for shard in split["shards"]}
        _require(len(files) == len(split["shards"]) and not files & names, "a shard is named twice")
        names |= files
    _require(bool(names), "it has no shards")


def _check_tokenizer(facts: Any, dtype: str, samples: bool) -> None:
    _object(facts, _TOKENIZER, "tokenizer")
    _require(facts["file"] == TOKENIZER, "the tokenizer's file has another name")
    _require(_is_hash(facts["sha256"], 64), "the tokenizer has no SHA-256")
    _require(isinstance(facts["separator_token"], str), "the separator is not a string")
    size = facts["vocab_size"]
    fits = is_count(size) and 0 < size <= 2**32 and dtype_for(num_words(size, samples)) == dtype
    _require(fits, "its vocabulary cannot be")
    right = is_count(facts["separator_id"]) and facts["separator_id"] < size
    _require(right, "the separator is not in the vocabulary")


def _check_split(name: str, split: Any, itemsize: int) -> None:
    _object(split, _SPLIT, name)
    counts = all(is_count(split[key]) for key in _SPLIT - {"shards"})
    _require(counts, f"the counts of {name} cannot be")
    _require(isinstance(split["shards"], list), f"the shards of {name} are no list")
    for shard in split["shards"]:
        check_shard(shard, itemsize)
    total = sum(shard["tokens"] for shard in split["shards"])
    _require(total == split["tokens"], f"the shards of {name} have not its tokens")
    _require(split["documents"] <= total, f"{name} has more documents than tokens")


def _check_source(source: Any) -> None:
    _object(source, _SOURCE, "a source")
    _require(isinstance(source["name"], str) and is_count(source["bytes"]), "a source has no name or size")
    _require(_is_hash(source["sha256"], 64), f"{source['name']} has no SHA-256")
    _require(source["split"] in ("train", "valid", None), f"{source['name']} has an unknown split")
    _object(source["tokens"], {"train", "valid"}, source["name"])
    _require(all(map(is_count, source["tokens"].values())), f"{source['name']} has no number of tokens")


def _check_options(options: Any) -> None:
    _require(isinstance(options, dict), "its options are not an object")
    for key in ("source", "valid"):
        value = options.get(key)
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
        _require(right, f"options.{key} is no list of strings")
    _require(is_known(options.get("valid_fraction")), "options.valid_fraction is not a number")


def _object(value: Any, keys: set[str], name: str) -> None:
    _require(isinstance(value, dict), f"{name} is not an object")
    wrong = ", ".join(sorted(map(repr, set(value) ^ keys)))
    _require(not wrong, f"the keys of {name} differ in {wrong}")


def _is_hash(value: Any, digits: int) -> bool:
    return isinstance(value, str) and len(value) == digits and set(value) <= set("0123456789abcdef")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
