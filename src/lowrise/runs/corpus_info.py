"""`lowrise data info`; what needs torch is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from lowrise.console import Console
from lowrise.errors import UsageError


@dataclass(kw_only=True)
class DataInfo:
    """What a prepared corpus holds: documents, tokens, bytes, tokenizer."""

    folder: Positional[Path]
    """Folder of a prepared corpus, or of a run."""
    verify: bool = False
    """Read every shard and compare it with its checksums."""
    trust: bool = False
    """Read the files that a run of somebody else's names in its config.toml."""


def corpus_info(command: DataInfo, console: Console) -> str:
    """What a corpus holds, or that of a run's recipe, as text."""
    folder = command.folder.expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(f"{folder} {what}: give the folder of a prepared corpus, or of a run.")
    from lowrise.config import load
    from lowrise.data import open_corpus
    from lowrise.data.progress import prepare_with_progress, verify_with_progress
    from lowrise.runs.trust import require_known_code, require_trust

    recipe = folder / "config.toml"
    if recipe.exists():
        require_known_code(folder)
        remedy = "look into the corpus itself, lowrise data info CORPUS"
        require_trust(folder, trust=command.trust, remedy=remedy)
    corpus = prepare_with_progress(load(recipe).data, console) if recipe.exists() else open_corpus(folder)
    if command.verify:
        verify_with_progress(corpus, console)
        return f"{corpus}\n\nEvery block is as it was written."
    return str(corpus)
