"""What a run takes from the folder that `init.model` names, besides the weights: shape, tokenizer, ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowrise.config import FactorizedSection, RunConfig
from lowrise.data import Tokenizer
from lowrise.errors import UsageError
from lowrise.export.forms import check_dense, tensors
from lowrise.layers.base import LowRankLayer
from lowrise.layers.registry import layer_class
from lowrise.model import Llama, LlamaConfig
from lowrise.pretrained.folder import Pretrained, open_folder
from lowrise.pretrained.import_run import check_vocabulary

# Not what the weights mean, but how a run uses them.
_FREE = ("max_seq_len", "init_std", "recompute")


def adopted(config: RunConfig) -> RunConfig:
    """The configuration with the folder's shape and tokenizer where it names none, and its ranks where
    `layer.rank` is "init"; as it is without `init.model`. What it does name stays, and `check_fits` looks at
    it when the weights are loaded.
    """
    if config.init.model is None:
        return config
    folder = open_folder(config.init.model)
    model: Any = config.model
    shape = {k: v for k, v in dataclasses.asdict(folder.config).items() if k not in ("init_std", "recompute")}
    unset = {key: value for key, value in shape.items() if getattr(model, key) is None}
    data = config.data
    if data.tokenizer is None:
        tokenizer = folder.tokenizer()
        check_vocabulary(folder.config, tokenizer.vocab_size, folder.folder)
        data = dataclasses.replace(
            data,
            tokenizer=str(folder.folder / "tokenizer.json"),
            separator_token=data.separator_token or folder.end_token,
        )
    layer = config.layer
    if isinstance(layer, FactorizedSection) and layer.rank == "init":
        if not folder.ranks:
            raise UsageError(f'layer.rank = "init", and {folder.folder} has no factors: give a rank.')
        layer = dataclasses.replace(layer, rank=dict(folder.ranks))
    return dataclasses.replace(config, model=dataclasses.replace(model, **unset), data=data, layer=layer)


def check_fits(folder: Pretrained, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Raise `UsageError` where equal weights would be another function here, or ids other tokens."""
    assert isinstance(model, Llama)
    for key, here, there in _differences(model.config, folder.config):
        raise UsageError(
            f"init.model = {folder.folder} does not fit: model.{key} is {there} there and {here} here; leave "
            "it out."
        )
    if folder.tokenizer().sha256 != tokenizer.sha256:
        raise UsageError(
            f"init.model = {folder.folder} has another tokenizer: set data.tokenizer to "
            f"{folder.folder / 'tokenizer.json'}, or leave it out."
        )


def weights_for(folder: Pretrained, model: nn.Module) -> dict[str, Tensor]:
    """The folder's weights as the model's layers may take them over: factors where all layers are of their
    kind and rank, else what the factors multiply out to. `UsageError` where that is no matrix.
    """
    if all(_same_kind(model.get_submodule(name), folder, rank) for name, rank in folder.ranks.items()):
        return folder.tensors()
    whole = folder.model()
    check_dense(whole, remedy=f"continue from {folder.folder} with the layer {folder.layer} at its own ranks")
    return dict(tensors(whole, {}, torch.float32))


def cut_ranks(folder: Pretrained, model: nn.Module) -> str:
    """A sentence on factors that are longer than the model's layers can hold; empty where none is."""
    layers = {name: model.get_submodule(name) for name in folder.ranks}
    cut = [
        (folder.ranks[name], layer.rank)
        for name, layer in layers.items()
        # a layer with a dense part keeps every weight
        if isinstance(layer, LowRankLayer) and layer.rank < folder.ranks[name] and layer.factored_form()
    ]
    if not cut:
        return ""
    return (
        f"warning: its factors of rank {_span(there for there, _ in cut)} are cut to rank "
        f'{_span(here for _, here in cut)}; layer.rank = "init" keeps the ranks of the folder.'
    )


def _span(ranks: Iterable[int]) -> str:
    found = list(ranks)
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"


def _same_kind(layer: nn.Module, folder: Pretrained, rank: int) -> bool:
    """Whether the layer computes with such factors what the folder's does. (Another density of a sparse part
    has other shapes, which are compared where they are loaded.)
    """
    options = {key: value for key, value in folder.options.items() if key != "delta"}
    return (
        type(layer) is layer_class(folder.layer)
        and layer.rank == rank
        and all(getattr(layer, key) == value for key, value in options.items())
    )


def _differences(here: LlamaConfig, there: LlamaConfig) -> list[tuple[str, Any, Any]]:
    def resolved(config: LlamaConfig) -> dict[str, Any]:
        return {**dataclasses.asdict(config), "num_kv_heads": config.kv_heads}

    own, other = resolved(here), resolved(there)
    return [(key, own[key], other[key]) for key in own if key not in _FREE and own[key] != other[key]]
