"""Parameter roles: which rule updates which parameter, declared by the model and not guessed from shapes.

| role | parameters |
|---|---|
| factors, svd | `role_parameters()` of low-rank layers |
| matrix | weights of plain dense linear maps (`nn.Linear`, Hugging Face's `Conv1D`, the latter stored in x
out); `guide_parameters()` of low-rank layers |
| embedding, head | weights that map tokens in or out; a tied weight is an embedding |
| other | all else: norms, biases, convolutions, bare parameters |

`parameter_roles` tells these; `param_groups` gives an optimizer those that it updates by its own rule (most
take "factors", "svd" or "matrix"; SCALE also "embedding" and "head"), and "other" for the rest. Tensors of
three dimensions and more become "matrix" only where `views` says how.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers.base import LowRankLayer
from lowrise.layers.dense import dense_weight, head_and_embedding_weights
from lowrise.layers.patterns import matches, no_match, select_targets

MOVABLE = ("factors", "svd", "matrix", "embedding", "head")
"""The roles that an optimizer may claim; every other parameter is "other" in its groups."""

LINEAR = {
    "factors": "`lowrise.factorize(model, rank=...)` makes pairs of factors out of dense maps",
    "svd": '`lowrise.factorize(model, layer="svd", rank=...)` makes them out of dense maps',
    "matrix": "dense maps have it, and what `views` names; factorized maps and heads have other roles",
}
"""The roles of linear maps, and where they come from."""


class IdleRule(UserWarning):
    """An optimizer whose own rule would move no linear map: its name would stand for AdamW's results."""


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups for an optimizer; `str()` shows them as a table, where "-" is what was not given: the
    optimizer's constructor says it. A plain list in every other way.

    Two keys tell an optimizer of the layers behind "factors": `fixed_gauge` (other factors of the same
    product are another map) and `residual_norm` (of what is added to A).
    """

    def __str__(self) -> str:
        from lowrise.console import in_columns  # rich is for those who look at the table

        # Columns of options that no group uses are left out.
        extra = [
            key
            for key, usual in (("view", None), ("state_format", "float32"), ("hyperball", False))
            if any(group.get(key) not in (None, usual) for group in self)
        ]
        titles = [key.replace("_", " ") for key in extra]
        rows = [("role", *titles, "tensors", "elements", "lr", "weight decay", "names")]
        for group in self:
            # torch's optimizers replace the (name, tensor) pairs of the dicts they are given by tensors and
            # "param_names".
            pairs = [p if isinstance(p, tuple) else (None, p) for p in group["params"]]
            names = group.get("param_names") or [name for name, _ in pairs]
            elements = sum(tensor.numel() for _, tensor in pairs)
            rows.append(
                (
                    group["role"],
                    *(str(group.get(key) or "-") for key in extra),
                    str(len(pairs)),
                    f"{elements:,}",
                    *(f"{group[key]:g}" if key in group else "-" for key in ("lr", "weight_decay")),
                    _sample([str(n) for n in names]),
                )
            )
        return in_columns(rows, (*(False for _ in ("role", *extra)), True, True, True, True, False))


def _sample(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]}, ..., {names[-1]}"


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Name -> role ("factors", "svd", "matrix", "embedding", "head", "other") of every parameter, shared ones
    once, frozen ones too.
    """
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    tokens_in_or_out = head_and_embedding_weights(model)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    low_rank = {id(p): layer.role for layer in layers for p in layer.role_parameters()}
    dense = {id(m.weight) for m in model.modules() if dense_weight(m) is not None}
    dense |= {id(p) for layer in layers for p in layer.guide_parameters()}
    roles = {}
    for name, parameter in model.named_parameters():
        key = id(parameter)
        if key in embeddings:
            roles[name] = "embedding"
        elif key in tokens_in_or_out:
            roles[name] = "head" if parameter.ndim == 2 else "other"
        elif key in low_rank:
            roles[name] = low_rank[key]
        else:
            roles[name] = "matrix" if key in dense else "other"
    return roles


def param_groups(
    model: nn.Module,
    *,
    lr: float | None = None,
    other_lr: float | None = None,
    weight_decay: float | None = None,
    other_weight_decay: float | None = None,
    other_betas: tuple[float, float] | None = None,
    other_eps: float | None = None,
    roles: Collection[str] | None = None,
    targets: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
    state_format: str | None = None,
    other_state_format: str | None = None,
    views: Mapping[str, str] | None = None,
    hyperball: bool = False,
) -> ParamGroups:
    """Every trainable parameter in exactly one group `{"params": [(name, p), ...], "role": ...}`, with the
    options that were given and no others.

    As in torch, what a group lacks is filled in by the optimizer's constructor, in the group "other" too:
    `AdamW(param_groups(model), lr=1e-3, weight_decay=0.1)` decays every parameter, and
    `other_weight_decay=0.0` leaves norms, biases and embeddings out.

    Layers stay whole and in module order: "factors" holds A0, B0, A1, B1, ... and "svd" U0, s0, V0, .... A
    weight that is embedding and head at once is "embedding". Empty groups are left out.

    Args:
        model: Any module.
        lr: Learning rate of the groups of the optimizer's own rule, and of "other" unless `other_lr` says
            another.
        other_lr: Learning rate of the group "other", which the built-in AdamW updates.
        weight_decay: Weight decay of the groups of the optimizer's own rule.
        other_weight_decay: Weight decay of the group "other".
        other_betas: Decay rates of AdamW's moments in the group "other".
        other_eps: AdamW's eps in the group "other".
        roles: The roles that the optimizer updates by its own rule (its class attribute `roles`); None means
            "factors" and "svd" if the model has such layers, else "matrix". All other parameters form the
            group "other".
        targets: Which of the linear maps (low-rank and dense, no head) the optimizer updates by its own rule,
            by module name; the weights of the rest go to "other". Patterns as in `factorize`, and the forms
            of Hugging Face's `optim_target_modules`: a list of names, parts of names or regular expressions,
            one regular expression, or "all-linear", which is also what None means.
        skip: Which of them it does not; the same forms.
        state_format: How the moments of all groups are stored ("float32", "bfloat16", "8bit"); None: the
            optimizer's own default.
        other_state_format: That of the group "other"; None: the same.
        views: Makes matrices of tensors with three dimensions or more: patterns of parameter names ->
            "flatten" (convolutions, out x the rest) or "stack" (experts, each p[e]). The first pattern that
            matches decides; what none matches stays "other". They form "matrix" groups of their own, one for
            each view.
        hyperball: Fix the Frobenius norm of the dense matrices ("matrix") and of the products A B^T
            ("factors") that the optimizer updates by its own rule: a step then turns W by about lr, without
            decay, and the schedule should end near 0.

    Returns:
        The groups; `str()` of them is a table.

    Raises:
        UsageError: An unknown role, a model without trainable parameters, a pattern that matches nothing,
            a low-rank layer that cannot be updated as a whole (half frozen, or sharing a factor with another
            layer), or weights that are laid out in one row (FSDP1).

    Warns:
        IdleRule: No linear map has one of `roles`.
    """
    _refuse_flattened(model)
    wanted = _wanted_roles(model, roles)
    left_out = _left_out(model, targets, skip)
    members: dict[str, list[tuple[str, nn.Parameter]]] = {role: [] for role in MOVABLE if role in wanted}
    members.update(_whole_layers(model, wanted, left_out))
    declared = parameter_roles(model)
    viewed = _viewed(model, views or {}, wanted, declared)
    claimed = {id(p) for pairs in (*members.values(), *viewed.values()) for _, p in pairs}
    other: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in claimed:
            # A low-rank layer that was not claimed whole is not claimed in parts either.
            single = declared[name] in ("matrix", "embedding", "head") and id(parameter) not in left_out
            members.get(declared[name] if single else "other", other).append((name, parameter))

    own = _given(lr=lr, weight_decay=weight_decay)
    groups = ParamGroups({"params": pairs, "role": role, **own} for role, pairs in members.items() if pairs)
    groups.extend({"params": pairs, "role": "matrix", "view": view, **own} for view, pairs in viewed.items())
    if other:
        options = _given(
            lr=lr if other_lr is None else other_lr,
            weight_decay=other_weight_decay,
            betas=None if other_betas is None else tuple(other_betas),
            eps=other_eps,
        )
        groups.append({"params": other, "role": "other", **options})
    if not groups:
        raise UsageError("The model has no trainable parameter: all are frozen, or there are none.")
    if roles is not None:
        warn_if_idle(groups, roles)
    _describe_factors(model, groups)
    if hyperball:
        _fix_norms(groups)
    for group in groups:
        chosen = (other_state_format if group["role"] == "other" else None) or state_format
        if chosen is not None:
            group["state_format"] = chosen
    return groups


def warn_if_idle(groups: Iterable[Mapping[str, Any]], roles: Collection[str]) -> None:
    """Warn if an optimizer of these roles moves no linear map by its own rule; one that takes all may."""
    own = [role for role in LINEAR if role in roles]
    if len(own) < len(LINEAR) and not any(group["role"] in own for group in groups):
        warnings.warn(
            f"No linear map here has the role {' or '.join(own)}, which the optimizer moves by its own rule: "
            f"all are left to the built-in AdamW. {'; '.join(f'{role}: {LINEAR[role]}' for role in own)}.",
            IdleRule,
            stacklevel=3,
        )


def _refuse_flattened(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UsageError(
            "FullyShardedDataParallel lays the weights out in one row, which does not show what is a matrix. "
            "Take torch.distributed.fsdp.fully_shard (FSDP2) instead, and make the optimizer after it."
        )


def _describe_factors(model: nn.Module, groups: ParamGroups) -> None:
    """Set `fixed_gauge` and `residual_norm` for factors of layers that are more than a product A B^T."""
    layers = {id(m.role_parameters()[0]): m for m in model.modules() if isinstance(m, LowRankLayer)}
    for group in groups:
        if group["role"] == "factors":
            own = [layers[id(p)] for _, p in group["params"] if id(p) in layers]
            if not all(layer.is_gauge_free() for layer in own):
                group["fixed_gauge"] = True
            residual = max((layer.residual_norm() for layer in own), default=0.0)
            if residual:
                group["residual_norm"] = residual


def _fix_norms(groups: ParamGroups) -> None:
    """Set `hyperball` where the optimizer moves whole weights; `UsageError` where it moves none."""
    whole = [group for group in groups if group["role"] in ("matrix", "factors")]
    if not whole:
        roles = ", ".join(sorted({group["role"] for group in groups}))
        raise UsageError(
            'hyperball = True fixes the norms of dense matrices and of pairs A, B (the roles "matrix" and '
            f'"factors"), and the roles here are {roles}: leave it out, or choose another layer or optimizer.'
        )
    for group in whole:
        group["hyperball"] = True


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _viewed(
    model: nn.Module, views: Mapping[str, str], wanted: Collection[str], declared: Mapping[str, str]
) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """View -> (name, parameter) of the tensors that `views` names."""
    if views and "matrix" not in wanted:
        raise UsageError(
            f"views = {dict(views)!r} makes matrices, and the roles here are {', '.join(sorted(wanted))}; "
            "give the roles of an optimizer that updates matrices, for example roles=Muon.roles."
        )
    candidates = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim > 2 and declared[name] == "other"
    }
    for pattern in views:
        if not any(matches(pattern, name) for name in candidates):
            raise no_match(
                pattern, candidates, what="views", kind="trainable parameter of three dimensions or more"
            )
    viewed: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in candidates.items():
        view = next((view for pattern, view in views.items() if matches(pattern, name)), None)
        if view is not None:
            viewed.setdefault(view, []).append((name, parameter))
    return viewed


def _left_out(
    model: nn.Module, targets: str | Iterable[str] | None, skip: str | Iterable[str] | None
) -> set[int]:
    """`id` of the parameters of every linear map that `targets` and `skip` leave to the group "other"."""
    heads = head_and_embedding_weights(model)
    maps = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LowRankLayer)
        or (dense_weight(module) is not None and id(module.weight) not in heads)
    }
    chosen = set(maps if targets is None else select_targets(targets, maps, what="targets"))
    if skip is not None:
        chosen -= set(select_targets(skip, maps, what="skip"))
    return {id(p) for name in maps.keys() - chosen for p in maps[name].parameters()}


def _wanted_roles(model: nn.Module, roles: Collection[str] | None) -> set[str]:
    if roles is None:
        low_rank = any(isinstance(m, LowRankLayer) for m in model.modules())
        return {"factors", "svd"} if low_rank else {"matrix"}
    unknown = sorted(set(roles) - {*MOVABLE, "other"})
    if unknown:
        raise UsageError(
            f"Unknown parameter role {unknown[0]!r}; the roles are {', '.join(MOVABLE)} and other."
        )
    return set(roles)


def _whole_layers(
    model: nn.Module, wanted: Iterable[str], left_out: set[int]
) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Role -> (name, parameter) of all low-rank layers of the wanted roles, layer by layer."""
    names = {id(p): name for name, p in model.named_parameters()}
    members: dict[str, list[tuple[str, nn.Parameter]]] = {}
    claimed: dict[int, str] = {}
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, LowRankLayer) or layer.role not in wanted:
            continue
        parameters = layer.role_parameters()
        if not any(p.requires_grad and id(p) not in left_out for p in parameters):
            continue
        if not all(p.requires_grad for p in parameters):
            raise UsageError(f"{layer_name} is half frozen: freeze all of its factors or none.")
        for parameter in parameters:
            if id(parameter) in claimed:
                raise UsageError(
                    f"{layer_name} shares a factor with {claimed[id(parameter)]}; give each its own."
                )
            claimed[id(parameter)] = layer_name
            members.setdefault(layer.role, []).append((names[id(parameter)], parameter))
    return members


def group_tensors(group: dict[str, Any]) -> list[Tensor]:
    """The tensors of a group, whether or not an optimizer has already unpacked its (name, tensor) pairs."""
    return [p[1] if isinstance(p, tuple) else p for p in group["params"]]
