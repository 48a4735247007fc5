"""Links of the pages lead somewhere, and the README's make targets exist."""

import re

import pytest
from doc_pages import PAGES, ROOT

README = PAGES["README.md"].read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        assert "://" in target or (path.parent / target).exists(), target


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    for page in ("README.md", "CONTRIBUTING.md"):
        text = PAGES[page].read_text(encoding="utf-8") if page in PAGES else ""
        assert set(re.findall(r"^make (\w+)", text, flags=re.MULTILINE)) <= targets
