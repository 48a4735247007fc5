"""Which kind of folder it is, and the model in it: by the readers that other commands have for each kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lowrise.checkpoint.manifest import MANIFEST
from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.pretrained.factorized_model import MARK, WEIGHTS, from_pretrained
from lowrise.pretrained.folder import open_folder
from lowrise.pretrained.native import is_native, open_native
from lowrise.pretrained.shape import read_json
from lowrise.runs.load import load_run


@dataclass(frozen=True)
class Source:
    """A model on the CPU, and where it is from."""

    kind: str
    model: nn.Module
    step: int | None = None
    """Of a run, or of the run that was exported."""
    method: str | None = None


def open_source(folder: Path, step: int | None, console: Console) -> Source:
    """The model of a folder. Raises `UsageError` for what holds none that can be read."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise UsageError(
            f"{folder} {what}: give the folder of a run, of an export or of a Hugging Face model."
        )
    if (folder / "config.toml").is_file():
        run = load_run(folder, "cpu", console, step=step)
        return Source("run", run.model, run.step, run.config.method)
    if (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder} is one checkpoint: give its run's folder, and --step for this checkpoint."
        )
    if step is not None:
        raise UsageError(f"{folder} is no run and has no checkpoints: leave --step {step} out.")
    if (folder / "config.json").is_file():
        if MARK in read_json(folder / "config.json") and (folder / WEIGHTS).is_file():
            return Source("factorized Hugging Face model", from_pretrained(folder))
        try:
            source = open_folder(folder)
        except UsageError as refused:
            return Source("Hugging Face folder, dense", _by_transformers(folder, refused))
        form = "dense" if source.layer == "dense" else "factored"
        return Source(f"Hugging Face folder, {form}", source.model())
    if is_native(folder):
        native = open_native(folder)
        return Source("safetensors of a run", native.model, native.step, native.config.method)
    if any(folder.glob("*.gguf")):
        raise UsageError(
            f"{folder} holds a GGUF file, which merges factors: give the run, or an export to hf."
        )
    raise UsageError(
        f"{folder} is no run (no config.toml), no Hugging Face folder (no config.json) and no export of "
        "ours: give one of these."
    )


def _by_transformers(folder: Path, refused: UsageError) -> nn.Module:
    """A causal language model that ours cannot compute, which an audit does not ask for. Raises `refused`
    where transformers cannot read it whole either; weights that are not in the folder would be random.
    """
    try:
        import transformers
    except ImportError:
        raise refused from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader: Any = transformers.AutoModelForCausalLM
    try:
        model, told = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception:  # of whatever kind: what is wrong with the folder has been said
        raise refused from None
    if told["missing_keys"] or told["unexpected_keys"] or told["mismatched_keys"]:
        raise refused
    if not isinstance(model, nn.Module):
        raise refused
    return model.float().eval()
