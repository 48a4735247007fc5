"""Learning rates and first weights that transfer from a small model to a wide one, and over ranks.

`[transfer] base = "tiny"` says that the recipe's rates were tuned at that width and rank. The rate of each
weight and the standard deviation of its first entries are multiplied by a function of its own shape and of
the shape that it has in the base model, which is 1 for the base itself. docs/transfer.md derives them, after
Yang, Simon and Bernstein (arXiv 2310.17813): a weight W (m x n) and its change by an update have spectral
norms in proportion to sqrt(m/n).

1. First weights: std of W in proportion to sqrt(m/n) / (sqrt(m) + sqrt(n)), of the head to 1/n; the
   embedding's stays. Factors are the truncated SVD of such a W, drawn larger by one over the root of e, the
   share of its energy that rank r keeps, so that activations keep their size at every rank: ||A||_2 = ||B||_2
   = ||W||_2^(1/2), in proportion to (m/n)^(1/4) e^(-1/4).
2. Rates: the optimizer's row in `CHANGES` says how the change of W for a rate of 1 depends on the shape; the
   multiplier is sqrt(m/n) over that. A pair A, B has one rate. Embedding, norms and biases keep theirs.
3. Weight decay is divided by the rate's multiplier, so that rate times decay is what it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowrise.config import DENSE, FactorizedSection, RunConfig
from lowrise.config.sections import TransferSection
from lowrise.console import in_columns
from lowrise.errors import UsageError
from lowrise.layers import LowRankLinear
from lowrise.layers.roles import ParamGroups, parameter_roles
from lowrise.linalg.energy import gaussian_energy
from lowrise.model import Llama, LlamaConfig
from lowrise.model.config import PRESETS
from lowrise.optim import OPTIMIZERS, Dion2, Muon, NorMuon


class Weight(NamedTuple):
    """The shape of a weight m x n; of rank r, where it is a pair A (m x r), B (n x r)."""

    m: int
    n: int
    r: int | None = None

    def __str__(self) -> str:
        return f"{self.m} x {self.n}" + (f", rank {self.r}" if self.r else "")

    @property
    def norm(self) -> float:
        """sqrt(m/n): what spectral norms of the weight and of its change are in proportion to."""
        return math.sqrt(self.m / self.n)

    @property
    def std(self) -> float:
        """Of the entries that are drawn: a Gaussian m x n has the norm std (sqrt(m) + sqrt(n)), and what the
        truncation to rank r takes away is given back."""
        return self.norm / (math.sqrt(self.m) + math.sqrt(self.n)) / math.sqrt(self.energy)

    @property
    def energy(self) -> float:
        """Share of the energy of a Gaussian m x n that its truncated SVD keeps."""
        return 1.0 if self.r is None else gaussian_energy(self.m, self.n, self.r)


Change = Callable[[Weight, Mapping[str, Any]], float]
"""(weight, the optimizer's options) -> the order of ||change of the weight||_2 for a rate of 1, at the first
weights."""


def _of_matrices(norm: Callable[[int, int, Mapping[str, Any]], float]) -> Change:
    """Rules that change matrices one by one, by the norm of the change of one. For a pair the geometric mean
    of ||change of A|| ||B|| and ||A|| ||change of B||."""

    def change(weight: Weight, options: Mapping[str, Any]) -> float:
        m, n, r = weight
        if r is None:
            return norm(m, n, options)
        norm_A_or_B = math.sqrt(weight.norm / math.sqrt(weight.energy))
        return norm_A_or_B * math.sqrt(norm(m, r, options) * norm(n, r, options))

    return change


def _entrywise(m: int, n: int, options: Mapping[str, Any]) -> float:
    """Adam and its kin: entries of order 1, with the signs of a gradient, which is a sum of few products
    (tokens that agree), so that they add up along a direction."""
    return math.sqrt(m * n)


def _of_product(weight: Weight, options: Mapping[str, Any]) -> float:
    """The rate is the spectral norm of the change of A B^T itself."""
    return 1.0


def _loramuon(weight: Weight, options: Mapping[str, Any]) -> float:
    """Likewise, or sqrt(m/n) times it. That is the change to first order: dA dB^T may be as large as lr^2
    over four times the smallest singular value of W, which a square Gaussian of full rank has at nearly 0."""
    m, n, r = weight
    if options["bound"] != "whole" and r is not None and 8 * r > 7 * min(m, n):
        raise UsageError(
            f"transfer.base cannot be with LoRA-Muon at rank {r} of {m} x {n}, optimizer.bound = "
            f"{options['bound']!r}: so near to the full rank its steps are longer than its rate says. Set "
            f'optimizer.bound = "whole", or a layer.rank of at most {7 * min(m, n) // 8}.'
        )
    return weight.norm if options["scale"] == "spectral" else 1.0


ENTRYWISE = _of_matrices(_entrywise)
CHANGES: dict[str, Change] = {
    "adamw": ENTRYWISE,
    "muon": _of_matrices(Muon.step_scale),
    "normuon": _of_matrices(NorMuon.step_scale),
    "dion2": _of_matrices(Dion2.step_scale),
    "stablespam": ENTRYWISE,
    "spectron": _of_product,
    "loramuon": _loramuon,
}
"""Optimizer -> how the change of a weight depends on its shape. A further optimizer is a further row."""


def check_transfer(config: RunConfig) -> None:
    """`UsageError` for a run for which the multipliers are not derived."""
    base, name, layer = config.transfer.base, config.optimizer.name, config.layer
    if base is None:
        return
    told = "are derived for {}. Leave [transfer] out and tune at this size."
    if name not in CHANGES:
        known = told.format(f"the optimizers {', '.join(CHANGES)}, not for {name}")
        raise UsageError(f"transfer.base = {base!r} cannot be: the multipliers {known}")
    if config.optimizer.hyperball:
        raise UsageError(
            f"transfer.base = {base!r} cannot be with optimizer.hyperball = true, where the rate is an angle "
            "and no multipliers are derived. Leave one of them out."
        )
    if layer.name not in (DENSE, "lowrank"):
        known = told.format(f"the layers {DENSE} and lowrank, not for {layer.name}")
        raise UsageError(f"transfer.base = {base!r} cannot be: the multipliers {known}")
    if layer.name != DENSE and "factors" not in OPTIMIZERS[name].roles:
        raise UsageError(
            f"transfer.base = {base!r} cannot be: {name} leaves factors to AdamW, where no multipliers "
            "are derived for them. Set layer.name = dense, or another optimizer."
        )
    init = getattr(layer, "init", "spectral")
    if init != "spectral":
        raise UsageError(
            f"layer.init = {init!r} cannot be with transfer.base: the multipliers are derived for factors "
            'that begin as a truncated SVD. Set layer.init = "spectral".'
        )
    if getattr(config.model, "tie_embeddings", None):
        raise UsageError(
            "model.tie_embeddings = true cannot be with transfer.base: the head's rate falls with the width, "
            "the embedding's does not. Leave one out."
        )


def base_config(config: RunConfig, here: LlamaConfig) -> RunConfig:
    """The run at which the rates were tuned: the base's widths and rank, all else as in this one, whose model
    is `here`."""
    section, layer = config.transfer, config.layer
    if isinstance(section.base, str):
        preset = PRESETS[section.base]
        width, mlp, heads = (preset[k] for k in ("hidden_size", "intermediate_size", "num_heads"))
    else:
        assert section.base is not None
        width, (heads, left) = section.base, divmod(section.base, here.head_dim)
        if left:
            raise UsageError(
                f"transfer.base = {width} is not a multiple of {here.head_dim}, the width of a head, which "
                "stays as it is: give a width of whole heads, or a preset."
            )
        mlp = max(1, round(here.intermediate_size * width / here.hidden_size))
    kv_heads, left = divmod(heads * here.kv_heads, here.num_heads)
    if left or not kv_heads:
        raise UsageError(
            f"transfer.base = {section.base!r} has {heads} heads, and {here.kv_heads} key and value heads "
            f"for {here.num_heads} are not a whole number there: give another base, or model.num_kv_heads."
        )
    widths = {"hidden_size": width, "intermediate_size": mlp, "num_heads": heads, "num_kv_heads": kv_heads}
    if isinstance(layer, FactorizedSection) and section.rank is not None:
        layer = dataclasses.replace(layer, rank=section.rank)
    model = dataclasses.replace(config.model, **widths)
    return dataclasses.replace(config, model=model, layer=layer, transfer=TransferSection())


@dataclass(frozen=True)
class Multiplier:
    """What the rate of a weight and the standard deviation of its first entries are multiplied by."""

    role: str
    """factors, matrix, embedding, head or other."""
    weight: Weight
    base: Weight
    lr: float
    init: float


class Transfer:
    """The multipliers of a model, from its shapes and those of the base model."""

    def __init__(self, config: RunConfig, model: nn.Module, base: nn.Module) -> None:
        check_transfer(config)
        self.change = CHANGES[config.optimizer.name]
        self.roles = parameter_roles(model)
        self.base = dict(base.named_parameters())

    def of(self, unit: Mapping[str, Tensor], own: bool, options: Mapping[str, Any]) -> Multiplier:
        """Of the parameters by name that are updated together: a pair, or one. `own`: by the optimizer's own
        rule, and not by the built-in AdamW."""
        role = self.roles[next(iter(unit))]
        weight, base = _weight([*unit.values()]), _weight([self.base[name] for name in unit])
        lr = 1.0
        if role in ("factors", "matrix", "head"):
            change = self.change if own else ENTRYWISE
            lr = (weight.norm / change(weight, options)) / (base.norm / change(base, options))
        return Multiplier(role, weight, base, lr, _init(role, weight, base))

    def scale_first_weights(self, model: Llama) -> None:
        """Tell a model that has no values yet how to draw its first weights."""
        for name, module in model.named_modules():
            if isinstance(module, LowRankLinear):
                pair = {f"{name}.A": module.A, f"{name}.B": module.B}
                module.init_std *= self.of(pair, False, {}).init
            elif isinstance(module, nn.Linear):
                weight = f"{name}.weight"
                model.init_scales[name] = self.of({weight: module.weight}, False, {}).init

    def split(
        self, groups: ParamGroups, own_roles: frozenset[str], options: Mapping[str, Any]
    ) -> tuple[ParamGroups, list[Multiplier]]:
        """Groups in which every parameter has its rate and decay, and the multipliers that there are.
        `own_roles`, `options`: those of the optimizer."""
        done, told = ParamGroups(), list[Multiplier]()
        for group in groups:
            parts: dict[float, dict[str, Any]] = {}
            size = 2 if group["role"] == "factors" else 1
            pairs = group["params"]
            for i in range(0, len(pairs), size):
                multiplier = self.of(dict(pairs[i : i + size]), group["role"] in own_roles, options)
                told.append(multiplier)
                part = parts.setdefault(multiplier.lr, {**group, "params": []})
                part["params"] += pairs[i : i + size]
            for lr, part in parts.items():
                part["lr"] = part["lr"] * lr
                if part.get("weight_decay"):
                    part["weight_decay"] = part["weight_decay"] / lr
                done.append(part)
        return done, list(dict.fromkeys(told))


def _weight(unit: list[Tensor]) -> Weight:
    shapes = [tuple(p.shape) for p in unit]
    if len(shapes) == 2:
        (m, r), (n, _) = shapes
        return Weight(m, n, r)
    return Weight(*shapes[0]) if len(shapes[0]) == 2 else Weight(shapes[0][0], 1)


def _init(role: str, weight: Weight, base: Weight) -> float:
    if role == "head":
        return base.n / weight.n
    return weight.std / base.std if role in ("factors", "matrix") else 1.0


def table(multipliers: list[Multiplier]) -> str:
    """The multipliers, one line for each kind and shape of weight; what keeps its rate is one line a role."""
    rows = [("role", "weight", "in the base", "lr x", "first weights x")]
    for m in multipliers:
        scaled = m.role in ("factors", "matrix", "head")
        shapes = (str(m.weight), str(m.base)) if scaled else ("", "")
        rows.append((m.role, *shapes, f"{m.lr:.4g}", f"{m.init:.4g}"))
    return in_columns(list(dict.fromkeys(rows)), (False, False, False, True, True))
