"""The text of the last stage, prepared while the others run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lowrise.data import Corpus, DataConfig, prepare

from .record import Record
from .training import vocabulary


def run(options: argparse.Namespace, record: Record) -> None:
    os.nice(10)
    corpus_of(options)


def corpus_of(options: argparse.Namespace) -> Corpus:
    """Prepared, or opened where that has been done."""
    return prepare(data_config(options))


def data_config(options: argparse.Namespace) -> DataConfig:
    source = ("builtin",) if options.text is None else (str(options.text.resolve()),)
    cache = str(Path(options.work) / "data")
    return DataConfig(source=source, vocab_size=vocabulary(options.preset), cache=cache)
