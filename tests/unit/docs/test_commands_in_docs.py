"""Every `lowrise ...` line of the pages is a command whose flags the real parser takes; the fast ones run."""

from __future__ import annotations

import io
import json
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tyro
from doc_pages import PAGES, ROOT, blocks_of
from served import serving
from small_runs import write_text

from lowrise import cli
from lowrise.compare.options import CompareConfig
from lowrise.config import RunConfig, load
from lowrise.methods import METHODS

SHELL = ("", "sh", "bash", "shell", "console")
# What a synopsis leaves to the reader.
EXAMPLES = {
    "--section.key value": "--train.steps 2",
    "key.sub=value": "train.steps=2",
    "DIR/best.toml": "recipes/muon-tiny.toml",
    "DIR/config.toml": "recipes/muon-tiny.toml",  # a run's own configuration is a recipe too
    "RECIPE.toml": "recipes/muon-tiny.toml",
    "RECIPE...": "recipes/muon-tiny.toml recipes/adamw-tiny.toml",
    "RECIPE": "recipes/muon-tiny.toml",
    "DIR": "runs/one",
    "FOLDER": "runs/one",
    "RUN": "runs/one",
    "PATH": "text.jsonl",
    "FILE": "tokenizer.json",
    "TEXT": "Once",
    "NAME": "muon",
    "N": "4",
    "SHARE": "0.9",
    "METHOD": "muon",
    "--dtype ...": "--dtype float32",
    "=...": "=1e15",
    "...": "",
}


def with_examples(line: str) -> str:
    """A synopsis as a user might fill it in: of alternatives the first, of placeholders an example."""
    line = re.sub(r"(\w)\|[\w|]+", r"\1", line)
    line = re.sub(r"([\[(])([^][()|]*?) \| [^][()]*([])])", r"\1\2\3", line)
    line = re.sub(r"(?<=\s)\(([^()]*)\)", r"\1", line)
    line = re.sub(r"\[([^]]*)\]", r"\1", line)
    for placeholder, example in EXAMPLES.items():
        line = re.sub(rf"(?<![\w/]){re.escape(placeholder)}(?!\w)", example, line)
    return line


def expanded(word: str) -> list[str]:
    """A word as the shell would expand its braces."""
    braces = re.search(r"\{(.*?)\}", word)
    return [word.replace(braces[0], part) for part in braces[1].split(",")] if braces else [word]


def without_comment(line: str) -> str:
    quoted = re.match(r"""(?:"[^"]*"|'[^']*'|(?! \#).)*""", line)
    return quoted[0].strip() if quoted else ""


def command_lines(page: str) -> list[str]:
    """Lines of shell blocks and inline code that begin with lowrise, perhaps behind torchrun."""
    lines: list[str] = []
    for block in blocks_of(page, *SHELL):
        joined = re.sub(r"\n {8,}(?=\[)", " ", block.replace("\\\n", " "))  # a synopsis over several lines
        lines += [without_comment(line) for line in joined.splitlines()]
    inline = re.findall(r"`((?:lowrise|torchrun)\s[^`]+)`", PAGES[page].read_text(encoding="utf-8"))
    lines += [" ".join(code.split()) for code in inline]
    return [
        "lowrise " + line.split("lowrise ", 1)[1].split(" > ")[0]
        for line in lines
        if re.match(r"lowrise |torchrun .*-- lowrise ", line)
    ]


LINES = sorted({(page, line) for page in PAGES for line in command_lines(page)})


class Parsed(Exception):
    """A command has read its words: what it would do next is not of this test."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command would run with, None where it does not say; exits as the command does."""
    command, rest = words[0], words[1:]
    if command == "--help":
        return None
    assert command in cli.COMMANDS, f"there is no command lowrise {command}"
    if not rest and command != "train":
        return None  # only named
    if command == "scaling" and len(rest) == 1 and not rest[0].startswith("-"):
        return None  # a part, only named
    if command == "compare":
        # Inline code names only the flags that it speaks of.
        usual = {"recipes/": ["recipes/muon-tiny.toml"], "--budget": ["tokens=2M"], "--out": ["runs/one"]}
        for start, values in usual.items():
            if not any(word.startswith(start) for word in rest):
                rest = [*values, *rest] if start == "recipes/" else [*rest, start, *values]

    def stop(*arguments: Any, **options: Any) -> Any:
        raise Parsed(real(*arguments, **options))

    real = tyro.cli
    monkeypatch.setattr(tyro, "cli", stop)
    try:
        assert cli.main([command, *rest]) == 0
    except Parsed as parsed:
        return parsed.args[0]
    return None


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda value: value.replace("/", "."))
def test_the_parser_takes_the_line(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [part for word in shlex.split(with_examples(line))[1:] for part in expanded(word)]
    for word in words:
        assert not word.startswith("recipes/") or (ROOT / word).is_file(), word
    shown, command, code = io.StringIO(), None, 0
    with redirect_stdout(shown), redirect_stderr(shown):
        try:
            command = parse(words, monkeypatch)
        except SystemExit as end:  # --help, or a word that the parser refuses
            code = end.code
    assert code == 0, f"{page}: {line}\n{shown.getvalue()}"
    if isinstance(command, CompareConfig):
        for recipe in command.recipes:
            load(recipe)


def test_lines_are_found() -> None:
    assert len(LINES) > 30
    assert {page for page, _ in LINES} >= {"README.md", "docs/tutorial.md", "docs/commands/compare.md"}


def run(line: str) -> str:
    """What a command prints; it must succeed."""
    with redirect_stdout(io.StringIO()) as shown:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    return shown.getvalue()


def test_the_tutorial_runs_up_to_a_served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, on a few sentences and with sizes for a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my-texts").mkdir()
    write_text(tmp_path / "my-texts" / "text.jsonl")
    lines = [line for block in blocks_of("docs/tutorial.md", "") for line in block.splitlines()]
    prepare, train, generate = (
        next(line for line in lines if line.startswith(start)).replace("8192", "300")
        for start in ("lowrise data prepare ", "lowrise train --data.source ", "lowrise generate ")
    )
    assert "300" in run(prepare)
    quick = (
        "--model.preset nano --train.steps 2 --train.seq_len 16 --train.device cpu --log.tensorboard False"
    )
    assert "validation loss" in run(f"{train} --data.valid_fraction 0.1 {quick} --sample.tokens 2")
    assert run(f"{generate} --tokens 3").startswith("Once")
    last = blocks_of("docs/tutorial.md", "")[-1].splitlines()
    exports, (evaluate, serve) = last[:-2], last[-2:]
    assert [run(line).split(":")[0] for line in exports] == ["out/dense", "out/factored", "out/gguf"]
    assert evaluate.startswith("lowrise eval ")
    losses = [json.loads(line)["val_loss"] for line in run(f"{evaluate} --json true").splitlines()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert losses[0] == pytest.approx(losses[3], rel=1e-2)  # q8_0
    pytest.importorskip("openai")
    with serving(*shlex.split(serve)[2:]) as url, redirect_stdout(io.StringIO()):
        code = blocks_of("docs/tutorial.md", "python")[-1].replace("http://127.0.0.1:8000/v1", url)
        names: dict[str, Any] = {}
        exec(code, names)
    assert names["answer"].model == "mine"


def test_each_method_s_row_can_be_shown() -> None:
    for name in METHODS:
        assert run(f"lowrise methods {name}").startswith(f"# {name}: ")


def test_flags_named_in_prose_are_of_a_section_that_exists() -> None:
    """`--section.key` in inline code of any page."""
    sections = {field.name for field in fields(RunConfig)}
    for page, path in PAGES.items():
        for flag in re.findall(r"`--([a-z]+)\.[a-z_.-]+", path.read_text(encoding="utf-8")):
            assert flag in sections, f"{page}: --{flag}"
