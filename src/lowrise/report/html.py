"""The page around a report: one file, no network, readable in light and dark, on screen and on paper. All
text is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files

LETTER = 6.8
"""Mean width of a letter of a picture at 12 px, for its layout."""
# A page that somebody has sent fetches nothing and sends nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@cache
def _part(name: str) -> str:
    return files("lowrise.report").joinpath(name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet of a page, for pictures that stand alone."""
    return _part("page.css")


def page(title: str, body: Sequence[str], footer: str) -> str:
    """A whole HTML document. `body` holds markup, `title` and `footer` plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>\n{_part('page.css')}</style></head>\n<body>\n"
        + "\n".join(body)
        + f"\n<footer>{escape(footer)}</footer>\n<script>\n{_part('page.js')}</script></body></html>\n"
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


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A table of what is so: what, and its value."""
    return table(("what", "value"), [(what, str(value)) for what, value in pairs], text=True)


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


def drawing(width: int, height: float, about: str, content: str) -> str:
    """An `<svg>` element that fills the page's width, and is scrolled where that is too narrow to read it."""
    return (
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" style="--w:{width}px" role="img" '
        f'aria-label="{escape(about)}">{content}</svg></div>'
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
