"""What is public is what `__all__` names: the API pages have it all, and every name is documented."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import PAGES, ROOT

REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
GENERATED = REFERENCE["pages"]()
PUBLIC = REFERENCE["PUBLIC"]
NAMES = [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]


@pytest.mark.parametrize("page", GENERATED)
def test_the_committed_page_is_the_generated_one(page: str) -> None:
    committed = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert committed == GENERATED[page], f"{page} is out of date: run python docs/make_reference.py"


@pytest.mark.parametrize("module", PUBLIC)
def test_the_page_of_a_module_names_exactly_its_public_names(module: str) -> None:
    text = PAGES[f"docs/api/{module.rpartition('.')[2]}.md"].read_text(encoding="utf-8")
    entries = re.findall(rf"^(?:::: |`){re.escape(module)}\.(\w+)", text, flags=re.MULTILINE)
    assert sorted(entries) == sorted(importlib.import_module(module).__all__)
    index = PAGES["docs/index.md"].read_text(encoding="utf-8")
    assert f"[`{module}`](api/{module.rpartition('.')[2]}.md)" in index


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_is_there_and_documented(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value) or isinstance(value, ModuleType):
        assert (inspect.getdoc(value) or "").strip(), f"{module}.{name} has no docstring"


def test_every_page_is_on_the_site() -> None:
    """In the navigation of mkdocs.yml, where mkdocs itself only warns."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"[\w/.-]+\.md", navigation))
    written = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} | {"decisions.md"}
    assert listed == written


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'lowrise[docs]'; make docs builds the site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "optim" / "index.html").is_file()
