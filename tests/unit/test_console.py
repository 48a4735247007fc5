"""Nothing from outside is markup, or a control character, on a terminal."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

import lowrise
from lowrise.console import Console, counted, plain_warnings
from lowrise.errors import printable
from lowrise.train.display import Display

EVIL = "a [bold red]name[/] [/x] \x1b]0;title\x07\x1b[2J\x9b31m \u202etxt.exe :smile:"
SHOWN = "a [bold red]name[/] [/x] \\x1b]0;title\\x07\\x1b[2J\\x9b31m \\u202etxt.exe :smile:"


def shown(*things: object, **options: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200, **options).print(*things)
    return stream.getvalue()


def test_text_from_outside_is_shown_as_it_is():
    assert shown(EVIL) == SHOWN.replace("\\x07", "") + "\n"  # rich itself drops the bell
    assert "[bold red]" in shown(Text(EVIL))
    table = Table(EVIL)
    table.add_row(EVIL)
    assert shown(table).count("[bold red]name[/] [/x] \\x1b]0;title") == 2
    for form in (EVIL, Text(EVIL), table):
        for terminal in (False, True):
            seen = shown(form, force_terminal=terminal, color_system=None)
            assert not {"\x9b", "\x07", "\u202e"} & {*seen}
            assert "\x1b]" not in seen
            assert "\x1b[2J" not in seen


def test_styles_of_our_own_still_reach_a_terminal():
    assert shown("text", force_terminal=True, color_system="standard") == "text\n"
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, color_system="standard", width=80).print("text", style="red")
    assert stream.getvalue() == "\x1b[31mtext\x1b[0m\n"


def test_progress_bars_show_text_as_it_is():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=200, color_system=None)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(EVIL)
    assert "[bold red]name[/] [/x] \\x1b]0;title" in stream.getvalue()
    with Display(console, 3) as display:
        display.say(EVIL)
        display.stepped(1, 2.0, 1e-3, 5.0, 0.1)
    assert stream.getvalue().count("\\x1b]0;title") >= 2


def test_characters_that_turn_the_text_are_escaped():
    assert printable("a\u202eb\u2066c\u2069") == "a\\u202eb\\u2066c\\u2069"
    assert printable("שלום\n\t世界 é") == "שלום\n\t世界 é"


@pytest.mark.parametrize("category", [UserWarning, FutureWarning, RuntimeWarning])
def test_our_warnings_are_sentences_and_others_stay(category):
    said: list[str] = []
    code = f"import warnings\nwarnings.warn('ours', {category.__name__})"
    inside = compile(code, f"{lowrise.__path__[0]}/x.py", "exec")
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with plain_warnings(said.append):
            exec(inside)
            warnings.warn("theirs", stacklevel=1)
    assert said == ["warning: ours"]
    assert [str(w.message) for w in others] == ["theirs"]


def test_a_count_is_shown_on_a_terminal_and_nowhere_else():
    def seen(*items: str, **options: object) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=100, color_system=None, **options)
        assert list(counted(items, "fitting", str.upper, console)) == list(items)
        return stream.getvalue()

    drawn = seen("muon", "galore", force_terminal=True)
    assert "fitting GALORE" in drawn
    assert "2/2" in drawn
    assert seen("muon", "galore") == seen("muon", force_terminal=True) == ""
