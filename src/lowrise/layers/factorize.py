"""`factorize`: replace the dense linear maps of any torch model by low-rank layers, in place."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from lowrise.errors import UsageError, did_you_mean
from lowrise.layers.base import LowRankLayer
from lowrise.layers.dense import dense_weight, head_and_embedding_weights
from lowrise.layers.inits import check_finite
from lowrise.layers.left_dense import is_subclass_of_linear, under_adapters, warn_of_doubtful
from lowrise.layers.patterns import matches, no_match, select
from lowrise.layers.registry import layer_class, option_names
from lowrise.linalg.rank import resolve_rank

Rank = int | float | Mapping[str, int | float]
Model = TypeVar("Model", bound=nn.Module)


# What `nn.Module.register_*_hook` fills: hooks of a map stay with the layer in its place.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
# What cannot stay: hooks of a tensor that is gone, and of entries of the state that have other names.
OF_THE_WEIGHT = {
    "_backward_hooks": "hooks of the gradient of its weight",
    "_post_accumulate_grad_hooks": "hooks after the gradient of its weight",
}
OF_THE_STATE = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def factorize(
    model: Model,
    *,
    layer: str = "lowrank",
    rank: Rank,
    targets: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    from_weights: bool = False,
    **options: Any,
) -> Model:
    """Replace dense linear maps (m x n) by low-rank layers, in place, and return the model.

    The new layer has the device, dtype, train/eval mode and `requires_grad` of the weight it replaces; on the
    meta device nothing is initialized.

    Args:
        model: Any module that has `nn.Linear` or Hugging Face `Conv1D` inside.
        layer: Name in `lowrise.layers.LAYERS`.
        rank: An integer; a float in (0, 1], the fraction of min(m, n), rounded down
            (`linalg.rank.resolve_rank`); or a dict pattern -> either, whose first matching pattern decides (a
            layer that none matches stays dense).
        targets: Patterns of module names (`lowrise.layers.patterns`). None: every `nn.Linear` and `Conv1D`
            except the output head and anything whose weight is shared.
        skip: Patterns of module names that stay dense.
        from_weights: False draws fresh factors by the layer's init from torch's generator, in module order;
            True keeps the weights as well as the rank allows (the layer's `from_dense`). A bias keeps its
            values only if True.
        **options: For the layer's constructor (`init="xavier"`, ...).

    Returns:
        The same model.

    Raises:
        UsageError: An unknown layer or option, a pattern without effect, a rank that a layer cannot have, a
            shared or unsupported target, or a model with nothing to replace.
    """
    new_class = layer_class(layer)
    _check_options(layer, new_class, options)
    chosen = _choose(model, targets, skip)
    ranks = _ranks(chosen, rank, new_class)  # all checks are done before the first layer is touched
    if from_weights:
        for name in ranks:
            _check_values(name, chosen[name])
    _warn_of_lost_hooks({name: chosen[name] for name in ranks})
    replacements = {
        id(chosen[name]): _replace(name, chosen[name], r, new_class, from_weights, options)
        for name, r in ranks.items()
    }
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    if targets is None:
        _warn_of_dense_rest(model)
    return model


def _warn_of_dense_rest(model: nn.Module) -> None:
    """Warn if most parameters outside embeddings and heads are still dense, as with stacked experts."""
    heads = head_and_embedding_weights(model)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    taken = {id(p) for layer in layers for p in layer.parameters()}
    rest = {n: p for n, p in model.named_parameters() if id(p) not in heads and id(p) not in taken}
    left = sum(p.numel() for p in rest.values())
    # A layer stands for the map that it replaces, whatever its rank.
    replaced = sum(layer.in_features * layer.out_features for layer in layers)
    if left > replaced:
        largest = max(rest, key=lambda name: rest[name].numel())
        warnings.warn(
            f"factorize left {left:,} parameters dense, more than the {replaced:,} of the linear maps that "
            f"it replaced; the largest is {largest} {tuple(rest[largest].shape)}. Only nn.Linear and Conv1D "
            "are replaced: stacked experts and subclasses of nn.Linear are not.",
            stacklevel=3,
        )


def own_attributes(module: nn.Module) -> list[str]:
    """Names of what its owner has hung on a linear map: attributes, buffers, parameters and modules, which
    the layer in its place keeps. Not what begins with an underscore, or `forward`.
    """
    plain = {"weight", "bias", "forward", "training", "in_features", "out_features", "nx", "nf"}
    found = [*vars(module), *module._parameters, *module._buffers, *module._modules]
    return [name for name in found if name not in plain and not name.startswith("_")]


def _take_over(layer: LowRankLayer, module: nn.Module, name: str) -> bool:
    """Hang on the layer what hung on the map, unless the layer has something of that name."""
    if hasattr(layer, name):
        return False
    if name in module._buffers:
        kept = name not in module._non_persistent_buffers_set
        layer.register_buffer(name, module._buffers[name], persistent=kept)
    else:
        setattr(layer, name, getattr(module, name))
    return True


def _warn_of_lost_hooks(chosen: Mapping[str, nn.Module]) -> None:
    """Warn of what was hung on a map and means nothing to the layer in its place."""
    for name, module in chosen.items():
        weight = vars(module)["_parameters"]["weight"]
        lost = [what for attribute, what in OF_THE_WEIGHT.items() if getattr(weight, attribute, None)]
        lost += ["hooks of its state_dict"] * any(vars(module).get(hooks) for hooks in OF_THE_STATE)
        lost += ["a forward of its own (as accelerate's hooks are)"] * ("forward" in vars(module))
        lost += [f"weight.{key}" for key in vars(weight) if not key.startswith("_")]
        if lost:
            warnings.warn(
                f"{name} had {' and '.join(lost)}, which factorize does not take over: the weight is no "
                "tensor of its own any more. Factorize first, then add them where they are still needed.",
                stacklevel=3,
            )


def _check_options(layer: str, new_class: type[LowRankLayer], options: Mapping[str, Any]) -> None:
    known = option_names(new_class)
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known or ["none"], otherwise="its options are")
            raise UsageError(f"The layer {layer!r} has no option {option!r}; {hint}")


def _check_values(name: str, module: nn.Module) -> None:
    """Refuse weights that cannot be decomposed, by the layer's name."""
    weight = dense_weight(module)
    assert weight is not None
    if weight.is_meta:
        raise UsageError(
            f"{name}: from_weights=True needs the weights, which are on the meta device (built there, or "
            "offloaded): load them first, or leave from_weights out for fresh factors."
        )
    check_finite(weight, f"{name}: ")
    bias = module.bias
    if isinstance(bias, Tensor) and not bias.is_meta:
        check_finite(bias, f"{name}: ", what="bias")


def _choose(
    model: nn.Module, targets: str | Iterable[str] | None, skip: str | Iterable[str] | None
) -> dict[str, nn.Module]:
    """Name -> module of every dense map to replace, in module order."""
    linear = {name: module for name, module in model.named_modules() if dense_weight(module) is not None}
    if not linear:
        own = [m for m in model.modules() if isinstance(m, nn.Linear)]
        if own:
            raise UsageError(
                f"The model has no plain nn.Linear to factorize: it has {len(own)} subclasses of nn.Linear, "
                f"such as {type(own[0]).__name__}, which may read their weight in other ways. Put nn.Linear "
                "in their place where they are nothing else."
            )
        raise UsageError("The model has no nn.Linear to factorize; is it factorized already?")
    if "" in linear:
        raise UsageError(
            "The model is itself a linear layer and cannot be replaced in place; use from_dense."
        )
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    heads = head_and_embedding_weights(model)
    adapted = under_adapters(model)

    skipped = set() if skip is None else set(select(skip, linear, what="skip"))

    if targets is None:
        names = [
            n
            for n, m in linear.items()
            if owners[id(m.weight)] == 1
            and id(m.weight) not in heads
            and n not in adapted
            and n not in skipped
        ]
        warn_of_doubtful(model, linear, names, adapted)
    else:
        names = [name for name in select(targets, linear, what="targets") if name not in skipped]
        for name in names:
            if not isinstance(linear[name].weight, nn.Parameter):
                raise UsageError(
                    f"targets: the weight of {name} is computed from others at each pass (weight_norm, "
                    "spectral_norm) and cannot be factorized; remove that first, or skip it."
                )
            if name in adapted:
                raise UsageError(
                    f"targets: {name} is part of an adapter of peft, which adds to a dense weight when it is "
                    "merged: skip it, or factorize the model before it gets adapters."
                )
            if owners[id(linear[name].weight)] > 1:
                raise UsageError(
                    f"targets: the weight of {name} is shared with another module and cannot be factorized; "
                    f"untie it or skip it."
                )
    if not names:
        kinds = sorted({type(m).__name__ for m in model.modules() if is_subclass_of_linear(m)})
        why = f"; {', '.join(kinds)} may read the weight in other ways than nn.Linear" if kinds else ""
        raise UsageError(
            f"Nothing is left to factorize: every linear layer is skipped, a head, or shared{why}."
        )
    return {name: linear[name] for name in names}


def _ranks(chosen: Mapping[str, nn.Module], rank: Rank, new_class: type[LowRankLayer]) -> dict[str, int]:
    """Name -> rank; with a dict of ranks, names that no pattern matches are left out."""
    if not isinstance(rank, Mapping):
        return {name: _rank_of(module, rank, new_class, name) for name, module in chosen.items()}
    for pattern in rank:
        if not any(matches(pattern, name) for name in chosen):
            raise no_match(pattern, chosen, what="rank")
    ranks = {}
    for name, module in chosen.items():
        first = next((pattern for pattern in rank if matches(pattern, name)), None)
        if first is not None:
            ranks[name] = _rank_of(module, rank[first], new_class, name)
    return ranks


def _rank_of(module: nn.Module, rank: int | float, new_class: type[LowRankLayer], name: str) -> int:
    weight = dense_weight(module)
    assert weight is not None
    return resolve_rank(rank, *weight.shape, where=name, above=new_class.rank_above)


def _replace(
    name: str,
    module: nn.Module,
    rank: int,
    new_class: type[LowRankLayer],
    from_weights: bool,
    options: Mapping[str, Any],
) -> LowRankLayer:
    weight = dense_weight(module)
    assert weight is not None
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    if from_weights:
        layer = new_class.from_dense(weight.detach(), rank, bias=bias, **options)
    else:
        out_features, in_features = weight.shape
        arguments = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype, **options}
        layer = new_class(in_features, out_features, rank, **arguments)
    if not weight.requires_grad and not new_class.keeps_base_frozen:
        layer.requires_grad_(False)
    if bias is not None and layer.bias is not None and not bias.requires_grad:
        layer.bias.requires_grad_(False)
    for hooks in HOOKS:
        vars(layer)[hooks] = vars(module)[hooks]  # the very dicts, so that handles go on removing
    lost = [own for own in own_attributes(module) if not _take_over(layer, module, own)]
    if lost:
        warnings.warn(
            f"{name} had {', '.join(lost)}, which factorize does not take over: a {type(layer).__name__} "
            "uses the name itself. Give it another one before factorizing.",
            stacklevel=4,
        )
    return layer.train(module.training)
