"""docs/claims.md: every claim has all its parts, its script runs, and its numbers are those of its result."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
from doc_pages import PAGES, ROOT

CLAIMS = runpy.run_path(str(ROOT / "docs" / "make_claims.py"))
ENTRIES = CLAIMS["entries"]()
TEXT = PAGES["docs/claims.md"].read_text(encoding="utf-8")
EACH = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
PARTS = ("Hypothesis.", "Gate.", "Known before.", "Result.")


def section_of(entry) -> str:
    """What the page says between this claim's anchor and the next heading of its kind."""
    found = re.search(rf'<a id="{entry.name}"></a>\n(.*?)(?=<a id=|^## |\Z)', TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?:e[-+]\d+)?", text))


def test_the_claims_that_the_page_began_with_are_there() -> None:
    assert {entry.name for entry in ENTRIES} >= {
        "spectron_bound",
        "loro_reset",
        "loro_exact_direction",
        "fira_residual",
        "sinkgd_width",
        "evaluation_fault",
        "one_rate_over_ranks",
        "norm_fixed_factors",
    }


def test_the_page_is_what_the_script_writes() -> None:
    assert CLAIMS["page"]() == TEXT, "run python docs/make_claims.py"


def test_every_script_of_a_claim_and_every_result_is_on_the_page() -> None:
    scripts = {
        path.stem
        for path in (ROOT / "benchmarks" / "claims").glob("*.py")
        if re.search(r"^CLAIM = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    results = {path.stem for path in (ROOT / "benchmarks" / "results" / "claims").glob("*.json")}
    assert scripts == results == {entry.name for entry in ENTRIES}


@EACH
def test_a_claim_has_all_its_parts(entry) -> None:
    claim, section = entry.claim, section_of(entry)
    for text in (
        claim.title,
        claim.source,
        claim.hypothesis,
        claim.gate,
        claim.known,
        claim.scope,
        claim.result,
    ):
        assert text.strip(), claim.title
    assert claim.title.endswith(".")
    assert f"### {claim.title.rstrip('.')}\n" in section
    for part in PARTS:
        assert re.search(rf"^\*\*{re.escape(part)}\*\* \S", section, re.MULTILINE), part
    assert f"**Verdict: {entry.record['verdict']}.** Scope: " in section
    undecided = entry.record["verdict"] == "undecided"
    assert ("**What would decide.**" in section) == undecided == bool(claim.decides)


@EACH
def test_the_result_was_held_to_the_gate_that_stands_there(entry) -> None:
    """A gate or a hypothesis that was changed after the run is one that the run has not seen."""
    assert entry.record["hypothesis"] == entry.claim.hypothesis
    assert entry.record["gate"] == entry.claim.gate
    assert entry.record["quick"] is False
    module = sys.modules[entry.name]
    assert module.verdict(entry.record["values"]) == entry.record["verdict"]
    assert entry.record["verdict"] in get_args(sys.modules["claim"].Verdict)


@EACH
def test_numbers_of_the_table_are_those_of_the_result(entry) -> None:
    rows = [line for line in section_of(entry).splitlines() if line.startswith("| ")][2:]
    cells = [[c.replace("\\|", "|").strip() for c in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells == [[cell.strip() for cell in row] for row in entry.record["rows"]]


@EACH
def test_numbers_of_the_prose_come_from_the_result_or_the_words(entry) -> None:
    """What stands in "Result" is a value of the run, or was written into the sentence on purpose."""
    printed = re.search(r"\*\*Result\.\*\* (.*)", section_of(entry))
    assert printed is not None
    values = entry.record["values"]
    assert printed[1] == CLAIMS["filled"](entry.claim.result, values)
    assert any(f"{{{name}" in entry.claim.result for name in values), "no value of the run is in the result"
    by_hand = numbers(re.sub(r"\{[^}]*\}", "", entry.claim.result))
    said = numbers(" ".join([entry.claim.gate, entry.claim.hypothesis, *map(" ".join, entry.record["rows"])]))
    assert by_hand <= said | {"1.2024", "0.02"}, "a number that neither the run nor the gate knows"


@EACH
def test_the_command_runs(entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with --quick: it writes nothing of the repository, and judges by the same gate."""
    (line,) = re.findall(r"^python (benchmarks/claims/\S+)$", section_of(entry), re.MULTILINE)
    (script,) = shlex.split(line)
    assert script == f"benchmarks/claims/{entry.name}.py"
    monkeypatch.setattr(sys, "argv", [script, "--quick", "--out", str(tmp_path)])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    record = json.loads((tmp_path / f"{entry.name}.json").read_text(encoding="utf-8"))
    assert record["quick"] is True
    assert record["columns"][0] == entry.record["columns"][0]
    assert record["verdict"] == entry.record["verdict"]
