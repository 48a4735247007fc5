"""`lowrise import`: a Hugging Face folder becomes a run for `eval`, `generate`, `export` and `init.run`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lowrise import __version__
from lowrise.checkpoint import CheckpointStore
from lowrise.config import RunConfig, from_dict
from lowrise.errors import UsageError
from lowrise.export.folder import whole_folder
from lowrise.model import LlamaConfig
from lowrise.pretrained.folder import Pretrained, open_folder
from lowrise.pretrained.options import ImportOptions
from lowrise.runs.directory import RunDirectory
from lowrise.runs.load import NO_CORPUS
from lowrise.runs.weights import model_tensors

METHOD_OF = {"dense": "adamw", "lowrank": "lowrank", "cola": "cola", "sltrain": "sltrain"}


def import_run(options: ImportOptions) -> RunConfig:
    """Write the run, whole or not at all: configuration, tokenizer, and a checkpoint of step 0."""
    source = open_folder(options.folder)
    run = options.run.expanduser()
    tokenizer = source.tokenizer()
    check_vocabulary(source.config, tokenizer.vocab_size, source.folder)
    config = config_of(source, run, options.source)
    origin = {"format": "run", "lowrise": __version__, "layer": source.layer}
    with whole_folder(run, force=options.force, origin=origin, flag="--run") as aside:
        model = source.sound_model()
        RunDirectory(aside).write_settings(config)
        tokenizer.write(aside / "tokenizer.json")
        numbers = {"corpus": NO_CORPUS, "step": 0, "tokens": 0, "mathematics": config.mathematics}
        CheckpointStore(aside / "checkpoints").save(0, {"model": model_tensors(model)}, numbers)
    return config


def check_vocabulary(config: LlamaConfig, entries: int, folder: Path) -> None:
    """Refuse a tokenizer with ids that the embedding has no row for."""
    if entries > config.vocab_size:
        raise UsageError(
            f"{folder} has a tokenizer of {entries} entries and an embedding of {config.vocab_size} rows: "
            "they do not belong together."
        )


def config_of(source: Pretrained, run: Path, text: tuple[str, ...]) -> RunConfig:
    """The configuration of such a run. The tokenizer is the run's own file."""
    values: dict[str, Any] = {
        "method": METHOD_OF[source.layer],
        "model": {k: v for k, v in dataclasses.asdict(source.config).items() if v is not None},
        "data": {"source": list(text), "tokenizer": str(run.absolute() / "tokenizer.json")},
        "train": {"seq_len": min(128, source.config.max_seq_len)},
    }
    if source.end_token is not None:
        values["data"]["separator_token"] = source.end_token
    if source.layer != "dense":
        values["layer"] = {"rank": _rank(source), **source.options}
    return from_dict(values, source=str(source.folder))


def _rank(source: Pretrained) -> int | dict[str, int]:
    """One number where all maps are factored at the same rank, else a table of names."""
    same = set(source.ranks.values())
    everywhere = len(source.ranks) == 7 * source.config.num_layers
    return same.pop() if everywhere and len(same) == 1 else dict(source.ranks)
