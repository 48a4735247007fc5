"""A model to use, whatever form it lies in: a run, or any folder that `lowrise export` writes.

| in the place | what it is | tokenizer |
|---|---|---|
| `config.toml` | a run: its newest whole checkpoint | its `tokenizer.json` |
| `config.json` | a Hugging Face folder, dense or factored | its `tokenizer.json` |
| `*.gguf` (a file, or a folder with one) | a GGUF file of the llama family | within the file |
| `model.safetensors` with our metadata | our own names (`--to safetensors`) | its `tokenizer.json` |
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowrise.config import RunConfig, from_dict, load, options_of
from lowrise.config.writer import naming_writer
from lowrise.console import Console
from lowrise.data import Tokenizer
from lowrise.errors import UsageError
from lowrise.export.folder import MARK
from lowrise.export.shards import WHOLE
from lowrise.files import is_count
from lowrise.layers.base import notify_layers
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.model.finite import DIVERGED, finite_sentence, not_finite, require_finite
from lowrise.pretrained.folder import open_folder
from lowrise.pretrained.gguf_reader import gguf_in, read_gguf
from lowrise.pretrained.import_run import check_vocabulary, config_of
from lowrise.pretrained.shape import refuse_adapter
from lowrise.runs.chosen_weights import Weights
from lowrise.runs.directory import RunDirectory, open_run
from lowrise.runs.environment import choose_device
from lowrise.runs.load import EARLIER, NO_CORPUS, TrainedRun, load_run
from lowrise.runs.trust import require_trust
from lowrise.runs.weights import model_tensors


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run, and not a model in another form."""
    return RunDirectory(Path(folder).expanduser()).config.is_file()


def check_model(folder: str | Path) -> None:
    """`UsageError` for a place that holds no model in a form that `load_model` knows. Reads no weights."""
    place = Path(folder).expanduser()
    if is_run(place):
        open_run(place)
        return
    refuse_adapter(place)
    if place.is_file() and gguf_in(place) is None:
        raise UsageError(
            f"{place} is a file and no GGUF file: name the folder of a run, or one that lowrise export wrote."
        )
    if gguf_in(place) is None and not (place / "config.json").is_file() and not (place / WHOLE).is_file():
        raise UsageError(
            f"{place} is not a run directory (it has no config.toml), nor a model in another form (no "
            "config.json, no GGUF file, no model.safetensors). Name the folder of a run, or one that lowrise "
            "export wrote."
        )


def load_model(
    folder: str | Path, device: str, console: Console, *, weights: Weights = "raw", look: bool = False
) -> TrainedRun:
    """The model of a run or of a folder in another form, in evaluation mode. Raises `UsageError` for what is
    none or cannot be held, and for the average of a folder that holds weights of one kind.

    Weights that are NaN or infinite are refused too, or told as a warning where they are only looked at
    (`look`).
    """
    place = Path(folder).expanduser()
    check_model(place)
    loaded = _loaded(place, device, console, weights)
    tensors = model_tensors(loaded.model)
    if not look:
        require_finite(tensors, place, EARLIER if is_run(place) else "Export it again from a sound run.")
    elif names := not_finite(tensors):
        sentence = f"warning: {finite_sentence(place, names)}: {DIVERGED}."
        console.print(sentence, style="yellow", soft_wrap=True)
    return loaded


def _loaded(place: Path, device: str, console: Console, weights: Weights) -> TrainedRun:
    if is_run(place):
        return load_run(place, device, console, weights=weights)
    if weights != "raw":
        raise UsageError(
            f"--weights {weights}: {place} is no run and has its weights alone; name the run, or export it "
            f"with --weights {weights}."
        )
    chosen = choose_device(device)
    file = gguf_in(place)
    if file is not None:
        return _of_gguf(file, chosen)
    if (place / "config.json").is_file():
        return _of_folder(place, chosen)
    return _of_own_names(place, chosen)


def _of_folder(place: Path, device: torch.device) -> TrainedRun:
    source = open_folder(place)
    tokenizer = source.tokenizer()
    check_vocabulary(source.config, tokenizer.vocab_size, place)
    config = config_of(source, place, ("builtin",))
    config.train.seq_len = min(_told(place, "seq_len") or config.train.seq_len, source.config.max_seq_len)
    return TrainedRun(
        config, source.model().to(device), tokenizer, _told(place, "step"), "raw", NO_CORPUS, device
    )


def _of_gguf(file: Path, device: torch.device) -> TrainedRun:
    found = read_gguf(file)
    model = build_model(found.config, layer="dense", device="meta").to_empty(device="cpu")
    _fill(model, found.tensors, file)
    values = {
        "method": "adamw",
        "model": _shape(found.config),
        "data": {"separator_token": found.tokenizer.separator_token},
        "train": {"seq_len": min(_told(file.parent, "seq_len") or 128, found.config.max_seq_len)},
    }
    config = from_dict(values, source=str(file))
    return TrainedRun(
        config, model.to(device).eval(), found.tokenizer, _told(file.parent, "step"), "raw", NO_CORPUS, device
    )


def _of_own_names(place: Path, device: torch.device) -> TrainedRun:
    file = place / WHOLE
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None
    with naming_writer(metadata.get("lowrise"), str(file)):
        config, model, step = _described(file, metadata)
        tokenizer = Tokenizer.load(place, separator_token=config.data.separator_token)
        _fill(model, tensors, file)
    return TrainedRun(config, model.to(device).eval(), tokenizer, step, "raw", NO_CORPUS, device)


def _described(file: Path, metadata: Mapping[str, str]) -> tuple[RunConfig, Llama, int]:
    """What the metadata of an export in our own names say: configuration, model without weights, step."""
    try:
        shape = LlamaConfig(**json.loads(metadata["model"]))
        layers = json.loads(metadata["layers"])
        values = {k: v for k, v in tomllib.loads(metadata["recipe"]).items() if k not in ("plugin", "ema")}
        step = int(metadata["step"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{file} has no metadata of lowrise export --to safetensors ({error}): name a folder that it "
            "wrote, a Hugging Face folder or a run."
        ) from None
    config = from_dict(values | {"model": _shape(shape)}, source=str(file))
    options: dict[str, Any] = {}
    if layers:
        section = config.layer
        ranks = {name: int(entry["rank"]) for name, entry in layers.items()}
        options = {"layer": section.name, "rank": ranks, "layer_options": options_of(section)}
    model = build_model(shape, **({"layer": "dense"} | options), device="meta").to_empty(device="cpu")
    notify_layers(model, step, config.train.steps)
    return config, model, step


def template_folders(run: Path, trust: bool) -> list[Path]:
    """Where the chat template of a model may lie: its folder, and the tokenizer that its recipe names. Raises
    `UsageError` where that was named by somebody else.
    """
    check_model(run)
    if not is_run(run):
        return [run if run.is_dir() else run.parent]
    named = load(open_run(run).config).data.tokenizer
    if named is None:
        return [run]
    remedy = "copy a chat template that you know into the run's folder and take data.tokenizer out of it"
    require_trust(run, trust=trust, remedy=remedy, reads=[named])
    tokenizer = Path(named).expanduser()
    return [run, tokenizer if tokenizer.is_dir() else tokenizer.parent]


@torch.no_grad()
def _fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy tensors into the model. Raises `UsageError` for one that is not there or has another shape."""
    own: dict[str, Tensor] = dict(model.named_parameters())
    saved = model.state_dict().keys()
    own |= {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for name, tensor in own.items():
        there = tensors.get(name)
        if there is None or there.shape != tensor.shape:
            found = "is missing" if there is None else f"is {tuple(there.shape)}"
            raise UsageError(
                f"{file} does not fit what it says of its model: {name} {found}, which should be "
                f"{tuple(tensor.shape)}. Export it again."
            )
        tensor.copy_(there)


def _shape(config: LlamaConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(config).items() if value is not None}


def _told(place: Path, key: str) -> int:
    """A number that an export tells of the run it is from; 0 where nothing does."""
    try:
        number = json.loads((place / MARK).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return number if is_count(number) else 0
