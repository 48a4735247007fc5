"""Where the time of preparing and opening a corpus goes: text to ids, ids to shards, checksums.

Four rows for one source. The library's `encode_batch` and `encode_batch_fast` (no offsets) on the same
documents, ids compared; `prepare` from text to verified shards, the tokenizer given; the verification alone.
MB are 10^6 bytes of text for the first three, of shards for the last; a second is one of this process's
processor time, and one of the clock.

    python benchmarks/prepare_data.py [--source builtin] [--tokenizer FILE] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
from common import publish

from lowrise.data import DataConfig, prepare
from lowrise.data.corpora import find_sources
from lowrise.data.pieces import pieces

Seconds = tuple[float, float]  # of the processor, of the clock


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="builtin")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--megabytes", type=float, default=2.0, help="of text for the first two rows")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(source=options.source, tokenizer=_tokenizer(options, folder))
        texts = _texts(config, options.megabytes * 1e6)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        library = tokenizers.Tokenizer.from_file(config.tokenizer)
        calls: dict[str, tuple[float, Callable[[], Any]]] = {
            "encode_batch": (megabytes, lambda: _ids(library.encode_batch, texts)),
            "encode_batch_fast": (megabytes, lambda: _ids(library.encode_batch_fast, texts)),
        }
        same = len({str(call()) for _, call in calls.values()}) == 1
        rates = _rates(calls, options.rounds)
        config.cache = f"{folder}/cache"
        seconds, corpus = _timed(lambda: prepare(config))
        text = (corpus.train.text_bytes + corpus.valid.text_bytes) / 1e6
        rates["prepare, whole"] = (text / seconds[0], text / seconds[1])
        shards = sum(path.stat().st_size for path in (*corpus.train.paths, *corpus.valid.paths)) / 1e6
        rates |= _rates({"verify": (shards, corpus.verify)}, options.rounds)
    rows = [(name, f"{processor:.2f}", f"{clock:.2f}") for name, (processor, clock) in rates.items()]
    publish(
        "prepare_data_cpu",
        f"{Path(options.source).name}: {text:.1f} MB of text, {shards:.1f} MB of shards; ids "
        f"{'equal' if same else 'DIFFER'}",
        ("what", "MB per processor second", "MB per second"),
        rows,
        {"rates": rates, "ids_equal": same, "tokenizers": tokenizers.__version__},
        torch.device("cpu"),
    )


def _tokenizer(options: argparse.Namespace, folder: str) -> str:
    """The file that was given, or one that is trained on the source."""
    if options.tokenizer:
        return str(options.tokenizer)
    config = DataConfig(source=options.source, cache=f"{folder}/first", tokenizer_sample_bytes=2**21)
    return str(prepare(config).directory / "tokenizer.json")


def _texts(config: DataConfig, size: float) -> list[str]:
    found = (piece.text for file in find_sources(config) for piece in pieces(file, config))
    texts: list[str] = []
    total = 0
    for text in islice(found, 100_000):
        texts.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return texts


def _ids(call: Callable[..., list[tokenizers.Encoding]], texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in call(texts, add_special_tokens=False)]


def _timed(work: Callable[[], Any]) -> tuple[Seconds, Any]:
    processor, clock = time.process_time(), time.perf_counter()
    result = work()
    return (time.process_time() - processor, time.perf_counter() - clock), result


def _rates(calls: dict[str, tuple[float, Callable[[], Any]]], rounds: int) -> dict[str, tuple[float, float]]:
    """MB per second of each call: medians of rounds in which they take turns."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (_, call) in calls.items():
            seconds[name].append(_timed(call)[0])
    medians = {
        name: [statistics.median(column) for column in zip(*s, strict=True)] for name, s in seconds.items()
    }
    return {name: (calls[name][0] / medians[name][0], calls[name][0] / medians[name][1]) for name in calls}


if __name__ == "__main__":
    main()
