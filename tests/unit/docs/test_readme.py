"""The README promises what exists: its Python runs, its commands and files are there, its flags parse."""

import re
import shlex
from pathlib import Path

import pytest

from lowrise.cli import COMMANDS
from lowrise.config.command import Train, starting_config
from lowrise.flags import parse

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
SHELL = "\n".join(text for language, text in BLOCKS if not language).replace("\\\n", " ")
LINES = [line.split("#")[0].strip() for line in SHELL.splitlines()]
COMMAND_LINES = [shlex.split(line) for line in LINES if line.startswith("lowrise ")]


def test_the_python_runs():
    (code,) = (text for language, text in BLOCKS if language == "python")
    names: dict[str, object] = {}
    exec(code.replace('"60m"', '"nano", vocab_size=300').replace("rank=128", "rank=16"), names)
    assert {group["role"] for group in names["optimizer"].param_groups} == {"factors", "other"}


def test_the_tutorial_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert 0 < float(names["loss"].detach()) < 7


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_each_command_is_one(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words[1] in COMMANDS
    for word in words[2:]:
        for name in re.findall(r"recipes/\S+", word):
            stems = re.search(r"\{(.*)\}", name)
            expanded = [name.replace(stems[0], s) for s in stems[1].split(",")] if stems else [name]
            assert all((ROOT / path).is_file() for path in expanded), word
    if words[1] == "train":
        parse(Train, words[2:], "train", default=Train(config=starting_config(words[2:])))


def test_the_command_of_per_layer_updates_parses(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "per_layer.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("lowrise train "))
    words = shlex.split(line)
    config = parse(Train, words[2:], "train", default=Train(config=starting_config(words[2:]))).config
    assert config.train.per_layer
    assert config.train.grad_clip == 0


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets
