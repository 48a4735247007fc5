"""Options of the optimizers, as their constructors have them.

Written by `python docs/make_options.py`: change the classes, not this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowrise.config.sections import OptimizerSection


@dataclass(kw_only=True)
class AdamW(OptimizerSection):
    lr: float = 0.001
    """Learning rate; 1e-3 is torch's default."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates b1, b2 of the two moments; (0.9, 0.95) are those of the language models in the papers that we compare with, torch has (0.9, 0.999)."""
    eps: float = 1e-08
    """Added to the root of the second moment, after its bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd of all parameters; off unless asked for (torch: 0.01)."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""


@dataclass(kw_only=True)
class APOLLO(OptimizerSection):
    lr: float = 0.01
    """Learning rate; 0.01 is the released scripts' for 60M to 1B."""
    rank: int | float = 128
    """Rank r of the projection, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n), rounded down. 128 is the released scripts' at 60M, 1 that of APOLLO-Mini."""
    update_proj_gap: int = 200
    """Steps between two refreshes of a projection; 200 as published."""
    scale: float = 1.0
    """The update is multiplied by its root; 1 as published, 128 for APOLLO-Mini. Groups may also call it `alpha`."""
    scale_type: Literal["channel", "tensor"] = "channel"
    """One factor per channel, or one for the whole tensor (APOLLO-Mini)."""
    scale_front: bool = False
    """Apply the scale before the limiter; the same weights to rounding."""
    relative_scale: bool = False
    """Multiply the scale by min(m, n) / rank, so that the rank does not change the step."""
    proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    """Side that is projected away. std: the smaller dimension (of a square matrix: the right); reverse_std: the larger; left, right: that side; full is refused."""
    projection: Literal["svd", "warm", "random", "range_finder"] = "random"
    """How a projection is made. random: normal numbers; svd: leading singular vectors of G; range_finder: the same, randomized and cheaper; warm: exact at first, then one block power step from the basis before; in Python also a callable (G, rank, side, step) that returns a basis."""
    store_projection: bool = False
    """Keep random projections in the state instead of computing them at every step."""
    limiter: Literal["safe", "reference", "off"] = "safe"
    """Limiter of the growth of the update, per matrix. safe: zero and non-finite updates do not count; reference: the authors' code; off: none."""
    gamma: float = 1.01
    """Factor by which the update may grow in one step; 1.01 is the authors'."""
    stagger: bool = False
    """Refresh the matrices' projections one after the other over the period."""
    seed: int | None = None
    """Seed of random projections; none: 0, and in `lowrise train` the run's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments; the released code's."""
    eps: float = 1e-06
    """Added to the root of the second moment, before bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, after the update; off as in the released scripts."""
    correct_bias: bool = True
    """Adam's correction of the moments for their start at zero."""


@dataclass(kw_only=True)
class Dion2(OptimizerSection):
    lr: float = 0.01
    """Learning rate before the factor of step 7; 0.01 is the released code's, 0.02 that of its 160M recipe."""
    fraction: float = 0.25
    """Part of the lines that an update moves, above 0 and at most 1; 0.25 is the released code's."""
    ef_decay: float = 0.95
    """What the momentum of these lines is multiplied by; 0.95 as published."""
    shards: int = 1
    """Blocks of rows of equal size that choose for themselves, as the released code's ranks do; rows then, whatever the shape. 1: the whole matrix chooses."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, with the unadjusted lr; 0 here, 0.01 in the released code."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""
    adjust_lr: Literal["match_rms_adamw", "original", "spectral", "none"] = "spectral"
    """The factor of step 7. spectral: sqrt(m/n), the released code's; match_rms_adamw: 0.2 sqrt(max(m, n)); original: sqrt(max(1, m/n)), Muon's; none: 1."""
    ortho: Literal["ns5", "pe", "svd"] = "ns5"
    """How D is orthogonalized. ns5: the quintic; pe: Polar Express, seven steps; svd: exactly, slow, waits for the device."""
    ns_steps: int = 5
    """Newton-Schulz iterations of ns5."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """The quintic's a, b, c; Jordan's."""
    ns_eps: float = 1e-07
    """Least Frobenius norm that D is divided by in ns5."""
    ns_dtype: Literal["auto", "fast", "bfloat16", "float32", "float64"] = "auto"
    """Dtype of ns5. auto: bfloat16 on CUDA, as published, elsewhere float32, and float64 for float64 weights; fast: as in Muon."""


@dataclass(kw_only=True)
class Fira(OptimizerSection):
    lr: float = 0.01
    """Learning rate; 0.01 is the released scripts' for 60M to 1B."""
    rank: int | float = 128
    """Rank r of the basis, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n), rounded down. 128 is the released scripts' at 60M."""
    update_proj_gap: int = 200
    """Steps between two refreshes of a basis; 200 as published."""
    alpha: float = 0.25
    """Factor of the part inside the subspace (groups may also call it `scale`); 0.25 as published."""
    proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    """Side of the basis. std: the smaller dimension is projected away (of a square matrix: the right); reverse_std: the larger; left, right: that side; full is refused."""
    projection: Literal["svd", "warm", "random", "range_finder"] = "svd"
    """How a basis is made. svd: leading singular vectors of G; range_finder: the same, randomized and cheaper; warm: exact at first, then one block power step from the basis before; random: orthonormalized normal numbers; in Python also a callable (G, rank, side, step) that returns a basis."""
    residual: Literal["reference", "orthogonal"] = "reference"
    """Which part of the gradient counts as outside of the subspace. reference: as in the authors' code; orthogonal: as in the paper."""
    limiter: Literal["safe", "reference", "off"] = "safe"
    """Limiter of the growth of the outside part, per matrix. safe: zero and non-finite updates do not count; reference: the authors' code; off: none."""
    gamma: float = 1.01
    """Factor by which that part may grow in one step; 1.01 is the authors'."""
    stagger: bool = False
    """Refresh the matrices' bases one after the other over the period, so that no step pays for all."""
    seed: int | None = None
    """Seed of random bases; none: 0, and in `lowrise train` the run's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments; the released code's."""
    eps: float = 1e-06
    """Added to the root of the second moment, before bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, after the update; off as in the released scripts."""
    correct_bias: bool = True
    """Adam's correction of the moments for their start at zero."""


@dataclass(kw_only=True)
class GaLore(OptimizerSection):
    lr: float = 0.01
    """Learning rate; 0.01 is the released scripts' for 60M to 1B."""
    rank: int | float = 128
    """Rank r of the basis, clipped to min(m, n); a float in (0, 1] is a fraction of min(m, n), rounded down. 128 is the released scripts' at 60M."""
    update_proj_gap: int = 200
    """Steps T between two refreshes of a basis; 200 as published."""
    scale: float = 0.25
    """Factor of the update (alpha in the paper, a name that groups may use too); 0.25 as published."""
    proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    """Side of the basis. std: the smaller dimension is projected away (of a square matrix: the right); reverse_std: the larger; left, right: that side; full: both sides."""
    projection: Literal["svd", "warm", "random", "range_finder"] = "svd"
    """How a basis is made. svd: leading singular vectors of G; range_finder: the same, randomized and cheaper; warm: exact at first, then one block power step from the basis before; random: orthonormalized normal numbers; in Python also a callable (G, rank, side, step) that returns a basis."""
    stagger: bool = False
    """Refresh the matrices' bases one after the other over the period, so that no step pays for all."""
    seed: int | None = None
    """Seed of random bases; none: 0, and in `lowrise train` the run's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments; the released code's."""
    eps: float = 1e-06
    """Added to the root of the second moment, before bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, after the update; off as in the released scripts."""
    correct_bias: bool = True
    """Adam's correction of the moments for their start at zero."""


@dataclass(kw_only=True)
class GWT(OptimizerSection):
    lr: float = 0.01
    """Learning rate; 0.01 is the release's."""
    level: int = 2
    """Haar levels l; moments are kept for one of 2^level neighbouring inputs. 2 as published."""
    scale: float = 0.25
    """Factor on the update of the matrices, not on their weight decay; 0.25 is the release's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the first and second moment of the approximations; the release's."""
    eps: float = 1e-06
    """Added to the root of the second moment, before bias correction; must be above 0."""
    correct_bias: bool = True
    """Adam's correction of both moments for their start at zero."""
    correct_details: bool = True
    """Divide the details by the bias-corrected denominator. False: as published, where the first updates are much larger."""
    limiter: Literal["safe", "reference", "off"] = "safe"
    """Limiter of the growth of the approximations' norm. safe: zero and non-finite updates do not count; reference: the authors' code; off: none."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, after the update; 0 as published."""


@dataclass(kw_only=True)
class LoRAMuon(OptimizerSection):
    lr: float = 0.02
    """Radius of a change of W in the spectral norm, for square W; see `scale`."""
    momentum: float = 0.9
    """Decay rate beta of the momenta; 0.9 is the published reference run's."""
    nesterov: bool = False
    """Orthogonalize beta M + (1 - beta) G instead of M; not in the paper."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, as `decay` says; off by default."""
    decay: Literal["split", "product"] = "split"
    """What decays. split: W by 1 - lr wd, half in each factor; product: the Frobenius norm of A B^T, A <- A - lr wd A B^T B and B <- B - lr wd B A^T A."""
    direction: Literal["halves", "tangent"] = "halves"
    """halves: each half of the tangent step is orthogonalized, as published; tangent: the momenta's tangent projection as a whole."""
    msign: Literal["quintic5", "polar8", "pe7", "svd"] = "quintic5"
    """How momenta are orthogonalized. quintic5: Muon's five steps, singular values of 0.68 to 1.2; polar8: the published eight, within 7e-4 of 1; pe7: Polar Express, at most 1; svd: the slow reference."""
    root: Literal["cholesky", "eigh", "iterated", "ns7"] = "cholesky"
    """Where R comes from. cholesky: exact and fast; eigh: the symmetric root, the slow reference; iterated: by twelve matrix products; ns7: the published seven, with their shift of 1e-5."""
    scale: Literal["spectral", "none"] = "spectral"
    """How lr depends on the shape. spectral: lr sqrt(m / n); none: lr, as published."""
    bound: Literal["first_order", "whole"] = "first_order"
    """What lr bounds. first_order: the change of W to first order; whole: all of it, which shortens steps and takes three times as long (msign quintic5 or pe7, direction halves, root cholesky)."""
    rebalance_every: int = 0
    """Steps between two changes to ||A||_2 = ||B||_2 by one number, which moves the momenta along and leaves W; 0: never."""
    rebalance_alpha: float = 1.0
    """How far they go there, above 0 (not at all) to 1."""


@dataclass(kw_only=True)
class LORO(OptimizerSection):
    lr: float = 0.01
    """Learning rate of exact steps and of other parameters; lazy steps have c times it. Defaults are those of the published runs (scripts/loro_c4)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments."""
    eps: float = 1e-06
    """Added to the root of the second moment before its bias correction, as in the authors' code (torch adds it after)."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, after the step; an exact step has none."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries, and products before the step."""
    exact_every: int = 500
    """Steps K between two exact steps; 500 as published (200 at 1B), 0: never."""
    kth_update: Literal["exact", "rebalance", "lazy"] = "exact"
    """What happens at steps K, 2K, .... exact: the Riemannian step; rebalance: a lazy step, then balanced factors; lazy: nothing else."""
    exact_direction: Literal["authors", "consistent"] = "authors"
    """Direction of the exact step. authors: as published; consistent: independent of the split into A and B."""
    retraction: Literal["svd", "orthographic"] = "svd"
    """Way back to rank r. svd: the nearest such matrix; orthographic: needs no iteration."""
    reset: Literal["all", "factors", "other", "none"] = "all"
    """Whose moments are dropped every `reset_every` steps. all, factors, other or none."""
    reset_every: int = 0
    """Steps between two resets; 0: K."""
    transport: bool = False
    """Carry the factors' moments over into the new basis where they are not dropped."""
    lr_scaler: float = 0.25
    """Factor c of lazy steps; 0.25 is r / d of the published runs."""
    hidden_size: int = 0
    """The model's width d, to have c = r / d per pair; 0: c is `lr_scaler`."""
    stagger: bool = False
    """Spread the exact steps of the pairs evenly over the K steps; resets and the return of the learning rate then come with each pair's own exact step."""
    restart_warmup: int = 5
    """Steps over which the learning rate of a staggered pair returns after its reset; without stagger, `schedule.restart_warmup` does this."""


@dataclass(kw_only=True)
class Muon(OptimizerSection):
    lr: float = 0.001
    """Learning rate before the adjustment of step 5; 1e-3 is torch's default."""
    momentum: float = 0.95
    """Decay rate mu of the average of gradients; 0.95 is Jordan's and torch's."""
    nesterov: bool = True
    """Orthogonalize G + mu (M - G) instead of the average M alone."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, with the unadjusted lr; off by default (torch: 0.1)."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How lr depends on the shape, step 5. match_rms_adamw: 0.2 sqrt(max(m, n)), updates of AdamW's size; original: sqrt(max(1, m/n)), Jordan's."""
    ns_steps: int = 5
    """Newton-Schulz iterations; 5 is Jordan's."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """The quintic's a, b, c; the default is Jordan's."""
    ns_eps: float = 1e-07
    """Least Frobenius norm that D is divided by; 1e-7 is torch's."""
    ns_dtype: Literal["auto", "fast", "bfloat16", "float32", "float64"] = "auto"
    """Dtype of the iteration. auto: bfloat16 on CUDA, as published, elsewhere float32, and float64 for float64 weights. fast: bfloat16 also on processors with instructions for it, so that a CPU run depends on the processor's kind."""


@dataclass(kw_only=True)
class NorMuon(OptimizerSection):
    lr: float = 0.001
    """Learning rate before c; 1e-3 as in our Muon."""
    momentum: float = 0.95
    """Decay rate mu of the momentum; 0.95 as published."""
    beta2: float = 0.95
    """Decay rate b2 of the row second moments; 0.95 as published. 0: all rows of an update have one RMS."""
    nesterov: bool = True
    """Orthogonalize mu M + (1 - mu) G instead of M alone."""
    accumulate: Literal["average", "sum"] = "average"
    """What the momentum is. average: of gradients, the authors'; sum: of decayed gradients, as in microsoft/dion. Without Nesterov the update is the same but for eps."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd, with the unadjusted lr; 0 as published."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""
    adjust_lr: Literal["match_rms_adamw", "original", "spectral", "none"] = "match_rms_adamw"
    """c of step 6. match_rms_adamw: 0.2 sqrt(max(m, n)), updates of AdamW's size; original: sqrt(max(1, m/n)), the authors'; spectral: sqrt(m/n), microsoft/dion's; none: 1."""
    ortho: Literal["ns5", "pe", "svd"] = "ns5"
    """How D is orthogonalized. ns5: the quintic, as published; pe: Polar Express, seven steps; svd: exactly, slow, waits for the device."""
    ns_steps: int = 5
    """Newton-Schulz iterations of ns5; 5 as published."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """The quintic's a, b, c; Jordan's, as published."""
    ns_eps: float = 1e-07
    """Least Frobenius norm that D is divided by in ns5."""
    ns_dtype: Literal["auto", "fast", "bfloat16", "float32", "float64"] = "auto"
    """Dtype of ns5. auto: bfloat16 on CUDA, as published, elsewhere float32, and float64 for float64 weights; fast: as in Muon."""
    norm_eps: float = 1e-10
    """Added to the roots and norms of step 4; 1e-10 as published."""


@dataclass(kw_only=True)
class ReLoRAAdamW(OptimizerSection):
    lr: float = 0.001
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments; the README's."""
    eps: float = 1e-08
    """Added to the root of the second moment, after its bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""
    reset_every: int = 0
    """Steps between two resets, the layer's `merge_every`; 0: never."""
    reset: Literal["zero", "joint", "magnitude"] = "zero"
    """What a reset drops. zero: all; joint: small entries of m, with their v; magnitude: small entries of m and of v each, the released code's."""
    prune: float = 0.9
    """Fraction of entries that joint and magnitude drop; 0.9 "usually performs well" (README), 0.99 in the paper, 0.8 in the 1B configuration."""


@dataclass(kw_only=True)
class SCALE(OptimizerSection):
    lr: float = 0.001
    """Learning rate, the RMS of an update; 1e-3 is the released code's."""
    momentum: float = 0.9
    """Decay rate beta of the average of the head's gradients; 0.9 as published."""
    norm_eps: float = 1e-08
    """Least RMS that a row or column is divided by; 1e-8 is the released code's."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd; 0 as published."""


@dataclass(kw_only=True)
class SinkGD(OptimizerSection):
    lr: float = 0.001
    """Learning rate of the matrices, the RMS of an update; 1e-3 as the sources multiply it out (0.02 x 0.05). Packages that leave out sqrt(m) and sqrt(n) have updates of RMS 1/sqrt(m): their rates do not compare."""
    iters: int = 5
    """Normalizations of rows and columns; 5 as published, 1 is said to lose little."""
    rows_first: bool = True
    """Normalize the rows first; then the columns are exact at the end, else the rows."""
    target: Literal["none", "unit", "muon"] = "none"
    """Spectral norm that an update is brought to, in units of lr. none: an update of RMS lr, as published; unit: 1; muon: sqrt(m/n), which makes lr independent of the width."""
    power_iters: int = 1
    """Power iterations per step for the spectral norm; 1 in axolotl, warm-started."""
    power_iters_first: int = 10
    """The same in the first step, from a random vector; ours: 10."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd; 0 as published."""


@dataclass(kw_only=True)
class Spectron(OptimizerSection):
    lr: float = 0.01
    """eta, in units of the spectral norm of a change of W; 0.01 is shown stable in the paper."""
    momentum: float = 0.95
    """Decay rate beta of the momenta; 0.95 as published."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd of the factors, as `decay` says; off by default."""
    variant: Literal["published", "certified"] = "published"
    """published: the paper's algorithm; certified: the norm of an update is at most lr, proved."""
    decay: Literal["factor", "wd_scaled", "wd_split", "product"] = "factor"
    """How the factors decay. factor: A (1 - lr wd), as published; wd_scaled: A (1 - rho wd); wd_split: A sqrt(1 - lr wd), so that W itself decays by 1 - lr wd; product: the Frobenius norm of A B^T, A - lr wd A B^T B and B - lr wd B A^T A, before step 2."""
    step_size: Literal["paper", "tight"] = "paper"
    """paper: rho = lr / (s + 1) with s = sigma_A + sigma_B; tight: all of the bound, the root of c rho s + c^2 rho^2 = lr."""
    ortho: Literal["auto", "ns5", "pe", "svd"] = "auto"
    """How momenta are orthogonalized. auto: ns5 for published, pe for certified; ns5: the quintic of the paper; pe: Polar Express; svd: the slow reference."""
    norms: Literal["auto", "power", "bound", "exact"] = "auto"
    """Where sigma comes from. auto: power for published, bound for certified; power: power iteration; bound: bounds from above; exact: the slow reference."""
    ns_steps: int = 5
    """Iterations of ns5; 5 as published."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    """The a, b, c of ns5; the published ones."""
    ns_eps: float = 1e-07
    """Added to the Frobenius norm before ns5 divides by it; 1e-7 as published."""
    ns_dtype: Literal["auto", "fast", "bfloat16", "float32", "float64"] = "auto"
    """Dtype of ns5. auto: bfloat16 on CUDA for published, else float32, and float64 for float64 weights; fast: as in Muon."""
    power_iters: int = 1
    """Power iterations per step and factor; 1 as published, warm-started."""
    norm_refresh: int = 20
    """Steps between two refreshes of the bounds (norms = bound only; below float32 every step)."""
    rebalance_every: int = 0
    """Steps between two changes to balanced factors, A^T A = B^T B; 0: never."""
    orthogonalize: bool = True
    """False, for ablations (published only): the momentum itself instead of Ortho(M)."""
    renormalize: bool = True
    """False, for ablations (published only): rho = lr instead of lr / (s + 1)."""
    seed: int = 0
    """Seed of the start vectors of the power iteration."""


@dataclass(kw_only=True)
class StableSPAM(OptimizerSection):
    lr: float = 0.001
    """Learning rate; 1e-3 is the released code's, 8e-4 that of its 130M script."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates b1, b2 of the two moments; (0.9, 0.999) as released."""
    eps: float = 1e-08
    """Added to the root of the second moment, and to that of s; 1e-8 as released."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd of all parameters; 0 as released."""
    decay: Literal["entries", "product"] = "entries"
    """What weight_decay does to factors. entries: A (1 - lr wd), B likewise; product: the Frobenius norm of A B^T decays, A - lr wd A B^T B and B - lr wd B A^T A. Other weights always by entries."""
    gamma1: float = 0.7
    """Decay rate g1 of the mean norm p; 0.7 as released, 0.85 in its bfloat16 script."""
    gamma2: float = 0.9
    """Decay rate g2 of the mean square s; 0.9 as released, 0.99999 in its bfloat16 script."""
    theta: float = 0.999
    """Decay rate of the mean maximum a; 0.999 as released."""
    reset_every: int = 1000
    """Updates between two resets of the moments; 1000 as released. 0: never."""
    reset_counter: Literal["shared", "separate"] = "shared"
    """What k is after a reset. shared: the moments' counter, as released; separate: t."""
    reset_moments: Literal["before", "after"] = "before"
    """Whether moments are dropped before or after the update of the reset. before: as it is meant; after: as the released code runs."""
    total_steps: int | None = None
    """T of step 1, the length of the run. None: that of `lowrise train`, and without a run c = 1. 0: c = 1."""
    eta_min: float = 0.5
    """Least c, at the end of the run; 0.5 as released."""


@dataclass(kw_only=True)
class SWAN(OptimizerSection):
    lr: float = 0.001
    """Learning rate of the matrices, the RMS of an update; 1e-3 as the sources multiply it out (0.02 x 0.05)."""
    axis: int = 1
    """What is standardized, of a weight stored out x in. 1: rows; 0: columns."""
    center: bool = True
    """Subtract the mean of each row (or column) before dividing by its deviation."""
    method: Literal["ns", "nsds", "exact"] = "ns"
    """How step 2 is computed. ns: coupled Newton-Schulz; nsds: with diagonals, experimental; exact: by SVD, slow."""
    steps: int | None = None
    """Newton-Schulz steps; none: 10 for ns, 2 for nsds."""
    beta: float | None = None
    """Newton-Schulz step size; none: 0.8 for ns, 0.4 for nsds. 0.5 converges to the exact result."""
    rescale: bool = True
    """Give every update RMS lr; used in practice."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd; 0 as published."""


@dataclass(kw_only=True)
class TSVD(OptimizerSection):
    lr: float = 0.003
    """Learning rate eta; 3e-3 trained a toy model best (docs/methods/tsvd.md)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates b1, b2 of the two moments."""
    eps: float = 1e-08
    """Added to the root of the second moment, after its bias correction."""
    weight_decay: float = 0.0
    """Decoupled weight decay wd of the singular values s, and so of W; U and V have none."""
    factor_scale: float = 1.0
    """Factor on the step of U and V; 0.5 and 2 trained worse."""
    spectrum_scale: float = 3.0
    """Learning rate of s as a multiple of lr; 1 and 10 were close to 3."""
    reference_rows: float = 128.0
    """Rows at which U and V take steps of exactly lr; others by the root of the ratio, so that the angle of a step does not depend on the width. 0: no such factor."""
    project: Literal["none", "step", "both"] = "none"
    """Projection to the tangent space. none; step: of the step, Z - X sym(X^T Z); both: of the gradient too, before the moments."""
    retraction: Literal["qr", "polar"] = "qr"
    """Way back to orthonormal columns. qr: step 4; polar: (X + Z)((X + Z)^T (X + Z))^(-1/2)."""
    transport: bool = False
    """Project the first moments to the tangent space at the new factors, m - X sym(X^T m)."""


OPTIMIZER_OPTIONS: dict[str, type[OptimizerSection]] = {
    "adamw": AdamW,
    "apollo": APOLLO,
    "dion2": Dion2,
    "fira": Fira,
    "galore": GaLore,
    "gwt": GWT,
    "loramuon": LoRAMuon,
    "loro": LORO,
    "muon": Muon,
    "normuon": NorMuon,
    "relora": ReLoRAAdamW,
    "scale": SCALE,
    "sinkgd": SinkGD,
    "spectron": Spectron,
    "stablespam": StableSPAM,
    "swan": SWAN,
    "tsvd": TSVD,
}
"""Name in recipes -> its section."""
