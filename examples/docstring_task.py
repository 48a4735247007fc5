"""A small real task for fine-tuning, made of the Python standard library's source: from a function without
its documentation to the first line of it.

    python examples/docstring_task.py OUT

writes OUT/text.jsonl (files to pretrain on), OUT/train.jsonl and OUT/valid.jsonl (samples of prompt and
completion). No file is in two of them, so what is held out has not been pretrained on either. The same
Python writes the same bytes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
MOST_CHARS = 600  # of a prompt


def part_of(name: str) -> str:
    """70% of the files are text, 25% training samples, 5% held-out samples."""
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") % 100
    return "text" if draw < 70 else "train" if draw < 95 else "valid"


def samples_of(source: str) -> Iterator[dict[str, str]]:
    """Functions with documentation, as prompt and completion."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = (ast.get_docstring(node) or "").partition("\n")[0].strip()
        if len(first) < 10 or len(node.body) < 2:
            continue
        documentation = node.body[0]
        head = lines[node.lineno - 1 : documentation.lineno - 1]
        body = lines[documentation.end_lineno : node.end_lineno]
        code = textwrap.dedent("\n".join([*head, *body]))[:MOST_CHARS]
        yield {"prompt": f"{code}\n# In short:", "completion": f" {first}"}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[dict[str, str]]] = {"text": [], "train": [], "valid": []}
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if LEFT_OUT & set(name.parts):
            continue
        try:
            source = file.read_text(encoding="utf-8")
            part = part_of(name.as_posix())
            found[part] += [{"text": source}] if part == "text" else list(samples_of(source))
        except (UnicodeDecodeError, SyntaxError):
            continue
    for part, rows in found.items():
        unique = dict.fromkeys(json.dumps(row) for row in rows)
        (out / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in unique), encoding="utf-8")
        print(f"{out / part}.jsonl: {len(unique):,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
