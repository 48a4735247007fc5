"""Writes claims.md from benchmarks/claims/*.py and their results: `python docs/make_claims.py`.

Nothing is run: the scripts say what is claimed, when it holds and what came out; benchmarks/results/claims/
has the verdicts, the tables and every number. `tests/unit/docs/test_claims.py` holds the page to both.
"""

from __future__ import annotations

import importlib
import json
import string
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "benchmarks" / "claims"
PAGE = ROOT / "docs" / "claims.md"
NOTE = "<!-- Written by docs/make_claims.py. -->"

sys.path.insert(0, str(SCRIPTS))
from claim import FOLDER, Claim, Group  # noqa: E402 - of the scripts' folder


@dataclass(frozen=True)
class Entry:
    """One claim: its script, and what its run has written."""

    name: str
    claim: Claim
    record: Mapping[str, Any]


def entries() -> list[Entry]:
    """All claims, by section of the page and name of the script."""
    found = []
    for path in sorted(SCRIPTS.glob("*.py")):
        claim = getattr(importlib.import_module(path.stem), "CLAIM", None)
        if claim is not None:
            record = json.loads((FOLDER / f"{path.stem}.json").read_text(encoding="utf-8"))
            found.append(Entry(path.stem, claim, record))
    groups = list(get_args(Group))
    return sorted(found, key=lambda entry: (groups.index(entry.claim.group), entry.name))


def filled(text: str, values: Mapping[str, Any]) -> str:
    """`text` with the values of the run in the places of their names; `{name:+.3f}` formats, `{name%}` is per
    cent."""
    pieces = []
    for literal, name, form, _ in string.Formatter().parse(text):
        pieces.append(literal)
        if name is not None:
            percent = name.endswith("%")
            value = values[name.rstrip("%")]
            pieces.append(f"{100 * value:{form or '.1f'}}%" if percent else format(value, form or ""))
    return "".join(pieces)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown; bars in cells (norms) are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def section(entry: Entry) -> str:
    """Claim, hypothesis, gate, result, verdict, command."""
    claim, record = entry.claim, entry.record
    commands = [*claim.before, f"python benchmarks/claims/{entry.name}.py"]
    decides = f"\n\n**What would decide.** {claim.decides}" if claim.decides else ""
    return f"""<a id="{entry.name}"></a>

### {claim.title.rstrip(".")}

{claim.source}

**Hypothesis.** {claim.hypothesis}

**Gate.** {claim.gate}

**Known before.** {claim.known}

**Result.** {filled(claim.result, record["values"])}

{table(record["columns"], record["rows"])}

**Verdict: {record["verdict"]}.** Scope: {claim.scope}.{decides}

```sh
{chr(10).join(commands)}
```

[Script](../benchmarks/claims/{entry.name}.py), [JSON](../benchmarks/results/claims/{entry.name}.json)
"""


def overview(found: list[Entry]) -> str:
    """One row a claim."""
    rows = [[f"[{e.claim.title.rstrip('.')}](#{e.name})", f"**{e.record['verdict']}**"] for e in found]
    return table(["claim", "verdict"], rows)


def page() -> str:
    found = entries()
    count = {v: sum(e.record["verdict"] == v for e in found) for v in ("holds", "fails", "undecided")}
    parts = []
    for group in get_args(Group):
        parts += [f"## {group}\n", *(section(e) for e in found if e.claim.group == group)]
    return f"""{NOTE}

# Claims that hold or fail

What papers, released programs and our own notes claim, decided where that is exact or cheap.
{len(found)} claims: {count["holds"]} hold, {count["fails"]} fail, {count["undecided"]} are undecided.

Read a verdict with its scope: it is about the sentence that stands there, in the setting that stands there,
and says nothing of the worth of a method or the care of its authors. A loss at this size says little about a
large one.

- **Gate before result.** Each claim is a script that was committed, with its gate as text and as code, before
  it was run: `git log -- benchmarks/claims benchmarks/results/claims` shows the order. A result repeats the
  gate that it was held to. "Known before" says what was known of the outcome then: of several claims a good
  deal, and of losses that re-read earlier runs everything.
- **Undecided** where the interval leaves both possible, where a chosen rate lies at an edge of its grid, or
  where the measurement does not see the thing. Then it says what would decide.
- **Intervals** are 95%, each for itself: of a dozen, one may miss by chance. The seed that chose a rate is
  one of the three.
- **Numbers** are those of the committed JSON; a test compares them. `--quick` behind a command takes seconds.

{overview(found)}

{chr(10).join(parts)}
## Another claim

A file `benchmarks/claims/NAME.py` with `CLAIM`, `measure` and `verdict`; `loro_reset.py` is the shortest, a
difference of two recipes in a table of `lowrise compare`. Commit it, run it, write `result` and, where it is
undecided, `decides`; then `python docs/make_claims.py`.

Made by `python docs/make_claims.py`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
