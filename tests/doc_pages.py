"""The pages of the documentation and the code blocks in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "lowrise"
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in sorted(
        [
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "benchmarks").rglob("*.md"),
            *(ROOT / "examples").rglob("*.md"),
        ]
    )
    if path.name not in ("CHANGELOG.md", "decisions.md")  # what was, not what is
}


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    found = re.findall(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    return [
        (language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, language, code in found
    ]


def blocks_of(page: str, *languages: str) -> list[str]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [code for language, code in blocks(text) if language in languages]


def docstring_blocks() -> dict[str, list[str]]:
    """File -> fenced Python blocks of its docstrings."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                code = [code for language, code in blocks(text) if language == "python"]
                if code:
                    found.setdefault(str(path.relative_to(SOURCE)), []).extend(code)
    return found
