"""Totals of an audit and what follows from it, in a few sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowrise.audit.measure import Audited
from lowrise.audit.source import Source

UNBALANCED = 2.0
"""Ratio of the factors' norms from which a pair is named: ||A||_2 + ||B||_2 is then 6% above its least."""
SPIKE = 10.0
"""s_1 / s_2 from which a matrix is named: nine tenths of its size lie in one direction, and more."""


def totals(matrices: Sequence[Audited]) -> dict[str, Any]:
    """Sums and extremes over all matrices with finite entries."""
    sound = [m for m in matrices if m.finite]
    before = sum(m.parameters for m in sound)
    after = sum(m.parameters_at_energy or 0 for m in sound)
    return {
        "matrices": len(matrices),
        "not_finite": len(matrices) - len(sound),
        "parameters": before,
        "parameters_at_energy": after,
        "parameters_saved": before - after,
        "rank": sum(m.rank for m in sound),
        "energy_rank": sum(m.energy_rank or 0 for m in sound),
        "wasted_rank": sum(m.wasted_rank or 0 for m in sound),
        "energy_rank_median": statistics.median(m.energy_rank or 0 for m in sound) if sound else None,
        "energy_rank_max": max((m.energy_rank or 0 for m in sound), default=None),
        "effective_rank_median": statistics.median(m.effective_rank or 0 for m in sound) if sound else None,
        "spectral_norm_max": max((m.spectral_norm or 0 for m in sound), default=None),
        "spike_max": max((m.spike for m in sound if m.spike is not None), default=None),
    }


def verdict(matrices: Sequence[Audited], energy: float) -> list[str]:
    """Sentences, the most important first."""
    sound, sums = [m for m in matrices if m.finite], totals(matrices)
    said = []
    if sums["not_finite"]:
        names = ", ".join(m.name for m in matrices if not m.finite)
        said.append(f"Entries of {names} are not finite: the training has diverged before this point.")
    if not sound:
        return said
    widest = max(sound, key=lambda m: m.energy_rank or 0)
    ranks = sorted({m.rank for m in sound})
    of = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    said.append(
        f"{100 * energy:g}% of the energy takes rank {sums['energy_rank_median']:g} at the median and "
        f"{widest.energy_rank} at most ({widest.name}); the ranks are {of}, of which it needs "
        f"{100 * sums['energy_rank'] / sums['rank']:.0f}%."
    )
    saved, before = sums["parameters_saved"], sums["parameters"]
    said.append(
        f"With that rank in each matrix {sums['parameters_at_energy']:,} instead of {before:,} parameters: "
        f"{saved:,} saved ({100 * saved / before:.1f}%)."
        if saved
        else "No matrix would have fewer parameters at that rank."
    )
    bent = sum(not m.linear for m in sound)
    if bent:
        said.append(
            f"{bent} maps have an activation between their factors: their values are those of the product "
            "without it, and nothing of them is counted as saved."
        )
    said += _factors(sound)
    spiky = sorted((m for m in sound if (m.spike or 0) > SPIKE), key=lambda m: -(m.spike or 0))
    if spiky:
        said.append(
            f"{len(spiky)} matrices have a first singular value above {SPIKE:g} times the second, most of "
            f"all {spiky[0].name} ({spiky[0].spike:.3g})."
        )
    return said


def _factors(sound: Sequence[Audited]) -> list[str]:
    # Adapters beside a dense part are small by design.
    pairs = [(max(m.balance, 1 / m.balance), m) for m in sound if m.factored and m.balance]
    if not pairs:
        return []
    worst, name = max(((ratio, m.name) for ratio, m in pairs), key=lambda pair: pair[0])
    if worst < UNBALANCED:
        return [f"Factors are balanced: norms differ by {worst:.2f} times at most."]
    count = sum(ratio >= UNBALANCED for ratio, _ in pairs)
    return [f"{count} pairs of factors are unbalanced, most of all {name} (norms differ {worst:.3g} times)."]


def document(folder: Path, source: Source, matrices: Sequence[Audited], energy: float) -> dict[str, Any]:
    """All of it for `--json`; the singular values are in the page only."""
    rows = [{k: v for k, v in asdict(m).items() if k != "singular_values"} for m in matrices]
    return {
        "folder": str(folder),
        "kind": source.kind,
        "method": source.method,
        "step": source.step,
        "energy": energy,
        "matrices": rows,
        "totals": totals(matrices),
        "verdict": verdict(matrices, energy),
    }
