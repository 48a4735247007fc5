"""The leaderboard of a track: on the terminal, as Markdown and as a page to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowrise.console import Console, narrow_table
from lowrise.files import strict_json, write_whole
from lowrise.report import html
from lowrise.report.formatting import UNKNOWN, bytes_, duration, number, si
from lowrise.report.intervals import Bar, intervals
from lowrise.report.pareto import Bought, pareto_section
from lowrise.track.options import TableOptions
from lowrise.track.results import Result, faults_of, read_result
from lowrise.track.rule import Place, places, rule_in_words
from lowrise.track.track import Entry, Track, read_entry, read_track


def table(options: TableOptions, console: Console) -> int:
    """Show the leaderboard and write it into the track's folder. Results that do not count are named."""
    track = read_track(options.track)
    entries = {name: read_entry(track, name) for name in track.entry_names()}
    results, left = _counted(track, entries)
    board = places(track, results)
    write_whole(track.folder / "leaderboard.md", to_markdown(track, entries, board, left))
    write_whole(track.folder / "leaderboard.html", to_html(track, entries, board, left))
    if options.json:
        print(strict_json({"track": track.title, "places": [asdict(place) for place in board]}))
        return 0
    _show(track, board, console)
    for text in left:
        console.print(text, soft_wrap=True)
    console.print(f"Written: {track.folder / 'leaderboard.md'}, leaderboard.html", soft_wrap=True)
    return 0


def is_track(folder: Path) -> bool:
    """Whether this is the folder of a track."""
    return (folder / "track.toml").is_file()


def write_again(folder: Path, target: Path | None = None) -> Path:
    """Write the page of a track's leaderboard again, there or as `target`, and return its path."""
    track = read_track(folder)
    entries = {name: read_entry(track, name) for name in track.entry_names()}
    results, left = _counted(track, entries)
    target = target or track.folder / "leaderboard.html"
    write_whole(target, to_html(track, entries, places(track, results), left))
    return target


def _counted(track: Track, entries: dict[str, Entry]) -> tuple[dict[str, Result], list[str]]:
    """The results that count, and in words why the others do not."""
    results: dict[str, Result] = {}
    left: dict[str, list[str]] = {}
    for name, entry in entries.items():
        result = read_result(track, name)
        faults = ["not run yet"] if result is None else faults_of(track, entry, result)
        if faults or result is None:
            left.setdefault("; ".join(faults), []).append(name)
        else:
            results[name] = result
    return results, [f"{', '.join(names)}: {why}" for why, names in left.items()]


_COLUMNS: tuple[tuple[str, Callable[[Place], str]], ...] = (
    ("place", lambda p: UNKNOWN if p.place is None else str(p.place)),
    ("loss", lambda p: number(p.loss.mean) if p.place is not None else "diverged"),
    ("sd", lambda p: number(p.loss.sd) if p.loss.sd is not None else UNKNOWN),
    ("behind", lambda p: UNKNOWN if p.behind is None else f"{p.behind.mean:+.4f}"),
    ("parameters", lambda p: si(p.result.params)),
    ("weights", lambda p: bytes_(p.result.inference_bytes)),
    ("tokens", lambda p: si(p.result.tokens)),
    ("time", lambda p: duration(p.result.seconds)),
)


def _show(track: Track, board: Sequence[Place], console: Console) -> None:
    shown = narrow_table()
    shown.add_column("entry", no_wrap=True)
    for title, _ in _COLUMNS:
        shown.add_column(title, justify="right", no_wrap=True)
    for place in board:
        shown.add_row(place.name, *(show(place) for _, show in _COLUMNS))
    console.print(f"{track.title}: {len(board)} entries", style="bold", soft_wrap=True)
    console.print(shown)


def to_markdown(track: Track, entries: dict[str, Entry], board: Sequence[Place], left: Sequence[str]) -> str:
    header = ["entry", *(title for title, _ in _COLUMNS), "by"]
    lines = [header, ["---", *["---:"] * len(_COLUMNS), "---"]]
    for place in board:
        entry = entries[place.name]
        title = f"[{place.name}](entries/{place.name}.toml) {entry.title}"
        lines.append([title, *(show(place) for _, show in _COLUMNS), entry.by])
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    parts = [f"# {track.title}", track.about, rows, f"**Rule.** {rule_in_words(track)}", _machines(board)]
    if left:
        parts.append("Not placed:\n\n" + "\n".join(f"- {text}" for text in left))
    parts.append("`lowrise track table` writes this page.")
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(track: Track, entries: dict[str, Entry], board: Sequence[Place], left: Sequence[str]) -> str:
    bars = [
        Bar(p.name, p.behind.mean, p.behind.low, p.behind.high, i, remark=f"place {p.place}")
        for i, p in enumerate(board)
        if p.behind is not None
    ]
    rows = [(p.name, *(show(p) for _, show in _COLUMNS), entries[p.name].by) for p in board]
    body = [
        html.heading(track.title, f"{len(board)} entries"),
        html.note(track.about),
        html.section("Leaderboard", html.table(("entry", *(t for t, _ in _COLUMNS), "by"), rows)),
        html.section(
            f"Behind the leader, with intervals that hold for all pairs together ({1 - track.alpha:.0%})",
            intervals(bars, x_label="difference of mean validation losses (nats per token)"),
        ),
        _pareto(board),
        html.section("Rule", html.note(rule_in_words(track))),
        html.section("Machines", html.note(_machines(board))),
    ]
    if left:
        body.append(html.section("Not placed", *(html.note(text) for text in left)))
    return html.page(track.title, body, "lowrise track")


_BOUGHT_WITH = {
    "inference_bytes": "weights at inference (bytes in bfloat16)",
    "tokens": "training tokens",
    "seconds": "training time (s)",
    "params": "parameters",
    "train_flops": "training FLOPs",
}


def _pareto(board: Sequence[Place]) -> str:
    bought = [
        Bought(p.name, p.loss.mean, p.loss.sd, {key: getattr(p.result, key) for key in _BOUGHT_WITH}, i)
        for i, p in enumerate(board)
        if p.place is not None and p.loss.mean is not None
    ]
    y_label = "validation loss (nats per token)"
    return pareto_section("What the loss was bought with", bought, _BOUGHT_WITH, y_label=y_label)


def _machines(board: Sequence[Place]) -> str:
    """Where the times were measured."""
    kinds: dict[str, list[str]] = {}
    for place in board:
        facts: dict[str, Any] = place.result.environment
        at_once = f"{facts.get('workers at once')} run(s) at once"
        told = f"{facts.get('processor')}, torch {facts.get('torch')}, {at_once}"
        kinds.setdefault(told, []).append(place.name)
    if len(kinds) == 1:
        return f"Times: {next(iter(kinds))}."
    return " ".join(f"{', '.join(names)}: {told}." for told, names in kinds.items())
