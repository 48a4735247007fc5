"""The columns of a comparison's tables, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lowrise.compare.plan import AXES
from lowrise.compare.rows import Comparison, Row
from lowrise.compare.statistics import Interval, Statistic
from lowrise.report.formatting import (
    UNKNOWN,
    duration,
    learning_rate,
    milliseconds,
    number,
    ratio,
    scientific,
    si,
    with_uncertainty,
)
from lowrise.report.formatting import bytes_ as show_bytes


def _show_best(row: Row) -> str:
    """The chosen point: the learning rate, and what else was tuned."""
    best = row.best
    if best is None:
        return UNKNOWN
    values = [learning_rate(best["lr"])]
    values += [
        f"{axis.word} {learning_rate(best[name])}"
        for name, axis in AXES.items()
        if name != "lr" and best[f"{name}_tuned"]
    ]
    marks = [f"×{best['lr_factor']:g}", *best["edges"]] if best["lr_tuned"] else ["not tuned", *best["edges"]]
    return f"{', '.join(values)} ({', '.join(marks)})"


def _show_runs(row: Row) -> str:
    counts = {"ok": row.completed, "diverged": row.diverged, "failed": row.failed, "to do": row.waiting}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"


def _show_interval(interval: Interval | None) -> str:
    if interval is None:
        return UNKNOWN
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _show_p(row: Row) -> str:
    p = row.difference.p_corrected if row.difference.p_corrected is not None else row.difference.p
    return UNKNOWN if p is None else "< 0.001" if p < 0.001 else number(p, 3)


def _show_loss(row: Row) -> str:
    shown = with_uncertainty(row.val_loss.mean, row.val_loss.sd)
    return f"{shown} (n={row.val_loss.n})" if row.val_loss.n else shown


def _show(statistic: Statistic) -> str:
    return with_uncertainty(statistic.mean, statistic.sd)


Column = tuple[str, Callable[[Row], str]]

RECIPE: Column = ("recipe", lambda row: row.label)
QUALITY: tuple[Column, ...] = (
    ("recipe", lambda row: row.label if row.method in ("", row.label) else f"{row.label} ({row.method})"),
    ("best lr", _show_best),
    ("val loss", _show_loss),
    ("perplexity", lambda row: _show(row.val_perplexity)),
    ("bits/byte", lambda row: _show(row.val_bits_per_byte)),
    ("runs", _show_runs),
)
DIFFERENCE: tuple[Column, ...] = (
    RECIPE,
    ("Welch [95%]", lambda row: _show_interval(row.difference.welch)),
    ("paired by seed [95%]", lambda row: _show_interval(row.difference.paired)),
    ("p", _show_p),
    ("verdict", lambda row: row.difference.verdict),
)
COST: tuple[Column, ...] = (
    RECIPE,
    ("params", lambda row: si(row.costs["params_total"])),
    ("non-emb.", lambda row: si(row.costs["params_non_embedding"])),
    ("weights", lambda row: show_bytes(row.costs.get("inference_bytes"))),
    ("FLOPs", lambda row: scientific(row.costs["train_flops"])),
    ("tokens", lambda row: si(row.costs["tokens"])),
    ("train", lambda row: duration(row.costs["train_seconds"])),
    ("tok/s", lambda row: si(row.costs["tokens_per_second"])),
    ("opt. step", lambda row: milliseconds(row.costs["optimizer_step_ms"])),
    ("state", lambda row: show_bytes(row.costs["state_bytes_measured"])),
    ("peak mem.", lambda row: show_bytes(row.costs["peak_memory_bytes"])),
)
RATIOS: tuple[Column, ...] = (
    RECIPE,
    ("perpl.", lambda row: ratio(row.ratios["val_perplexity"])),
    ("params", lambda row: ratio(row.ratios["params_total"])),
    ("non-emb.", lambda row: ratio(row.ratios["params_non_embedding"])),
    ("FLOPs", lambda row: ratio(row.ratios["train_flops"])),
    ("tok/s", lambda row: ratio(row.ratios["tokens_per_second"])),
    ("opt. step", lambda row: ratio(row.ratios["optimizer_step_ms"])),
    ("state", lambda row: ratio(row.ratios["state_bytes_measured"])),
    ("peak mem.", lambda row: ratio(row.ratios["peak_memory_bytes"])),
)


def cells(
    comparison: Comparison, columns: Sequence[Column], *, others: bool = False
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) as text; `others` leaves out the first recipe, which is the reference."""
    rows = comparison.rows[1:] if others else comparison.rows
    return [name for name, _ in columns], [[show(row) for _, show in columns] for row in rows]


def published_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the published numbers."""
    header = ["recipe", "ours", "published", "without its known bias", "source"]
    rows = [
        [
            row["recipe"],
            number(row["ours"], 2),
            number(row["published"], 2),
            " to ".join(number(bound, 2) for bound in row["unbiased"]),
            row["source"],
        ]
        for row in comparison.published.rows
    ]
    return header, rows
