"""`lowrise methods NAME --cite`: BibTeX of every method, with the identifiers that its row names."""

from __future__ import annotations

import re

import pytest

from lowrise.citations import CITATIONS
from lowrise.cli import main
from lowrise.errors import UsageError
from lowrise.methods import METHODS, Method

FIELD = re.compile(r"^  (\w+) = \{(.*)\},$")


def entries(text: str) -> dict[str, dict[str, str]]:
    """Key -> fields of BibTeX as it is printed; every line must be one of an entry."""
    found: dict[str, dict[str, str]] = {}
    for block in text.strip().split("\n\n"):
        first, *fields, last = block.splitlines()
        head = re.fullmatch(r"@(inproceedings|misc)\{(\w+),", first)
        assert head, first
        assert last == "}"
        found[head[2]] = {m[1]: m[2] for line in fields if (m := FIELD.match(line))}
        assert len(found[head[2]]) == len(fields), block
        assert ("booktitle" in found[head[2]]) == (head[1] == "inproceedings")
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_cited(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", name, "--cite"]) == 0
    cited = entries(capsys.readouterr().out)
    assert tuple(cited) == METHODS[name].cites
    for entry in cited.values():
        assert entry["title"].startswith("{")
        assert entry["author"]
        assert 2019 <= int(entry["year"]) <= 2026
        assert entry["url"].startswith("https://")
        assert ("eprint" in entry) == ("archiveprefix" in entry)


@pytest.mark.parametrize("name", METHODS)
def test_the_row_and_its_citations_name_the_same_papers(name: str) -> None:
    row = METHODS[name]
    said = set(re.findall(r"arXiv (\d{4}\.\d{5})", row.source))
    cited = {CITATIONS[key].arxiv for key in row.cites} - {""}
    assert said <= cited
    first = CITATIONS[row.cites[0]]
    family = first.authors[0].split(",")[0]
    assert family in row.source


def test_keys_are_author_year_and_a_word_of_the_title() -> None:
    assert len({entry.title for entry in CITATIONS.values()}) == len(CITATIONS)
    assert {key for row in METHODS.values() for key in row.cites} == CITATIONS.keys()
    for key, entry in CITATIONS.items():
        author, year, word = re.fullmatch(r"([a-z]+)(\d{4})([a-z]+)", key).groups()
        assert entry.authors[0].split(",")[0].lower() == author
        assert abs(int(year) - entry.year) <= 2  # AdamW's is that of the conference
        assert word in entry.title.lower()
        assert entry.arxiv or entry.url


def test_entries_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "spectron", "--cite"]) == 0
    assert capsys.readouterr().out == (
        "@inproceedings{janson2026stabilizing,\n"
        "  title = {{Stabilizing Native Low-Rank LLM Pretraining}},\n"
        "  author = {Janson, Paul and Oyallon, Edouard and Belilovsky, Eugene},\n"
        "  year = {2026},\n"
        "  booktitle = {ICML 2026},\n"
        "  eprint = {2602.12429},\n"
        "  archiveprefix = {arXiv},\n"
        "  url = {https://arxiv.org/abs/2602.12429},\n"
        "}\n"
    )


def test_cite_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--cite"]) == 2
    assert "name a method" in capsys.readouterr().err


def test_a_method_without_citations_names_its_source() -> None:
    row = Method(name="mine", layer="dense", optimizer="muon", summary="", source="a talk of 2026")
    with pytest.raises(UsageError, match="no citation on record; its source: a talk of 2026"):
        row.bibtex()
