"""Every option has a help text, and the docstrings of public classes say all that their constructors take."""

from __future__ import annotations

import inspect
import io
import re
import runpy
import typing
from contextlib import redirect_stdout
from dataclasses import fields
from typing import Any

import pytest
from doc_pages import ROOT

from lowrise import layers, optim
from lowrise.cli import train
from lowrise.config.derived import (
    argument_help,
    field_help,
    layer_names,
    layer_options,
    layer_section,
    optimizer_names,
    optimizer_options,
    optimizer_section,
    options_of,
)
from lowrise.console import Console

CLASSES = {
    name: value
    for room in (layers, optim)
    for name in room.__all__
    if isinstance(value := getattr(room, name), type)
}
CONSTRUCTED = {
    name: cls
    for name, cls in CLASSES.items()
    if name not in ("LedgerEntry", "ParamGroups")  # a dataclass, and a list with a table as its text
}
FUNCTIONS = {"factorize": layers.factorize, "param_groups": layers.param_groups}
SECTIONS = {f"layer {name}": layer_section(name) for name in layers.LAYERS} | {
    f"optimizer {name}": optimizer_section(name) for name in optim.OPTIMIZERS
}


def parameters_of(target: Any) -> list[str]:
    marks = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    return [marks.get(p.kind, "") + p.name for p in inspect.signature(target).parameters.values()]


def documented(target: Any) -> list[str]:
    _, _, section = (inspect.getdoc(target) or "").partition("\nArgs:\n")
    return re.findall(r"^ {4}(\**\w+): \S", section.partition("\n\n")[0], flags=re.MULTILINE)


@pytest.mark.parametrize("name", CONSTRUCTED | FUNCTIONS)
def test_args_are_exactly_what_the_constructor_takes(name: str) -> None:
    target = (CONSTRUCTED | FUNCTIONS)[name]
    assert documented(target) == parameters_of(target)


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_has_a_docstring_of_its_own(name: str) -> None:
    text = CLASSES[name].__dict__["__doc__"]
    assert text
    assert "module's docstring" not in text.splitlines()[0]


METHOD_CLASSES = [*layers.LAYERS.values(), *optim.OPTIMIZERS.values()]


@pytest.mark.parametrize("cls", METHOD_CLASSES, ids=lambda cls: cls.__name__)
def test_help_tells_the_algorithm_its_source_and_its_errors(cls: type) -> None:
    text = inspect.getdoc(cls) or ""
    before, _, after = text.partition("\nArgs:\n")
    assert re.search(r"^1\. .*(\n.*)+^2\. ", before, flags=re.MULTILINE), "no numbered algorithm"
    source = r"arXiv\s\d{4}\.\d{5}|ICLR 2025|KellerJordan/Muon"
    assert cls is layers.LowRankLinear or re.search(source, before), "no source"
    assert re.search(r"m x n|m x r|of its shape|all of its\sshape", before), "no shapes"
    assert "\nRaises:\n" in after
    assert max(map(len, text.splitlines())) <= 106


@pytest.mark.parametrize("name", SECTIONS)
def test_every_option_of_a_section_has_a_help_text(name: str) -> None:
    section = SECTIONS[name]
    help_texts = field_help(section)
    own = [*options_of(section()), *(["lr"] if name.startswith("optimizer") else [])]
    assert len(own) > 0
    for option in own:
        assert help_texts[option].strip(), option
    assert {f.name for f in fields(section)} >= set(own)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_file_of_options_says_what_the_constructor_takes(name: str) -> None:
    kind, key = name.split()
    read = layer_options(layers.LAYERS[key]) if kind == "layer" else optimizer_options(optim.OPTIMIZERS[key])
    assert described(SECTIONS[name]) == described(read), "run python docs/make_options.py"


def described(section: Any) -> tuple[Any, ...]:
    hints, help_texts = typing.get_type_hints(section), field_help(section)
    options = [(f.name, hints[f.name], f.default, help_texts.get(f.name)) for f in fields(section)]
    return section.__name__, getattr(section, "role", None), options


def test_the_files_of_options_are_what_their_script_writes() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "make_options.py"))["files"]()
    for name, text in written.items():
        committed = (ROOT / "src" / "lowrise" / "config" / name).read_text(encoding="utf-8")
        assert committed == text, f"{name} is out of date: run python docs/make_options.py"
    assert layer_names() == [*layers.LAYERS]
    assert optimizer_names() == [*optim.OPTIMIZERS]


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
def test_the_command_shows_them(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sees of an option: a line that begins with its flag, and the words of the docstring."""
    monkeypatch.setenv("COLUMNS", "79")  # one column of boxes
    shown = io.StringIO()
    layer = {"spectron": "lowrank", "loro": "cola", "tsvd": "svd", "relora": "lora", "muon": "sltrain"}.get(
        optimizer, "selfguided"
    )
    with redirect_stdout(shown), pytest.raises(SystemExit):
        train(["--layer.name", layer, "--optimizer.name", optimizer, "--help"], Console())
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│┃]", "", shown.getvalue()).split())
    for key, cls in (("layer", layers.LAYERS[layer]), ("optimizer", optim.OPTIMIZERS[optimizer])):
        for option, text in argument_help(cls).items():
            if f"--{key}.{option} " in plain and (key, option) not in (("layer", "rank"), ("layer", "bias")):
                assert text in plain, option


def test_an_entry_over_several_lines_is_one_text() -> None:
    class Several:
        """One.

        Args:
            a: First
                and second.
            b: Other: with a colon.

        Raises:
            c: Not an option.
        """

    assert argument_help(Several) == {"a": "First and second.", "b": "Other: with a colon."}
