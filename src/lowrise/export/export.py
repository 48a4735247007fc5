"""`lowrise export`: the newest checkpoint of a run as a folder that others read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrise import __version__
from lowrise.console import Console
from lowrise.data.chat import find_template
from lowrise.errors import UsageError
from lowrise.export.folder import MARK, whole_folder
from lowrise.export.gguf_file import require_gguf, write_gguf
from lowrise.export.huggingface import write_folder
from lowrise.export.native import write_native
from lowrise.export.options import ExportOptions
from lowrise.export.shards import parse_size
from lowrise.export.tokenizer_files import add_template
from lowrise.model.finite import require_finite
from lowrise.runs.load import EARLIER, TrainedRun, load_run
from lowrise.runs.weights import model_tensors

DTYPES: dict[str, tuple[str, ...]] = {
    "hf": ("float32", "bfloat16", "float16"),
    "safetensors": ("float32", "bfloat16", "float16"),
    "gguf": ("float32", "float16", "q8_0"),
}


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    step: int
    size_bytes: int


def export_run(options: ExportOptions, console: Console) -> Exported:
    """Load the run on the CPU and write the folder, whole or not at all. Raises `UsageError` for options that
    do not go together, a place that is taken, and a model that the form cannot hold.
    """
    shard_bytes = _check(options)
    run = load_run(options.run.expanduser(), "cpu", console, weights=options.weights)
    require_finite(model_tensors(run.model), options.run, EARLIER)
    if run.choice:
        console.print(run.choice, highlight=False)
    folder = (options.out or options.run / "export" / _name(options)).expanduser()
    template = find_template([options.run.expanduser()])
    with whole_folder(folder, force=options.force, origin=_origin(options, run)) as aside:
        if options.to == "gguf":
            file = aside / "model.gguf"
            write_gguf(file, run.model, run.tokenizer, options.dtype, run.config.method, template)
        elif options.to == "safetensors":
            write_native(aside, run, _torch_dtype(options.dtype))
        else:
            form = options.form or "dense"
            write_folder(aside, run.model, run.tokenizer, form, _torch_dtype(options.dtype), shard_bytes)
            if template is not None:
                add_template(aside, run.tokenizer, template)
    size = sum(entry.stat().st_size for entry in folder.iterdir() if entry.name != MARK)
    return Exported(folder, run.step, size)


def _check(options: ExportOptions) -> int:
    """What can be said before anything is loaded. Returns the bytes of a shard."""
    if options.dtype not in DTYPES[options.to]:
        raise UsageError(
            f"--dtype {options.dtype} is not for --to {options.to}: choose one of "
            f"{', '.join(DTYPES[options.to])}."
        )
    if options.to == "gguf":
        require_gguf()
        if options.form == "factored":
            raise UsageError(
                "A GGUF file of the llama family holds dense weights: leave --form factored out, or take "
                "--to hf."
            )
    if options.to == "safetensors" and options.form is not None:
        raise UsageError(
            f"--to safetensors holds the run's own tensors: leave --form {options.form} out, or take --to hf."
        )
    if options.to != "hf" and options.shard_size is not None:
        raise UsageError(f"--to {options.to} is one file: leave --shard-size {options.shard_size} out.")
    return parse_size(options.shard_size or "5GB")


def _name(options: ExportOptions) -> str:
    form = (options.form or "dense") if options.to == "hf" else ""
    dtype = "" if options.dtype == "float32" else options.dtype
    weights = "" if options.weights == "raw" else options.weights
    return "-".join(part for part in (options.to, form, dtype, weights) if part)


def _origin(options: ExportOptions, run: TrainedRun) -> dict[str, Any]:
    return {
        "format": _name(options),
        "lowrise": __version__,
        "method": run.config.method,
        "layer": run.config.layer.name,
        "seed": run.config.seed,
        "recipe": run.config.hash,
        "corpus": run.corpus,
        "step": run.step,
        "weights": run.weights,
        "seq_len": run.config.train.seq_len,
    }


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
