"""From points to the document of a scaling study: fits of every method, and methods against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrise.errors import UsageError
from lowrise.names import lookup
from lowrise.scaling.isoflop import Interval, IsoFlop, Power, fit_isoflop
from lowrise.scaling.multiplier import Multiplier, multiplier
from lowrise.scaling.options import FitRules
from lowrise.scaling.parametric import Parametric, fit_parametric
from lowrise.scaling.points import Point, Points, by_method

BASELINES = ("lowrank", "adamw")  # the first that is there is the reference
FEW_DEGREES, DRIFT = 4, 0.5

# (source, exponent of N_opt, of D_opt, how sure): what stands beside ours in every report.
PUBLISHED = (
    (
        "Spectron, Janson, Oyallon & Belilovsky 2026 (2602.12429): 39 runs, 2.2e18 to 3.6e19 FLOPs",
        0.479,
        0.521,
        "as quoted; their N is non-embedding and factorized",
    ),
    (
        "Chinchilla, Hoffmann et al. 2022 (2203.15556), isoFLOP curves: 6e18 to 3e21 FLOPs",
        0.49,
        0.51,
        "table 2; all parameters",
    ),
    (
        "Chinchilla's points read off its figure, parametric: Besiroglu et al. 2024 (2404.10102)",
        0.512,
        0.488,
        "from alpha 0.348 and beta 0.366",
    ),
)


@dataclass(frozen=True)
class MethodFit:
    """All fits of one method."""

    points: Points
    isoflop: IsoFlop
    parametric: Parametric | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What a report and fit.json are made of."""

    methods: dict[str, MethodFit]
    reference: str | None
    multipliers: tuple[Multiplier, ...]
    rules: FitRules
    points: tuple[Point, ...]
    left_out: tuple[str, ...]


def check_rules(rules: FitRules) -> None:
    """Raise `UsageError` for rules by which nothing can be fitted."""
    if not 0 < rules.level < 1:
        raise UsageError(f"--level {rules.level:g}: give a fraction between 0 and 1, for example 0.9.")
    if rules.draws < 100:
        raise UsageError(f"--draws {rules.draws}: at least 100 are needed for the ends of an interval.")
    if not (math.isfinite(rules.huber) and rules.huber > 0):
        raise UsageError(f"--huber {rules.huber:g}: give a number above 0, for example 1e-3.")
    if rules.bootstrap_seed < 0:
        raise UsageError(f"--bootstrap-seed {rules.bootstrap_seed}: give an integer from 0 on.")


def fit_study(points: Sequence[Point], rules: FitRules, left_out: Sequence[str] = ()) -> Study:
    """Fit every method, and compare all with the reference. Raises `UsageError` for an unknown reference."""
    check_rules(rules)
    groups = by_method(points)
    reference = _reference(rules.reference, list(groups))
    methods = {
        # Each method has draws of its own: their noise is independent.
        name: _fit(group, rules, rules.bootstrap_seed + 1000 * i)
        for i, (name, group) in enumerate(groups.items())
    }
    multipliers = tuple(
        multiplier(name, fit.isoflop.draws, reference, methods[reference].isoflop.draws, level=rules.level)
        for name, fit in methods.items()
        if reference is not None and name != reference
    )
    return Study(methods, reference, multipliers, rules, tuple(points), tuple(left_out))


def _reference(asked: str | None, names: list[str]) -> str | None:
    if asked is not None:
        lookup(dict.fromkeys(names), asked, "method", "--reference")
        return asked
    if len(names) < 2:
        return None
    return next((name for name in BASELINES if name in names), names[0])


def _fit(points: Points, rules: FitRules, seed: int) -> MethodFit:
    isoflop = fit_isoflop(points, level=rules.level, draws=rules.draws, seed=seed)
    parametric = fit_parametric(points, delta=rules.huber, level=rules.level, draws=rules.draws, seed=seed)
    return MethodFit(points, isoflop, parametric, tuple(_notes(points, isoflop, parametric)))


def _notes(points: Points, isoflop: IsoFlop, parametric: Parametric | None) -> list[str]:
    """What a reader must know about the fits of one method, as sentences."""
    notes = list(isoflop.left_out)
    if isoflop.parabolas and isoflop.freedom < FEW_DEGREES:
        few = "intervals are wide" if isoflop.freedom else "no intervals; a fourth size at a budget gives one"
        notes.append(f"{isoflop.freedom} degree(s) of freedom for the noise: {few}.")
    places = [_place(points, p) for p in isoflop.parabolas if p.counts]
    if len(places) > 1 and max(places) - min(places) > DRIFT:
        notes.append(
            "The minimum wanders over the sizes from budget to budget. A parabola is not the true curve, and "
            "what it is off by then changes with the budget: exponents are biased, in no interval's sight."
        )
    if parametric is None:
        notes.append("The parametric fit needs six points, with three sizes and three numbers of tokens.")
    return notes


def _place(points: Points, parabola: Any) -> float:
    """Where the minimum lies between the smallest (-1) and the largest size (1), in log N."""
    sizes = np.log(points.params[points.budget == parabola.budget])
    return float((math.log(parabola.params.value) - (sizes.min() + sizes.max()) / 2) * 2 / np.ptp(sizes))


# ---- as plain values


def document(study: Study) -> dict[str, Any]:
    """`fit.json`."""
    rules = study.rules
    return {
        "format": 1,
        "level": rules.level,
        "draws": rules.draws,
        "bootstrap_seed": rules.bootstrap_seed,
        "huber": rules.huber,
        "reference": study.reference,
        "methods": {name: _method(fit) for name, fit in study.methods.items()},
        "multipliers": [_multiplier(m) for m in study.multipliers],
        "published": [
            {"source": source, "params_exponent": n, "tokens_exponent": d, "note": note}
            for source, n, d, note in PUBLISHED
        ],
        "left_out": list(study.left_out),
    }


def _method(fit: MethodFit) -> dict[str, Any]:
    isoflop, parametric = fit.isoflop, fit.parametric
    names = ("E", "A", "B", "alpha", "beta", "params_exponent", "tokens_exponent")
    return {
        "points": len(fit.points),
        "isoflop": {
            "params_exponent": _ends(isoflop.params.exponent) if isoflop.params else None,
            "tokens_exponent": _ends(isoflop.tokens.exponent) if isoflop.tokens else None,
            "sigma": isoflop.sigma,
            "degrees_of_freedom": isoflop.freedom,
            "budgets": [
                {
                    "budget": p.budget,
                    "sizes": p.sizes,
                    "coefficients": p.coefficients,
                    "center": p.center,
                    "params": _ends(p.params),
                    "tokens": _ends(p.tokens),
                    "loss": _ends(p.loss),
                    "inside": p.inside,
                }
                for p in isoflop.parabolas
            ],
        },
        "parametric": None
        if parametric is None
        else {name: _ends(getattr(parametric, name)) for name in names} | {"sigma": parametric.sigma},
        "notes": list(fit.notes),
    }


def _ends(one: Interval) -> list[float]:
    return [one.value, one.low, one.high]


def _multiplier(m: Multiplier) -> dict[str, Any]:
    return {
        "method": m.method,
        "reference": m.reference,
        "times": None if m.times is None else _ends(m.times),
        "at_small_compute": None if m.at_small is None else _ends(m.at_small),
        "at_large_compute": None if m.at_large is None else _ends(m.at_large),
        "losses": m.losses,
        "reference_flops": m.flops,
        "why_none": m.why_none or None,
    }


# ---- in words


def with_interval(one: Interval | None, form: str = ".3g") -> str:
    """`0.479 [0.455, 0.503]`; `0.479 [open]` where the draws do not close the interval."""
    if one is None or math.isnan(one.value):
        return "–"
    if math.isnan(one.low):
        return f"{one.value:{form}}"
    if not (math.isfinite(one.low) and math.isfinite(one.high)):
        return f"{one.value:{form}} [open]"
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"


def sentence(m: Multiplier) -> str:
    """`spectron needs 0.71x [0.64, 0.79] of lowrank's FLOPs for the same loss.`"""
    if m.times is None:
        return f"{m.method} against {m.reference}: no multiplier, because {m.why_none}."
    first, _, rest = with_interval(m.times, ".2f").partition(" ")
    said = f"{m.method} needs {first}x {rest}".rstrip() + f" of {m.reference}'s FLOPs for the same loss."
    if m.changes and m.flops is not None:
        small, large = (with_interval(end, ".2f") for end in (m.at_small, m.at_large))
        low, high = (f"{flops:.2g}".replace("e+", "e") for flops in m.flops)
        said += f" It changes with the compute: {small} at {low} FLOPs, {large} at {high}."
    return said


def law(power: Power | None) -> str:
    """`0.479 [0.455, 0.503]` for the exponent of a power; an en dash where there is none."""
    return with_interval(None if power is None else power.exponent)
