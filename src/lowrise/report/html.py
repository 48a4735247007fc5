"""The page around a report: one file, no network, readable in light and dark, on screen and on paper. All
text is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { --ink:#1b1f24; --soft:#5f6873; --line:#dfe3e8; --grid:#eceff2; --paper:#fff; --card:#f6f8fa;
  --warn:#8a4b00; --warn-bg:#fff4e0; --c0:#0b66c3; --c1:#e07b00; --c2:#0f8a5f; --c3:#8b3fc7;
  --c4:#c01c3a; --c5:#0aa3c2; --c6:#8a5a2b; --c7:#66707a; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ec; --soft:#9aa4af; --line:#363d45;
  --grid:#272d34; --paper:#14181c; --card:#1c2127; --warn:#ffc477; --warn-bg:#33260f; --c0:#5aa9ff;
  --c1:#ffab4a; --c2:#46c99a; --c3:#c08bff; --c4:#ff7285; --c5:#4dd7ea; --c6:#c99b6b; --c7:#a7b0ba; } }
* { box-sizing:border-box }
body { margin:0 auto; padding:36px 28px 60px; max-width:1180px; background:var(--paper);
  color:var(--ink); font-variant-numeric:tabular-nums;
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif }
h1 { font-size:27px; line-height:1.2; margin:0 0 4px; letter-spacing:-.01em }
h2 { font-size:18px; margin:38px 0 10px }
h3 { font-size:13px; margin:14px 0 4px; color:var(--soft); font-weight:600 }
p { margin:6px 0 }
.sub, .empty, .note { color:var(--soft) }
.note { font-size:13px }
.empty { font-style:italic }
.warn { color:var(--warn); background:var(--warn-bg); border-radius:8px; padding:10px 14px;
  margin:16px 0; white-space:pre-wrap }
.tiles { display:grid; grid-template-columns:repeat(auto-fill,minmax(150px,1fr)); gap:10px;
  margin:22px 0 }
.tile { background:var(--card); border-radius:8px; padding:10px 14px }
.tile b { display:block; font-size:20px; font-weight:600; white-space:nowrap }
.tile span { color:var(--soft); font-size:12.5px }
.tile.main { outline:2px solid var(--c0) }
.pair { display:grid; grid-template-columns:1fr 1fr; gap:4px 20px }
@media (max-width:760px) { .pair { grid-template-columns:1fr } }
.scroll { overflow-x:auto }
table { border-collapse:collapse; width:100%; font-size:13px }
th, td { padding:6px 8px; border-bottom:1px solid var(--line); text-align:right; white-space:nowrap;
  vertical-align:top }
th { color:var(--soft); font-weight:600; vertical-align:bottom; white-space:normal }
th:first-child, td:first-child, table.text td, table.text th { text-align:left }
table.text td { white-space:normal; overflow-wrap:anywhere }
pre { background:var(--card); border-radius:8px; padding:12px 16px; overflow-x:auto;
  font:12.5px/1.5 ui-monospace,Consolas,"Liberation Mono",monospace }
pre.prose { white-space:pre-wrap; overflow-wrap:anywhere }
details { margin:10px 0 }
summary { cursor:pointer; font-weight:600 }
svg { display:block; width:100%; height:auto; font-family:inherit; margin:2px 0 }
svg .grid { stroke:var(--grid) }
svg .axis { stroke:var(--soft); stroke-width:1 }
svg text { fill:var(--soft); font-size:12px }
svg text.key { fill:var(--ink) }
svg .line { stroke:var(--c); stroke-width:2; fill:none; stroke-linejoin:round }
svg .faint { stroke:var(--c); stroke-width:1; fill:none; opacity:.35; stroke-linejoin:round }
svg .band { fill:var(--c); opacity:.14 }
svg .dot { fill:var(--c) }
footer { margin-top:44px; color:var(--soft); font-size:12.5px }
@media print { body { max-width:none; padding:0 }
.scroll { overflow:visible }
}
"""


def page(title: str, body: Sequence[str], footer: str) -> str:
    """A whole HTML document. `body` holds markup, `title` and `footer` plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<footer>{escape(footer)}</footer>\n</body></html>\n"
    )


def heading(title: str, subtitle: str) -> str:
    return f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>'


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def titled(title: str, figure: str) -> str:
    """A figure with a small title above it, for use in `pair`."""
    return f"<div><h3>{escape(title)}</h3>{figure}</div>"


def pair(*figures: str) -> str:
    """Figures two in a row where the window is wide enough."""
    return f'<div class="pair">{"".join(figures)}</div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def warning(text: str) -> str:
    return f'<div class="warn" role="alert">{escape(text)}</div>'


def preformatted(text: str, *, prose: bool = False) -> str:
    return f"<pre{' class=prose' if prose else ''}>{escape(text)}</pre>"


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def tiles(items: Sequence[tuple[str, str, bool]]) -> str:
    """Key figures: (what, value, is it one of the main ones)."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" main" if main else ""}"><b>{escape(value)}</b>'
            f"<span>{escape(what)}</span></div>"
            for what, value, main in items
        )
        + "</div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False) -> str:
    """Numbers to the right, the first column to the left; `text=True` sets everything to the left and
    wraps.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table{" class=text" if text else ""}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
