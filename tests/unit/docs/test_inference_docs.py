"""The pages of generate, eval and serve name every option that there is, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lowrise.evaluation.options import EvalOptions
from lowrise.inference.options import GenerateConfig
from lowrise.serve.options import ServeConfig
from lowrise.serve.requests import IGNORED, NEUTRAL, SHARED

DOCS = Path(__file__).parents[3] / "docs" / "commands"
PAGES = {"generate": GenerateConfig, "eval": EvalOptions, "serve": ServeConfig}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_the_options_of_its_command(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--([a-z_]+)", page))
    options = {f.name for f in dataclasses.fields(PAGES[name])} - {"run", "runs"}
    assert named <= options | {"help"}
    assert options - named <= {"device"}, "each option is explained"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_defaults_of_its_command(name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    shown = re.search(r"```\n(?:pip.*\n)?(lowrise .*?)```", page, re.DOTALL)
    assert shown
    for option in dataclasses.fields(PAGES[name]):
        found = re.search(rf"--{option.name} (\d+(?:\.\d+)?)\]", shown[1])
        if found:
            assert float(found[1]) == option.default, option.name


def test_the_page_names_what_requests_may_have() -> None:
    page = (DOCS / "serve.md").read_text(encoding="utf-8")
    for name in SHARED:
        assert f"`{name}" in page or f"{name}" in page, name
    assert not set(SHARED) & (set(NEUTRAL) | set(IGNORED))
