"""Source strings -> the files behind them, in a fixed order, each with the hash of its content.

"builtin"                        the Python standard library's source, as installed
"hf:NAME[:config][:split]"       a dataset of the Hugging Face hub
"hf:DIR[:split]"                 a dataset that its `save_to_disk` has written
a path, a directory or a glob    text, JSON Lines, Parquet; .gz, .xz and .zst of the first two
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowrise.data.config import DataConfig
from lowrise.data.hub import is_offline, is_on_hub, package, require_reachable
from lowrise.data.limit import token_limits, within
from lowrise.data.readers import (
    JSON_LINES,
    Chunk,
    read_dataset,
    read_json_lines,
    read_parquet,
    read_text,
    refuse_json_lines,
)
from lowrise.data.samples import SampleFormat, read_samples, sample_format
from lowrise.data.stored import LIMITS, Limits, compression_of
from lowrise.data.walk import matching, walk
from lowrise.errors import LowriseError, UsageError

# The built-in corpus has no tests (strange text) and no third-party packages (other ones on every machine).
BUILTIN_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}

Kept = Callable[[str, int | None], list[Path] | None]
"""The text of a dataset on the hub, of at least so many tokens (None: all), as files; None where the user is
offline and it is not there."""


@dataclass(frozen=True)
class SourceFile:
    """One file (or dataset) of a corpus."""

    kind: str  # a key of READERS
    name: str  # what messages and the index call it
    size: int  # stored bytes
    paths: tuple[Path, ...]  # what holds its content: one file, or the Arrow files of a dataset
    split: str | None = None  # "train" | "valid" | None: decided document by document
    # decides the split instead of the text, where the text differs between machines
    split_key: str | None = None
    tail_from: int | None = None  # characters of training text, after which all is held out
    held_draws: tuple[float, ...] | None = None  # of held-out prompts; None: those below data.valid_fraction
    separator: str | None = None
    dataset: Any = None
    source: str = ""  # the entry of data.source or data.valid that it is of
    limits: Limits = LIMITS
    samples: SampleFormat | None = None  # how lines become samples, where they do

    def chunks(self, text_key: str) -> Iterator[Chunk]:
        """The documents, as the reader of its kind gives them."""
        return READERS[self.kind](self, text_key)

    def identity(self, sha256: str, text_key: str) -> list[object]:
        """All that decides which documents the file gives, and nothing else: not its place, not its date."""
        compression = compression_of(self.paths[0]) if self.paths else ""
        rows = [self.dataset.num_rows, str(self.dataset.split)] if self.dataset is not None else None
        key: object = None if self.kind == "text" else text_key
        if self.samples is not None:
            key = self.samples.identity()
        held: list[object] = [place for place in (self.tail_from, self.held_draws) if place is not None]
        return [self.kind, compression, sha256, self.split, self.split_key, self.separator, key, rows, *held]


READERS: dict[str, Callable[[SourceFile, str], Iterator[Chunk]]] = {
    "text": lambda file, text_key: _read_plain(file, text_key),
    "samples": lambda file, text_key: read_samples(
        file.paths[0], file.samples or SampleFormat(), file.limits
    ),
    "jsonl": lambda file, text_key: read_json_lines(file.paths[0], text_key, file.limits),
    "parquet": lambda file, text_key: read_parquet(file.paths[0], text_key, file.limits),
    "dataset": lambda file, text_key: read_dataset(file.dataset, file.name, file.size, text_key, file.limits),
}
"""Kind -> (file, text_key) -> its documents."""

KIND_OF_SUFFIX: dict[str, str] = {**dict.fromkeys(JSON_LINES, "jsonl"), ".parquet": "parquet"}
"""Suffix of a file's name, without that of a compression -> its kind; every other is text."""


def _read_plain(file: SourceFile, text_key: str) -> Iterator[Chunk]:
    refuse_json_lines(file.paths[0], text_key, file.limits)
    yield from read_text(file.paths[0], file.separator, file.limits)


def find_sources(config: DataConfig, kept: Kept | None = None) -> list[SourceFile]:
    """The files of `config.source`, then those of `config.valid`.

    With `data.max_tokens`, files that lie beyond them are left out, and `kept` gives the text of datasets on
    the hub.

    Raises:
        UsageError: a source that does not exist or is empty, or a file both trained on and held out.
        LowriseError: a dataset that cannot be had, or the package that reads it is absent.
    """
    split, limits = "train" if config.valid else None, token_limits(config)
    kept = kept if limits else None
    train: list[SourceFile] = []
    for spec in config.source:
        limit = limits.get(spec, limits.get(""))
        train += _expand(spec, split, config.document_separator, kept, limit)
    train = [train[i] for i in within([(file.source, file.size) for file in train], limits)]
    valid = find_held_out(config, kept)
    trained_on = {path.resolve(): file for file in train if file.dataset is None for path in file.paths}
    for file in valid:
        if file.dataset is None and file.paths[0].resolve() in trained_on:
            raise UsageError(
                f"{file.name} is in data.source and in data.valid, so it would be trained on and held out: "
                "name sources without it, or leave data.valid out to hold out a fraction of the documents."
            )
    return _read_within_limits(train, config) + valid


def find_held_out(config: DataConfig, kept: Kept | None) -> list[SourceFile]:
    """The files of `config.valid` alone. Raises as `find_sources`."""
    separator = config.document_separator
    files = [file for spec in config.valid for file in _expand(spec, "valid", separator, kept, None)]
    return _read_within_limits(files, config)


def _read_within_limits(files: list[SourceFile], config: DataConfig) -> list[SourceFile]:
    """The files with what `config` says of long lines, of compressed text that grows, and of samples."""
    limits = Limits(config.max_line_bytes, config.max_expansion, config.max_expanded_bytes)
    files = [replace(file, limits=limits) for file in files]
    if not config.is_samples or not files:
        return files
    other = next((file for file in files if file.kind != "jsonl"), None)
    if other is not None:
        raise UsageError(
            f'{other.name} is no JSON Lines, which data.format = "samples" reads: give a file that ends in '
            f"{', '.join(JSON_LINES[:-1])} or {JSON_LINES[-1]} (a dataset's `to_json` writes one)."
        )
    how = sample_format(config)
    return [replace(file, kind="samples", samples=how) for file in files]


def _expand(
    spec: str, split: str | None, separator: str | None, kept: Kept | None, limit: int | None
) -> list[SourceFile]:
    paths = kept(spec, limit) if kept is not None and is_on_hub(spec) else None
    if paths is None:
        return [replace(file, source=spec) for file in _files_of(spec, split, separator)]
    files = [_file(path, split, separator) for path in paths]
    return [replace(file, source=spec, name=f"{spec}/{file.paths[0].name}") for file in files]


def _files_of(spec: str, split: str | None, separator: str | None) -> list[SourceFile]:
    if spec == "builtin":
        return _builtin(split)
    if spec.startswith("hf:"):
        return [_dataset(spec, split)]
    path = Path(spec).expanduser()
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = walk(path)
    else:
        files = matching(str(path))
    if not files:
        if path.exists() and not path.is_dir():
            raise UsageError(
                f"The source {spec!r} is a pipe or a device, and text is read more than once: write it to a "
                "file first."
            )
        what = "holds no files" if path.is_dir() else "matches no file"
        raise UsageError(
            f"The source {spec!r} {what} (looked at {path.absolute()}): give the path of a text, JSON Lines "
            'or Parquet file, a directory or a glob; "builtin" and "hf:NAME" are sources too.'
        )
    return [_file(file, split, separator) for file in files]


def left_out(config: DataConfig) -> list[Path]:
    """What lies in the folders among the sources and is not read: `is_left_out`, without what is below it."""
    left: list[Path] = []
    for spec in dict.fromkeys((*config.source, *config.valid)):
        path = Path(spec).expanduser()
        if spec != "builtin" and not spec.startswith("hf:") and path.is_dir():
            walk(path, left=left)
    return left


def _file(path: Path, split: str | None, separator: str | None) -> SourceFile:
    bare = path.with_suffix("") if compression_of(path) else path
    suffix = bare.suffix.lower()
    if suffix == ".parquet" and bare != path:
        raise UsageError(f"{path} is a compressed Parquet file: decompress it, Parquet compresses by itself.")
    kind = KIND_OF_SUFFIX.get(suffix, "text")
    return SourceFile(
        kind, str(path), path.stat().st_size, (path,), split, separator=separator if kind == "text" else None
    )


def _builtin(split: str | None) -> list[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    names = []
    for directory, subdirectories, files in os.walk(root):
        # In place, so that the walk does not enter them: site-packages may be huge.
        subdirectories[:] = [name for name in subdirectories if name not in BUILTIN_LEFT_OUT]
        names += [
            (Path(directory) / file).relative_to(root).as_posix() for file in files if file.endswith(".py")
        ]
    if not names:
        raise LowriseError(
            f"The built-in corpus is the standard library's source, and {root} holds no .py files (a Python "
            "without its sources): name a text of your own with data.source."
        )
    return [
        SourceFile(
            "text", f"builtin/{name}", (root / name).stat().st_size, (root / name,), split, split_key=name
        )
        for name in sorted(names)
    ]


def _dataset(spec: str, split: str | None) -> SourceFile:
    datasets = package(spec)
    if is_on_hub(spec) and not is_offline():
        require_reachable(spec)
    name, *rest = spec.removeprefix("hf:").split(":")
    local = Path(name).expanduser()
    try:
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(local))
            wanted = rest[0] if rest else "train"
        else:
            wanted = rest[1] if len(rest) > 1 else "train"
            found = datasets.load_dataset(name, rest[0] if rest and rest[0] else None, split=wanted)
    except (
        Exception
    ) as error:  # the package raises a dozen kinds, from no network to an unknown configuration
        raise LowriseError(
            f"The dataset {spec!r} cannot be loaded ({type(error).__name__}: {error}): write hf:NAME, "
            "hf:NAME:config or hf:NAME:config:split, or the directory of a saved dataset."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if wanted not in found:
            raise UsageError(
                f"The dataset {spec!r} has no split {wanted!r}: it has {', '.join(map(repr, found))}."
            )
        found = found[wanted]
    paths = tuple(Path(entry["filename"]) for entry in found.cache_files)
    size = sum(path.stat().st_size for path in paths)
    return SourceFile("dataset", spec, max(size, 1), paths, split, dataset=found)
