"""From a configuration to the parts of a run: corpus, model, optimizer."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lowrise.config import DENSE, FactorizedSection, ModelSection, RunConfig, options_of
from lowrise.errors import UsageError
from lowrise.layers import LAYERS, ParamGroups, param_groups
from lowrise.layers.base import is_adaptive
from lowrise.layers.roles import IdleRule
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.optim import OPTIMIZERS, Optimizer
from lowrise.runs.transfer import Multiplier, Transfer, base_config, table


def llama_config(section: ModelSection, vocab_size: int, seq_len: int) -> LlamaConfig:
    """The preset with the section's overrides; the vocabulary is the tokenizer's unless the recipe fixes a
    larger one."""
    overrides = {k: v for k, v in dataclasses.asdict(section).items() if k != "preset" and v is not None}
    overrides.setdefault("vocab_size", vocab_size)
    if overrides["vocab_size"] < vocab_size:
        raise UsageError(
            f"model.vocab_size = {overrides['vocab_size']} is smaller than the tokenizer's {vocab_size} "
            "entries: leave it out, or give a larger one."
        )
    llama = LlamaConfig.preset(section.preset, **overrides)
    if "max_seq_len" in overrides or seq_len <= llama.max_seq_len:
        return llama
    return dataclasses.replace(llama, max_seq_len=seq_len)


def model_from(config: RunConfig, vocab_size: int, device: torch.device) -> Llama:
    """The model with its first weights, a function of the configuration and the seed."""
    if config.transfer.base is not None:
        model = _model(config, vocab_size, torch.device("meta"))
        _transfer(config, model).scale_first_weights(model)
        if device.type != "meta":
            model.to_empty(device=device)
            model.init_weights(config.seed)
        return model
    return _model(config, vocab_size, device)


def _model(config: RunConfig, vocab_size: int, device: torch.device) -> Llama:
    layer = config.layer
    llama = llama_config(config.model, vocab_size, config.train.seq_len)
    if not isinstance(layer, FactorizedSection):
        return build_model(llama, layer=DENSE, device=device, seed=config.seed)
    if layer.rank == "init":
        raise UsageError(
            'layer.rank = "init" takes ranks from the folder that init.model names, which has not been read: '
            "give ranks, or the configuration that lowrise.pretrained.adopt.adopted makes of it."
        )
    with _section("layer"):
        return build_model(
            llama,
            layer=layer.name,
            rank=layer.rank,
            layer_options=options_of(layer) | {"targets": layer.targets or None, "skip": layer.skip or None},
            device=device,
            seed=config.seed,
        )


def _transfer(config: RunConfig, model: Llama) -> Transfer:
    base = base_config(config, model.config)
    return Transfer(config, model, _model(base, model.config.vocab_size, torch.device("meta")))


def multipliers(config: RunConfig, model: Llama) -> list[Multiplier]:
    """What `[transfer]` multiplies rates and first weights by; none without a base."""
    if config.transfer.base is None:
        return []
    roles, options = OPTIMIZERS[config.optimizer.name].roles, options_of(config.optimizer)
    return _transfer(config, model).split(groups_of(config, model), roles, options)[1]


def build_optimizer(config: RunConfig, model: Llama, show: Callable[[str], None] | None = None) -> Optimizer:
    """The optimizer over every trainable parameter, each in the group of its role."""
    optimizer_class = OPTIMIZERS[config.optimizer.name]
    construct: Callable[..., Optimizer] = optimizer_class
    options = options_of(config.optimizer)
    if "seed" in options and options["seed"] is None:
        options["seed"] = config.seed
    if "total_steps" in options and options["total_steps"] is None:
        options["total_steps"] = config.train.steps
    groups = groups_of(config, model)
    if config.transfer.base is not None:
        groups, told = _transfer(config, model).split(groups, optimizer_class.roles, options)
        if show is not None:
            show(table(told))
    if show is not None:
        show(str(groups))
    with _section("optimizer"):
        return construct(groups, config.optimizer.lr, **options)


def check_parts(config: RunConfig) -> None:
    """Refuse options that the layers or the optimizer refuse, before there is a text: without weights, with a
    vocabulary of the size that is asked for."""
    vocab_size = getattr(config.model, "vocab_size", None) or max(1, config.data.vocab_size)
    build_optimizer(config, model_from(config, vocab_size, torch.device("meta")))


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Say which section of the recipe an option is from that its class, which knows none, refuses."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"[{name}]: {error}") from None


def groups_of(config: RunConfig, model: nn.Module) -> ParamGroups:
    """Every trainable parameter in the group of its role, with the rates of the configuration. A run is
    known by its rule: one that would move nothing is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", IdleRule)
        try:
            return _groups_of(config, model)
        except IdleRule:
            raise UsageError(_idle(config)) from None


def _idle(config: RunConfig) -> str:
    name, layer = config.optimizer.name, config.layer.name
    roles, has = OPTIMIZERS[name].roles, "matrix" if layer == DENSE else LAYERS[layer].role
    layers = [DENSE] * ("matrix" in roles) + [word for word, kind in LAYERS.items() if kind.role in roles]
    optimizers = [word for word, kind in OPTIMIZERS.items() if has in kind.roles]
    return (
        f'optimizer.name = "{name}" moves nothing of layer.name = "{layer}" by its own rule: all would be '
        f"left to the built-in AdamW. It moves {', '.join(layers)}; "
        f"{layer} is moved by {', '.join(optimizers)}."
    )


def _groups_of(config: RunConfig, model: nn.Module) -> ParamGroups:
    return param_groups(
        model,
        lr=config.optimizer.lr,
        weight_decay=options_of(config.optimizer).get("weight_decay", 0.0),
        other_lr=config.other.lr,
        other_weight_decay=config.other.weight_decay,
        other_betas=config.other.betas,
        other_eps=config.other.eps,
        state_format=config.optimizer.state_format,
        other_state_format=config.other.state_format,
        roles=OPTIMIZERS[config.optimizer.name].roles,
        hyperball=config.optimizer.hyperball,
    )


def compile_blocks(model: Llama) -> None:
    """Compile each block. Blocks of equal shapes share a graph; adaptive ranks make all of them differ, and
    what was traced for the old ones is dropped.
    """
    blocks = model.model.layers
    if any(is_adaptive(m) for m in model.modules()):
        torch._dynamo.reset()
        config: Any = torch._dynamo.config
        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
        setattr(config, name, max(getattr(config, name), 4 * len(blocks)))
    for block in blocks:
        block.compile()
