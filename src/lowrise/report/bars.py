"""Stacked bars: a bar for each name, a colour for each part, a mark on each bar, a line over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from lowrise.report.html import LETTER, style
from lowrise.report.ticks import nice_ticks

_RIGHT, _TOP, _BOTTOM, _BAR, _GAP = 90, 40, 44, 18, 8  # pixels


@dataclass(frozen=True)
class Stack:
    """One bar: its parts in the order of their names, and where its mark is; None: no mark."""

    name: str
    parts: tuple[float, ...]
    mark: float | None = None


def stacked_bars(
    stacks: Sequence[Stack],
    *,
    parts: Sequence[str],
    label: str,
    show: Callable[[float], str],
    tick: float = 1.0,
    mark: str = "",
    line: tuple[str, float] | None = None,
    width: int = 860,
) -> str:
    """An `<svg>` element. `show` writes a value, `tick` is the unit of the axis (ticks are multiples of it),
    `mark` names the marks in the legend, `line` is a name and a value for all bars.
    """
    if not stacks:
        return '<p class="empty">There is nothing to draw.</p>'
    left = 16 + LETTER * max(len(stack.name) for stack in stacks)
    most = max(max(sum(stack.parts), stack.mark or 0.0) for stack in stacks)
    most = max(most, line[1] if line else 0.0) or 1.0
    scale = (width - left - _RIGHT) / most
    base = _TOP + len(stacks) * (_BAR + _GAP)
    body = []
    for value in nice_ticks(0.0, most / tick, 6):
        x = left + value * tick * scale
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{base}"/>')
        body.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{value:g}</text>')
    for i, stack in enumerate(stacks):
        body.append(_bar(stack, parts, left, _TOP + i * (_BAR + _GAP), scale, show, mark))
    if line is not None:
        x = left + line[1] * scale
        told = escape(f"{line[0]}: {show(line[1])}")
        body.append(
            f'<g><title>{told}</title><line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{base}" '
            'stroke="var(--soft)" stroke-width="2" stroke-dasharray="6 4"/></g>'
        )
    middle = (left + width - _RIGHT) / 2
    body.append(
        f'<text class="label" x="{middle:.1f}" y="{base + 36}" text-anchor="middle">{escape(label)}</text>'
    )
    about = escape(f"{label}, by {', '.join(parts)}")
    key = _legend(parts, left, mark, line)
    box = f"0 0 {width} {base + _BOTTOM}"
    return f'<svg viewBox="{box}" role="img" aria-label="{about}">{key}{"".join(body)}</svg>'


def standalone(svg: str, title: str) -> str:
    """An `<svg>` element of a page as a file of its own, with the page's colours, light and dark."""
    head, _, rest = svg.partition(">")
    size = head.split('viewBox="0 0 ')[1].split('"')[0].split()
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{head} xmlns="http://www.w3.org/2000/svg" '
        f'width="{size[0]}" height="{size[1]}" '
        'font-family="system-ui,-apple-system,Segoe UI,Roboto,Liberation Sans,sans-serif">'
        f"<title>{escape(title)}</title><style>{escape(style(), quote=False)}</style>"
        f'<rect width="{size[0]}" height="{size[1]}" fill="var(--paper)"/>{rest}\n'
    )


def _bar(
    stack: Stack,
    parts: Sequence[str],
    left: float,
    y: float,
    scale: float,
    show: Callable[[float], str],
    mark: str,
) -> str:
    name = escape(stack.name)
    drawn = [f'<text class="key" x="{left - 8:.1f}" y="{y + _BAR - 5}" text-anchor="end">{name}</text>']
    x = left
    for color, (part, value) in enumerate(zip(parts, stack.parts, strict=True)):
        told = escape(f"{stack.name}, {part}: {show(value)}")
        drawn.append(
            f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="{_BAR}" fill="var(--c{color})">'
            f"<title>{told}</title></rect>"
        )
        x += value * scale
    total = sum(stack.parts)
    if stack.mark is not None:
        at = left + stack.mark * scale
        told = escape(f"{stack.name}, {mark}: {show(stack.mark)}")
        drawn.append(
            f'<g><title>{told}</title><path d="M{at:.1f} {y - 3}V{y + _BAR + 3}" stroke="var(--ink)" '
            'stroke-width="3"/></g>'
        )
    end = max(x, left + (stack.mark or 0.0) * scale) + 8
    shown = show(total if stack.mark is None else stack.mark)
    halo = 'style="paint-order:stroke" stroke="var(--paper)" stroke-width="5"'
    drawn.append(f'<text class="tick" x="{end:.1f}" y="{y + _BAR - 5}" {halo}>{escape(shown)}</text>')
    return "".join(drawn)


def _legend(parts: Sequence[str], left: float, mark: str, line: tuple[str, float] | None) -> str:
    drawn, x = [], left
    for color, part in enumerate(parts):
        drawn.append(f'<rect x="{x:.1f}" y="8" width="12" height="12" fill="var(--c{color})"/>')
        drawn.append(f'<text class="key" x="{x + 17:.1f}" y="18">{escape(part)}</text>')
        x += 34 + LETTER * len(part)
    lines = [(mark, 'stroke="var(--ink)" stroke-width="3"')] if mark else []
    if line:
        lines.append((line[0], 'stroke="var(--soft)" stroke-width="2" stroke-dasharray="6 4"'))
    for name, how in lines:
        drawn.append(f'<path d="M{x + 6:.1f} 7V21" {how}/>')
        drawn.append(f'<text class="key" x="{x + 14:.1f}" y="18">{escape(name)}</text>')
        x += 31 + LETTER * len(name)
    return "".join(drawn)
