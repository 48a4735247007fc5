"""Every block of a prepared corpus is compared with its checksum before the corpus is first used.

A small corpus is verified at each start. Of a larger one, `verified.json` beside the shards remembers when
that was done and which files they were (size, times of change, inode, device); it counts for a week while all
of this is the same, so that what decays on a disk, which changes none of it, is found too.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lowrise.data.corpus import Corpus
from lowrise.data.hashes import stamp_of
from lowrise.data.index import INDEX
from lowrise.files import is_known, read_json, require_seal, sealed, write_whole

VERIFIED = "verified.json"
REMEMBER_FROM_BYTES = 64 * 2**20  # a tenth of a second of hashing: below, each start verifies
WEEK = 7 * 86_400


def is_large(corpus: Corpus) -> bool:
    """Whether it is worth a file to remember that the corpus has been verified."""
    return bytes_of(corpus) >= REMEMBER_FROM_BYTES


def needs_verification(corpus: Corpus) -> bool:
    """Whether the shards are to be read and compared with their checksums before use."""
    if not is_large(corpus):
        return True
    try:
        record = read_json(corpus.directory / VERIFIED)
        if not isinstance(record, dict):
            return True
        require_seal(record)
        at = record.get("at")
        recent = is_known(at) and 0 <= time.time() - at < WEEK
        return not recent or record.get("files") != stamps_of(corpus)
    except (OSError, ValueError):
        return True


def remember_verification(corpus: Corpus, files: dict[str, Any]) -> None:
    """Write down that the files, of which `stamps_of` said this before, were verified now; where nothing can
    be written they are verified again next time.
    """
    if not is_large(corpus):
        return
    try:
        record = sealed({"at": time.time(), "files": files})
        write_whole(corpus.directory / VERIFIED, json.dumps(record))
    except OSError:
        return


def bytes_of(corpus: Corpus) -> int:
    """What `Corpus.verify` reads."""
    return sum(path.stat().st_size for path in _shards(corpus))


def _shards(corpus: Corpus) -> list[Path]:
    return [*corpus.train.paths, *corpus.valid.paths]


def stamps_of(corpus: Corpus) -> dict[str, Any]:
    """What would change if a shard, or the index, were written or replaced."""
    return {path.name: stamp_of(path) for path in [corpus.directory / INDEX, *_shards(corpus)]}
