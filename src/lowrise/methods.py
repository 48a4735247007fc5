"""The table of methods: a named pair of layer and optimizer with the defaults that `lowrise train` starts
from.

The table names defaults, not limits: any layer may be combined with any optimizer that can update it
(`--layer.name`, `--optimizer.name`). Defaults are for the tiny presets on a CPU; recipes carry the
published sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lowrise.citations import CITATIONS
from lowrise.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row."""

    name: str
    layer: str
    """Name in `layers.LAYERS`, or "dense"."""
    optimizer: str
    """Name in `optim.OPTIMIZERS`."""
    summary: str
    source: str
    cites: tuple[str, ...] = ()
    """Keys in `citations.CITATIONS`, the method's own paper first."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Dotted configuration keys; each value's origin is a comment in the table."""

    def bibtex(self) -> str:
        """BibTeX of its sources; `UsageError` where the row names none."""
        if not self.cites:
            raise UsageError(
                f"The method {self.name} has no citation on record; its source: {self.source}. Cite that."
            )
        return "\n\n".join(CITATIONS[key].bibtex() for key in self.cites)


# Released scripts (alvin-zyl/CoLA): torch's betas, decay on all parameters, the others' rate of the smallest
# model. The matrices' rate is the best of a grid at tiny (benchmarks/results), as in the other rows.
_COLA = {
    "optimizer.lr": 1e-3,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.01,
    "other.lr": 6e-3,
    "other.betas": (0.9, 0.999),
    "other.weight_decay": 0.01,
    "train.grad_clip": 0.5,
}

# Released scripts (jiaweizzhao/GaLore, xichen-fy/Fira, zhuhanqing/APOLLO): a quarter of the width as rank at
# 60M, and one rate (0.01) at 60M to 1B; other.lr as in the other rows.
_PROJECTED = {"optimizer.rank": 0.25, "other.lr": 3e-3}

# A weight of fixed norm turns by the learning rate to the end, so that this has to go near 0 (modded-nanogpt,
# track 3: linear to 0); at 0 itself the last update would do nothing.
_FIXED_NORM = {"optimizer.hyperball": True, "other.lr": 3e-3, "schedule.min_lr_ratio": 0.01}

_ROWS = (
    Method(
        name="adamw",
        layer="dense",
        optimizer="adamw",
        summary="dense weights, AdamW: the baseline that every paper quotes",
        source="Loshchilov & Hutter 2019, arXiv 1711.05101",
        cites=("loshchilov2019decoupled",),
        defaults={"optimizer.lr": 4e-4, "other.lr": 3e-3},
    ),
    Method(
        name="muon",
        layer="dense",
        optimizer="muon",
        summary="dense weights, orthogonalized momentum: the strongest full-rank baseline",
        source="Jordan et al. 2024 (KellerJordan/Muon); Moonlight, arXiv 2502.16982",
        cites=("jordan2024muon", "liu2025muon"),
        defaults={"optimizer.lr": 3e-3, "other.lr": 3e-3},
    ),
    Method(
        name="lowrank",
        layer="lowrank",
        optimizer="adamw",
        summary="factorized weights W = A B^T, AdamW tuned like the others",
        source="Kamalakara et al. 2022, arXiv 2209.13569; the tuned form of the published straw man",
        cites=("kamalakara2022exploring",),
        defaults={"optimizer.lr": 1e-3, "other.lr": 3e-3},
    ),
    Method(
        name="loro",
        layer="lowrank",
        optimizer="loro",
        summary="factorized weights, Adam with a Riemannian step, resets and restarts every K updates",
        source="Mo, Huang & Pan 2025, ICLR (OpenReview i0zzO7Hslk)",
        cites=("mo2025parameter",),
        defaults={
            "layer.init": "xavier",  # the authors' scripts
            "optimizer.lr": 4e-3,  # benchmarks/results; lazy steps have r / d = 1/4 of it
            "optimizer.exact_every": 100,  # 10 cycles in 1000 updates; published 500 (200 at 1B)
            "other.lr": 3e-3,  # as in the other rows
            "schedule.restart_warmup": 5,  # the authors' scripts
        },
    ),
    Method(
        name="spectron",
        layer="lowrank",
        optimizer="spectron",
        summary="factorized weights, orthogonalized momenta, update norm bounded by the learning rate",
        source="Janson, Oyallon & Belilovsky 2026, arXiv 2602.12429",
        cites=("janson2026stabilizing",),
        defaults={"optimizer.lr": 0.02, "other.lr": 3e-3},
    ),
    Method(
        name="loramuon",
        layer="lowrank",
        optimizer="loramuon",
        summary="factorized weights, Muon's step of the product, whatever its split into factors",
        source="Cesista, Crowson, Simal & Biderman 2026, arXiv 2606.12921; no code of theirs was at hand",
        cites=("cesista2026spectral",),
        defaults={
            "optimizer.lr": 0.02,  # ours
            "other.lr": 3e-3,  # as in the other rows
            "train.grad_clip": 0.0,  # a global norm depends on the split into factors
        },
    ),
    Method(
        name="cola",
        layer="cola",
        optimizer="adamw",
        summary="an activation between the factors: low-rank activations, AdamW",
        source="Liu et al. 2025, arXiv 2502.10940 (EMNLP 2025), released code",
        cites=("liu2025cola",),
        defaults=_COLA,
    ),
    Method(
        name="cola-m",
        layer="cola",
        optimizer="adamw",
        summary="CoLA that keeps the latents alone and recomputes the rest: same bits, less memory",
        source="Liu et al. 2025, arXiv 2502.10940, CoLA-M",
        cites=("liu2025cola",),
        defaults={**_COLA, "model.recompute": "latents"},
    ),
    Method(
        name="selfguided",
        layer="selfguided",
        optimizer="adamw",
        summary="factorized weights, led by a dense guide that fades out over the first half, AdamW",
        source="Wei et al. 2024, arXiv 2406.16450; the baseline of Spectron's paper",
        cites=("wei2024building", "janson2026stabilizing"),
        defaults={"optimizer.lr": 1.2e-3, "other.lr": 3e-3},
    ),
    Method(
        name="lora",
        layer="lora",
        optimizer="adamw",
        summary="frozen random W0 plus a trained product A B^T, the baseline of the literature",
        source="Hu et al. 2021, arXiv 2106.09685; from scratch: Lialin et al. 2023, arXiv 2307.05695",
        cites=("hu2021lora", "lialin2023relora"),
        defaults={"optimizer.lr": 1e-3, "other.lr": 3e-3},
    ),
    Method(
        name="relora",
        layer="lora",
        optimizer="relora",
        summary="LoRA, its product merged into W0 and begun again every cycle, moments reset, jagged cosine",
        source="Lialin et al. 2023, arXiv 2307.05695",
        cites=("lialin2023relora",),
        defaults={
            "optimizer.lr": 1e-3,  # benchmarks/results: about twice the full-rank rate, as in the README
            "other.lr": 3e-3,
            "layer.merge_every": 250,  # README: a quarter of the updates (5,000 of 20,000)
            "optimizer.reset_every": 250,
            "schedule.cycle": 250,
            "schedule.restart_warmup": 10,  # README: 2% of a cycle (100 of 5,000), rounded up
        },
    ),
    Method(
        name="sltrain",
        layer="sltrain",
        optimizer="adamw",
        summary="A B^T plus a sparse matrix with a random fixed support",
        source="Han et al. 2024, arXiv 2406.02214",
        cites=("han2024sltrain",),
        defaults={"optimizer.lr": 1.2e-3, "other.lr": 3e-3},
    ),
    Method(
        name="tsvd",
        layer="svd",
        optimizer="tsvd",
        summary="W = U diag(s) V^T, U and V orthonormal throughout, rank chosen by energy during training",
        source="after Kamali et al. 2026, arXiv 2605.28573; the algorithm is ours (docs/methods/tsvd.md)",
        cites=("kamali2026efficient",),
        # ours: the threshold is that of the toy comparison in the docs page
        defaults={"optimizer.lr": 7.5e-3, "other.lr": 3e-3, "layer.energy": 0.97},
    ),
    Method(
        name="galore",
        layer="dense",
        optimizer="galore",
        summary="dense weights, Adam in the leading singular subspace of the gradient",
        source="Zhao et al. 2024, arXiv 2403.03507; released code",
        cites=("zhao2024galore",),
        defaults={**_PROJECTED, "optimizer.lr": 4e-3},  # benchmarks/results
    ),
    Method(
        name="fira",
        layer="dense",
        optimizer="fira",
        summary="GaLore plus the rest of the gradient, scaled as Adam scales the inside",
        source="Chen et al. 2024, arXiv 2410.01623; released code",
        cites=("chen2024fira",),
        defaults={**_PROJECTED, "optimizer.lr": 1.6e-3},  # benchmarks/results
    ),
    Method(
        name="apollo",
        layer="dense",
        optimizer="apollo",
        summary="the gradient, scaled per channel by what Adam does in a random projection",
        source="Zhu et al. 2024, arXiv 2412.05270 (MLSys 2025)",
        cites=("zhu2024apollo",),
        defaults={**_PROJECTED, "optimizer.lr": 4e-3},  # benchmarks/results
    ),
    Method(
        name="apollo-mini",
        layer="dense",
        optimizer="apollo",
        summary="the gradient, scaled as a whole by what Adam does in one random direction",
        source="Zhu et al. 2024, arXiv 2412.05270 (MLSys 2025)",
        cites=("zhu2024apollo",),
        defaults={
            **_PROJECTED,
            "optimizer.lr": 1.6e-3,  # benchmarks/results
            "optimizer.rank": 1,
            "optimizer.scale_type": "tensor",
            "optimizer.scale": 128.0,
        },
    ),
    Method(
        name="gwt",
        layer="dense",
        optimizer="gwt",
        summary="dense weights, Adam on Haar approximations of the gradient: a quarter of the moments",
        source="Wen et al. 2025, arXiv 2501.07237; released code",
        cites=("wen2025breaking",),
        defaults={"optimizer.lr": 4e-3, "other.lr": 3e-3},  # benchmarks/results; as in the other rows
    ),
    Method(
        name="swan",
        layer="dense",
        optimizer="swan",
        summary="dense weights, gradients normalized and whitened: no state for matrices",
        source="Ma et al. 2024, arXiv 2412.13148 (ICML 2025); no code is public",
        cites=("ma2024swan",),
        defaults={"optimizer.lr": 2.5e-3, "other.lr": 3e-3},  # benchmarks/results; as in the other rows
    ),
    Method(
        name="sinkgd",
        layer="dense",
        optimizer="sinkgd",
        summary="dense weights, rows and columns of gradients normalized in turn: no state for matrices",
        source="Scetbon et al. 2025, arXiv 2502.06742 (NeurIPS 2025); no code is public",
        cites=("scetbon2025gradient",),
        defaults={"optimizer.lr": 4e-4, "other.lr": 3e-3},  # benchmarks/results; as in the other rows
    ),
    Method(
        name="scale",
        layer="dense",
        optimizer="scale",
        summary="dense weights, gradients normalized once, momentum for the head alone",
        source="Glentis et al. 2025, arXiv 2506.16659; released code",
        cites=("glentis2025minimalist",),
        defaults={"optimizer.lr": 4e-4, "other.lr": 3e-3},  # benchmarks/results; as in the other rows
    ),
    Method(
        name="normuon",
        layer="dense",
        optimizer="normuon",
        summary="dense weights, Muon whose updates have rows of about one size",
        source="Li et al. 2025, arXiv 2510.05491; released code",
        cites=("li2025normuon", "jordan2024muon"),
        defaults={"optimizer.lr": 3e-3, "other.lr": 3e-3},  # as muon
    ),
    Method(
        name="dion2",
        layer="dense",
        optimizer="dion2",
        summary="dense weights, Muon on the quarter of the rows or columns of the largest momentum",
        source="Ahn, Amsel & Langford 2025, arXiv 2512.16928; released code",
        cites=("ahn2025simple",),
        defaults={"optimizer.lr": 0.02, "other.lr": 3e-3},  # a coarse grid at nano (docs)
    ),
    Method(
        name="stablespam",
        layer="dense",
        optimizer="stablespam",
        summary="dense weights, AdamW behind gradients that are clipped by entries and smoothed in norm",
        source="Huang et al. 2025, arXiv 2502.17055; released code",
        cites=("huang2025spam",),
        defaults={
            "optimizer.lr": 1e-3,  # a coarse grid at nano (docs)
            "optimizer.reset_every": 250,  # ours: a quarter of the run, where 1000 were of 20,000
            "other.lr": 3e-3,
            "train.grad_clip": 0.0,  # the authors' scripts
        },
    ),
    Method(
        name="sinkgd-spectral",
        layer="dense",
        optimizer="sinkgd",
        summary="SinkGD with updates of spectral norm lr sqrt(out / in), found by power iteration",
        source="Scetbon et al. 2025, arXiv 2502.06742; axolotl, pull requests 3763 and 3785",
        cites=("scetbon2025gradient", "lian2026sinkgd"),
        defaults={
            "optimizer.lr": 0.05,  # a coarse grid at nano (docs)
            "optimizer.target": "muon",
            "other.lr": 3e-3,
            "train.grad_clip": 0.0,  # the matrices' updates do not depend on the size of the gradient
        },
    ),
    Method(
        name="muonh",
        layer="dense",
        optimizer="muon",
        summary="dense weights of fixed norm, Muon's direction, the learning rate as the angle of a step",
        source="Wen et al. 2026, arXiv 2606.16899 (Hyperball); the radius is stored as in microsoft/dion",
        cites=("wen2026fantastic", "jordan2024muon"),
        defaults={**_FIXED_NORM, "optimizer.lr": 0.014},  # modded-nanogpt, track 3
    ),
    Method(
        name="spectronh",
        layer="lowrank",
        optimizer="spectron",
        summary="factorized weights whose product has a fixed norm, orthogonalized momenta of the factors",
        source="after Wen et al. 2026, arXiv 2606.16899 (Hyperball), and Spectron; the product form is ours",
        cites=("wen2026fantastic", "janson2026stabilizing"),
        defaults={**_FIXED_NORM, "optimizer.lr": 0.014},  # as muonh
    ),
    Method(
        name="dlr",
        layer="dlr",
        optimizer="adamw",
        summary="two factors, their latents copied to blocks of the output, which folds into A, AdamW",
        source="Wang et al. 2026, arXiv 2606.28932, released code",
        cites=("wang2026dlr",),
        defaults=_COLA,  # the same map without the residual; the release has no training script
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def register(
    method: Method | None = None, *, optimizer: type | None = None, layer: type | None = None
) -> None:
    """Add a method from outside the package to the tables, with the optimizer or layer class that it names.

    A plugin (`--plugin FILE.py`, `lowrise.plugins`) calls it at import. Without `method` the class gets the
    name that it has in lower case. Raises `UsageError` for a name that is taken by something else.
    """
    from lowrise.layers import LAYERS
    from lowrise.optim import OPTIMIZERS

    for kind, table, new in (("optimizer", OPTIMIZERS, optimizer), ("layer", LAYERS, layer)):
        if new is not None:
            name = new.__name__.lower() if method is None else getattr(method, kind)
            _add(cast(dict[str, Any], table), name, new, kind)
    if method is not None:
        _add(METHODS, method.name, method, "method")


def _add(table: dict[str, Any], name: str, new: Any, kind: str) -> None:
    known = table.get(name)
    if known is not None and known is not new:
        raise UsageError(f"There is a {kind} {name!r} already ({known}): give the plugin's another name.")
    table[name] = new
