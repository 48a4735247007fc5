"""Options of the layers, as their constructors have them.

Written by `python docs/make_options.py`: change the classes, not this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowrise.config.sections import FactorizedSection


@dataclass(kw_only=True)
class LowRankLinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    init: str = "spectral"
    """How the factors are drawn, an entry of `lowrise.layers.INITS`. spectral (Khodak et al., arXiv 2105.01029): truncated SVD of the dense model's draw; xavier: LORO's; auto, kaiming, orthogonal, cola."""


@dataclass(kw_only=True)
class CoLALinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    activation: Literal["silu", "none"] = "silu"
    """Activation between the factors. silu: as published; none: the plain low-rank map."""
    init: str = "cola"
    """How the factors are drawn, an entry of `lowrise.layers.INITS`. cola: the authors', std (r (m + n))^(-1/4); spectral, xavier, auto, kaiming, orthogonal as for the layer "lowrank"."""


@dataclass(kw_only=True)
class DLRLinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    activation: Literal["silu", "none"] = "silu"
    """Activation of the latents. silu: as released; none: the map is a matrix and can be merged."""
    alpha: float = 1.0
    """Size of the residual, alpha / sqrt(K) a latent; 1 as published."""
    train_alpha: bool = False
    """Learn alpha, one number a layer, from the value above; it is moved as norms are."""
    init: str = "cola"
    """How the factors are drawn, an entry of `lowrise.layers.INITS`. cola: the authors', std (r (m + n))^(-1/4); spectral, xavier, auto, kaiming, orthogonal as for the layer "lowrank". The residual comes on top."""


@dataclass(kw_only=True)
class SelfGuidedLinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    init: str = "spectral"
    """How the factors are drawn, an entry of `lowrise.layers.INITS`. spectral: truncated SVD of the dense model's draw; xavier, auto, kaiming, orthogonal, cola as for the layer "lowrank"."""


@dataclass(kw_only=True)
class LoRALinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    alpha: float = 32.0
    """Scale of the product, s = alpha / r; 32 is ReLoRA's code."""
    merge_every: int = 0
    """Steps between two merges (a training loop must call `after_update`); 0: never (LoRA)."""


@dataclass(kw_only=True)
class SparseLowRankLinear(FactorizedSection):
    role: ClassVar[str | None] = "factors"

    delta: float = 0.03
    """Fraction of the m n entries that are stored beside the product; 0.03 is the authors' scripts' (0.05 at 7B)."""
    alpha: float = 32.0
    """Scale of the product, s = alpha / r; 32 is the authors' at 60M (16 at 130M and 350M, 8 above)."""


@dataclass(kw_only=True)
class SVDLinear(FactorizedSection):
    role: ClassVar[str | None] = "svd"

    init: str = "gaussian"
    """Singular values at the start. gaussian: the largest of a Gaussian matrix, descending; constant: equal, a singular point."""
    energy: float = 0.0
    """Fraction of the sum of s^2 that a rank event keeps; 0: the rank is fixed, and the next five are without effect."""
    rank_events: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Fractions of all steps after which the rank is chosen again. Thresholds compound: after k events energy^k is what is sure to be left."""
    rank_multiple: int = 8
    """Ranks that are chosen are multiples of it; 8 suits matrix units."""
    min_rank: int = 0
    """Never below this rank; 0: max(8, a quarter of the rank at the start)."""
    max_rank: int = 0
    """Rank up to which a layer may grow; 0: it never grows."""
    max_drop: float = 0.25
    """Largest fraction of the columns that one event drops."""


LAYER_OPTIONS: dict[str, type[FactorizedSection]] = {
    "lowrank": LowRankLinear,
    "cola": CoLALinear,
    "dlr": DLRLinear,
    "selfguided": SelfGuidedLinear,
    "lora": LoRALinear,
    "sltrain": SparseLowRankLinear,
    "svd": SVDLinear,
}
"""Name in recipes -> its section."""
