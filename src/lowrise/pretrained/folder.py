"""A Hugging Face folder, dense or factored, as a `Llama` of ours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowrise.data import Tokenizer
from lowrise.errors import UsageError
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.model.finite import require_finite
from lowrise.pretrained.shape import llama_of, read_json

_ALPHA = 32.0  # of SparseLowRankLinear; the scale alpha / r is taken out of B


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of the safetensors files in a folder, each read when it is asked for, as float32."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            self._files = {n: folder / f for n, f in read_json(index).get("weight_map", {}).items()}
        else:
            file = folder / "model.safetensors"
            if not file.is_file():
                raise UsageError(
                    f"{folder} has no model.safetensors and no index of several: save the model with "
                    "save_pretrained, which writes safetensors."
                )
            self._files = dict.fromkeys(_names(file), file)

    @property
    def files(self) -> list[Path]:
        """The files that hold them, by name."""
        return sorted(set(self._files.values()))

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        try:
            with safe_open(file, "pt") as opened:
                tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file} cannot be read ({error}): copy it again.") from None
        return tensor.float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is not a whole safetensors file ({error}): copy it again.") from None


@dataclass(frozen=True)
class Pretrained:
    """What a folder holds, in our terms."""

    folder: Path
    config: LlamaConfig
    layer: str
    """"dense", or the name of the one layer that holds all factored maps."""
    ranks: dict[str, int] = field(default_factory=dict)
    """Full name of each factored map -> rank."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of that layer's constructor."""
    end_token: str | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All weights under our names, float32. Raises `UsageError` for one that has no place here."""
        return _our_tensors(self, FolderTensors(self.folder))

    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer.json; its end-of-text token ends documents. `UsageError` where there is
        none: old models have other files, which the libraries that read them turn into it."""
        if not (self.folder / "tokenizer.json").is_file():
            remedy = "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)."
            if (self.folder / "tokenizer.model").is_file():
                remedy += (
                    " Then compare its ids with sentencepiece's of tokenizer.model: the class that reads it "
                    "decides them (docs/import.md)."
                )
            raise UsageError(f"{self.folder} has no tokenizer.json: save the tokenizer into it, {remedy}")
        return Tokenizer.load(self.folder, separator_token=self.end_token)

    def model(self) -> Llama:
        """The model with its weights, in evaluation mode."""
        factored = self.layer != "dense"
        model = build_model(
            self.config,
            layer=self.layer,
            rank=dict(self.ranks) if factored else None,
            layer_options=self.options if factored else None,
            device="meta",
        ).to_empty(device="cpu")
        own, there = model.state_dict(), self.tensors()
        for name, tensor in own.items():
            if name not in there and self.config.tie_embeddings and name == "lm_head.weight":
                continue
            if name not in there or there[name].shape != tensor.shape:
                found = f"{name} is {tuple(there[name].shape)}" if name in there else f"there is no {name}"
                raise UsageError(
                    f"{self.folder} does not fit its config.json: {found}, which should be "
                    f"{tuple(tensor.shape)}."
                )
            tensor.copy_(there[name])
        return model.eval()

    def sound_model(self) -> Llama:
        """`model`, whose weights are all numbers. Raises `UsageError` for others."""
        model = self.model()
        require_finite(dict(model.named_parameters()), self.folder, "Give a sound model.")
        return model


def open_folder(folder: str | Path) -> Pretrained:
    """Read what a folder says about its model; the weights are read later. Raises `UsageError` for a family,
    a setting or a form that our model has not.
    """
    folder = Path(folder).expanduser()
    values = read_json(folder / "config.json")
    config = llama_of(values, folder)
    maps = {f"model.{name}": entry for name, entry in (values.get("factors") or {}).items()}
    layer, options = _one_layer(folder, config, maps)
    ranks = {name: int(entry["rank"]) for name, entry in maps.items()}
    return Pretrained(folder, config, layer, ranks, options, _end_token(folder))


def weights_digest(folder: Path) -> str:
    """SHA-256 of the files of a folder's weights, wherever it lies. Reads all of them."""
    digests = []
    for file in FolderTensors(folder).files:
        try:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise UsageError(f"{file} cannot be read ({error}): copy it again.") from None
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _end_token(folder: Path) -> str | None:
    """What the folder's tokenizer calls its end-of-text token; None where it does not say."""
    file = folder / "tokenizer_config.json"
    token = read_json(file).get("eos_token") if file.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _one_layer(folder: Path, config: LlamaConfig, maps: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The layer that holds every factored map, and its options; a run has one."""
    if not maps:
        return "dense", {}
    bent = {name for name, entry in maps.items() if entry.get("activation", "none") != "none"}
    sparse = {name for name, entry in maps.items() if entry.get("sparse")}
    if not bent and not sparse:
        return "lowrank", {}
    if len(bent) == len(maps) and not sparse:
        return "cola", {"activation": "silu"}
    if len(sparse) == len(maps) and not bent:
        return "sltrain", {"delta": _density(folder, config, maps), "alpha": _ALPHA}
    odd = min(set(maps) - bent if bent else set(maps) - sparse)
    raise UsageError(
        f"{folder} mixes kinds of factored maps ({odd} differs from others), and a model of ours has one "
        "layer for all of them."
    )


def _density(folder: Path, config: LlamaConfig, maps: dict[str, Any]) -> float:
    """A share delta with floor(delta m n) stored entries in every map."""
    kv = config.kv_heads * config.head_dim
    sizes = {"k_proj": config.hidden_size * kv, "v_proj": config.hidden_size * kv}
    sizes |= dict.fromkeys(("q_proj", "o_proj"), config.hidden_size**2)
    sizes |= dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj"), config.hidden_size * config.intermediate_size
    )
    counts = [(int(entry["sparse"]), sizes[name.rpartition(".")[2]]) for name, entry in maps.items()]
    delta = (max(z / mn for z, mn in counts) + min((z + 1) / mn for z, mn in counts)) / 2
    if any(math.floor(delta * mn) != z for z, mn in counts):
        raise UsageError(f"{folder} has sparse parts of different density, and the layer sltrain has one.")
    return delta


def _our_tensors(source: Pretrained, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name in there:
        map_name, _, kind = name.rpartition(".")
        factor = map_name.rpartition(".")
        if factor[0] in source.ranks and kind == "weight" and factor[2] in ("down", "up"):
            key, value = _factor(source, factor[0], factor[2], there[name])
            ours[key] = value
        elif map_name in source.ranks and kind in ("values", "index"):
            ours[name] = there[name]
        elif kind == "weight" and map_name not in source.ranks:
            if name == "lm_head.weight" and source.config.tie_embeddings:
                _require_tied(source, there)
            else:
                ours[name] = there[name]
        elif not _without_effect(kind, there, name):
            raise UsageError(
                f"{source.folder} cannot be taken in: it has {name}, for which our model has no place"
                f"{' (our maps have no biases)' if kind == 'bias' else ''}."
            )
    norms = [name for name in ours if name.endswith(("q_norm.weight", "k_norm.weight"))]
    if norms:
        raise UsageError(
            f"{source.folder} cannot be taken in: it has {norms[0]}, and our attention has no norms of "
            "q and k."
        )
    return ours


def _require_tied(source: Pretrained, there: Mapping[str, Tensor]) -> None:
    embedding = there.get("model.embed_tokens.weight")
    if embedding is not None and not torch.equal(embedding, there["lm_head.weight"]):
        raise UsageError(
            f"{source.folder} has a head of its own, lm_head.weight, and its config.json says "
            "tie_word_embeddings = true, by which it would be lost: set that to false to keep it, or remove "
            "it from the file."
        )


def _without_effect(kind: str, there: Mapping[str, Tensor], name: str) -> bool:
    return kind == "inv_freq" or (kind == "bias" and not torch.any(there[name]))


def _factor(source: Pretrained, name: str, factor: str, value: Tensor) -> tuple[str, Tensor]:
    if factor == "up":
        return f"{name}.A", value
    scale = _ALPHA / source.ranks[name] if source.layer == "sltrain" else 1.0
    return f"{name}.B", (value.T / scale).contiguous()
