"""The table of low-rank layers. A new layer is one file and one line here; the contract tests run over this
table.
"""

from __future__ import annotations

import inspect

from lowrise.errors import UsageError, did_you_mean
from lowrise.layers.base import LowRankLayer
from lowrise.layers.cola import CoLALinear
from lowrise.layers.dlr import DLRLinear
from lowrise.layers.lora import LoRALinear
from lowrise.layers.lowrank import LowRankLinear
from lowrise.layers.selfguided import SelfGuidedLinear
from lowrise.layers.sltrain import SparseLowRankLinear
from lowrise.layers.svd import SVDLinear

LAYERS: dict[str, type[LowRankLayer]] = {
    "lowrank": LowRankLinear,
    "cola": CoLALinear,
    "dlr": DLRLinear,
    "selfguided": SelfGuidedLinear,
    "lora": LoRALinear,
    "sltrain": SparseLowRankLinear,
    "svd": SVDLinear,
}
"""Name in recipes -> class. Where a recipe may also say "dense", that means: leave `nn.Linear` as it is."""


def layer_class(name: str) -> type[LowRankLayer]:
    """The class behind a layer's name; `UsageError` names the nearest known one."""
    if name in LAYERS:
        return LAYERS[name]
    raise UsageError(f"There is no low-rank layer {name!r}; {did_you_mean(name, LAYERS)}")


def option_names(new_class: type[LowRankLayer]) -> list[str]:
    """The layer's own options: keyword-only arguments of its constructor other than device and dtype."""
    parameters = inspect.signature(new_class).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "dtype")]
