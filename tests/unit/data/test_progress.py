"""The bar follows the stages, and is silent where there is no terminal."""

from __future__ import annotations

import io

from lowrise.console import Console
from lowrise.data.progress import rich_progress


def test_bar_names_the_stage() -> None:
    output = io.StringIO()
    with rich_progress(Console(file=output, force_terminal=True, width=120)) as show:
        show(0, 100, "reading")
        show(50, 100, "tokenizing")
        show(0, 0, "waiting for another process")
    assert "waiting for another process" in output.getvalue()


def test_no_bar_without_a_terminal() -> None:
    output = io.StringIO()
    with rich_progress(Console(file=output)) as show:
        show(50, 100, "tokenizing")
    assert output.getvalue() == ""
