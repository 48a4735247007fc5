"""The JSONs of all stages as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .record import read

Row = dict[str, Any]


def table_of(folder: Path) -> str:
    """One section a stage, as far as they have come."""
    facts = read(folder, "environment") or {}
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())
    parts = [
        f"# {facts.get('device', 'unknown device')}",
        f"Driver {facts.get('driver') or 'none'}, CUDA {facts.get('cuda') or 'none'}, {versions}, "
        f"lowrise {facts.get('lowrise')}, Python {facts.get('python')}, {facts.get('processor')}.",
    ]
    for name, (title, columns) in SECTIONS.items():
        content = read(folder, name)
        if content is None:
            continue
        parts.append(f"## {title}")
        if "skipped" in content:
            parts.append(f"Skipped: {content['skipped']}.")
        if content["rows"]:
            parts.append(section(content["rows"], columns))
        if "error" in content:
            parts.append(f"Failed: {content['error']}")
        if content["left_out"]:
            parts.append(f"Not reached in time: {', '.join(content['left_out'])}.")
    return "\n\n".join(parts) + "\n"


def section(rows: Sequence[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for row in rows:
        if "error" in row:
            cells = ["failed: " + " ".join(row["error"].split()).replace("|", "/")[:200]]
            cells += [""] * (len(columns) - 1)
        else:
            cells = [show(row) for show in columns.values()]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(key: str, form: str, scale: float = 1) -> Callable[[Row], str]:
    """A cell for `row[key]`; a dash where it is not known."""
    return lambda row: "–" if row.get(key) is None else format(row[key] * scale, form)


def said(key: str) -> Callable[[Row], str]:
    return lambda row: {True: "yes", False: "**no**", None: "–"}.get(row.get(key), str(row.get(key)))


def waits(row: Row) -> str:
    """Steps that were watched, or why none was."""
    watched = row["steps_watched_for_waits"]
    return f"none in {watched} steps" if watched else f"not watched: {row['not_watched']}"


SECTIONS: dict[str, tuple[str, dict[str, Callable[[Row], str]]]] = {
    "tests": ("Tests marked gpu", {"passed": said("passed"), "": said("last_line")}),
    "methods": (
        "Every method, 20 updates",
        {
            "finite": said("finite"),
            "resumed to the bit": said("resumed_to_the_bit"),
            "waits of the optimizer": waits,
            "last loss": lambda row: f"{row['losses'][-1]:.3f}",
        },
    ),
    "mfu": (
        "Share of the peak rate, memory",
        {
            "tokens/s": number("tokens_per_second", ",.0f"),
            "TFLOP/s": number("tflops_per_second", ".1f"),
            "of the peak": number("mfu", ".1%"),
            "goal": number("goal_mfu", ".0%"),
            "weights, gradients, state, GiB": number("planned_bytes", ".2f", 2.0**-30),
            "peak memory, GiB": number("peak_memory_bytes", ".2f", 2.0**-30),
        },
    ),
    "steps": (
        "Optimizer steps, one block, ratios to torch.optim.AdamW(fused=True) on dense weights",
        {
            "ms": number("median_ms", ".2f"),
            "ratio": number("ratio", ".2f"),
            "first step, ms": number("first_step_seconds", ".1f", 1e3),
        },
    ),
    "fsdp": (
        "FSDP2 with one rank",
        {
            "finite": said("finite"),
            "resumed to the bit": said("resumed_to_the_bit"),
            "largest difference of a loss": number("largest_loss_difference", ".1e"),
        },
    ),
    "text": (
        "Training on text, equal tokens",
        {
            "updates": number("updates", ",d"),
            "tokens": number("tokens", ",d"),
            "validation loss": number("val_loss", ".4f"),
            "bits/byte": number("val_bits_per_byte", ".4f"),
            "seconds": number("wall", ".1f"),
        },
    ),
}
