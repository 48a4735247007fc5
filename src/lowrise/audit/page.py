"""An audit as a page: verdict, spectra of every kind of matrix, ranks over the depth, the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lowrise import __version__
from lowrise.audit.measure import Audited
from lowrise.audit.show import cells, header, title
from lowrise.audit.source import Source
from lowrise.audit.summary import totals, verdict
from lowrise.report import html
from lowrise.report.charts import COLORS, Series, chart
from lowrise.report.formatting import si
from lowrise.report.run_report import matrix_type

_POINTS = 256  # of a spectrum; more than a chart of this width can show
_FLOOR = 1e-9  # of the first singular value: below lies rounding


def page(folder: Path, source: Source, matrices: Sequence[Audited], energy: float) -> str:
    """A whole HTML document."""
    sound = [m for m in matrices if m.finite]
    kinds: dict[str, list[tuple[int, Audited]]] = defaultdict(list)
    for matrix in sound:
        kind = matrix_type(matrix.name)
        kinds[kind].append((_depth(matrix.name, len(kinds[kind])), matrix))
    body = [
        html.heading("Ranks and spectra", title(folder, source)),
        html.tiles(_tiles(matrices, energy)),
        html.section("Verdict", *(html.note(sentence) for sentence in verdict(matrices, energy))),
    ]
    if sound:
        body += [
            html.section("Singular values, of the largest", *_spectra(kinds)),
            html.section("Over the depth", *_over_depth(kinds, energy)),
        ]
    rows = [cells(matrix, matrix.name) for matrix in matrices]
    body.append(
        html.section(
            "Matrices",
            html.table(header(energy), rows),
            html.note(
                "(rank): a dense matrix, of which it is the smaller side. eff.: effective rank, exp of the "
                "entropy of the singular values; stable: stable rank; A/B: Frobenius norm of A over that of "
                "B; cond.: the worse condition of the two factors; s1/s2: first over second singular value."
            ),
        )
    )
    return html.page(f"Ranks of {folder.name}", body, f"lowrise {__version__}")


def _tiles(matrices: Sequence[Audited], energy: float) -> list[tuple[str, str, bool]]:
    sums = totals(matrices)
    share = f"{100 * energy:g}%"
    known = sums["energy_rank_median"]
    return [
        ("matrices", str(sums["matrices"]), False),
        (f"rank for {share}, median", "–" if known is None else f"{known:g}", True),
        (f"rank for {share}, largest", str(sums["energy_rank_max"] or "–"), False),
        ("ranks not needed", str(sums["wasted_rank"]), False),
        ("parameters of the matrices", si(sums["parameters"]), False),
        ("parameters saved", si(sums["parameters_saved"]), True),
    ]


def _spectra(kinds: dict[str, list[tuple[int, Audited]]]) -> list[str]:
    """A chart for each kind of matrix, two in a row."""
    charts = []
    for kind, found in kinds.items():
        lines = []
        for place, (depth, matrix) in enumerate(found):
            s = np.asarray(matrix.singular_values)
            kept = np.unique(np.linspace(0, len(s) - 1, min(len(s), _POINTS)).round().astype(int))
            y = s[kept] / s[0] if s[0] > 0 else np.zeros(len(kept))
            y = np.where(y > _FLOOR, y, np.nan)
            lines.append(Series(f"{depth}", kept + 1, y, place % COLORS, "line"))
        legend = len(lines) <= COLORS
        drawn = chart(
            lines, x_label="index", y_label="s / s1", width=450, height=200, log_y=True, legend=legend
        )
        charts.append(html.titled(f"{kind}: a line for each layer", drawn))
    return [html.pair(*charts)]


def _over_depth(kinds: dict[str, list[tuple[int, Audited]]], energy: float) -> list[str]:
    measures: tuple[tuple[str, Callable[[Audited], float | None]], ...] = (
        (f"rank for {100 * energy:g}% of the energy", lambda m: m.energy_rank),
        ("effective rank", lambda m: m.effective_rank),
        ("spectral norm", lambda m: m.spectral_norm),
        ("balance of the factors, A/B", lambda m: m.balance),
    )
    charts = []
    for name, of in measures:
        lines = []
        for color, (kind, found) in enumerate(kinds.items()):
            points = [(depth, value) for depth, matrix in found if (value := of(matrix)) is not None]
            if points:
                lines.append(Series(kind, [x for x, _ in points], [y for _, y in points], color, "both"))
        if lines:
            charts.append(
                html.titled(name, chart(lines, x_label="layer", y_label=name, width=450, height=220))
            )
    return [html.pair(*charts)]


def _depth(name: str, otherwise: int) -> int:
    """The first number in a name, which is the layer's."""
    return next((int(part) for part in name.split(".") if part.isdigit()), otherwise)
