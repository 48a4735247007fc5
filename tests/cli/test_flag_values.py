"""Values that a flag does not take, for every flag of every command: one message with the value, the flag and
what it takes, and exit code 2. Never the frame of the parser below."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import lowrise
from lowrise.cli import main
from lowrise.config.command import Train, starting_config
from lowrise.errors import UsageError
from lowrise.flag_values import UNKNOWN, Flag
from lowrise.flags import _flags, parse
from lowrise.methods import METHODS

SOURCE = Path(lowrise.__file__).parent
# Command -> its flags. `train` is beside them: its sections depend on the method.
KINDS = {
    "eval": "evaluation.options.EvalOptions",
    "generate": "inference.options.GenerateConfig",
    "serve": "serve.options.ServeConfig",
    "export": "export.options.ExportOptions",
    "import": "pretrained.options.ImportOptions",
    "factorize": "pretrained.options.FactorizeOptions",
    "data prepare": "data.DataConfig",
    "data info": "runs.corpus_info.DataInfo",
    "methods": "runs.method_text.MethodOptions",
    "compare": "compare.options.CompareConfig",
    "sweep": "sweep.options.SweepConfig",
    "track run": "track.options.RunOptions",
    "track check": "track.options.CheckOptions",
    "track table": "track.options.TableOptions",
    "report": "report.options.ReportOptions",
    "bench": "compare.bench_options.BenchOptions",
    "plan": "runs.plan_options.PlanOptions",
    "scaling run": "scaling.options.SweepOptions",
    "scaling fit": "scaling.options.FitOptions",
    "scaling plot": "scaling.options.PlotOptions",
    "inspect": "audit.options.InspectOptions",
}


def kind_of(name: str) -> type:
    module, _, kind = KINDS[name].rpartition(".")
    return getattr(importlib.import_module(f"lowrise.{module}"), kind)


def test_the_table_has_every_command():
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    parsed = {*re.findall(r'\bparse\((?:[A-Z]\w*), \w+, "([a-z ]+)"', text)} | {"track run", "track check"}
    assert parsed == {*KINDS, "train"}


def wrong(flag: Flag) -> list[list[str]]:
    """Words that are no value of a flag. Of a flag that takes any text only the lack of one is wrong, and a
    switch of a command (`--json`) has none: what follows is the next word."""
    if "." not in flag.name and flag.takes_switch:
        return []
    words = [["q"], ["1.5.2"], [""], ["q", "1", "z"], []]

    def refused(values: list[str]) -> bool:
        try:
            flag.check(flag.split(values)[0], "x")
        except UsageError:
            return True
        return False

    return [values for values in words if refused(values)]


def frameless(kind: type, flag: Flag, values: list[str], name: str, default: Any = None) -> None:
    with pytest.raises(UsageError) as error:
        parse(kind, [f"--{flag.name}", *values], name, default=default)
    text = str(error.value)
    assert text.startswith(f"lowrise {name}: --{flag.name} "), text
    assert not re.search(r"[\u2500-\u257f]|\n", text), text
    for value in flag.split(values)[0]:
        assert repr(value) in text


@pytest.mark.parametrize("name", KINDS)
def test_every_flag_of_a_command(name):
    kind = kind_of(name)
    flags = list(_flags(kind, None))
    count = 0
    for flag, positional in flags:
        if positional:
            continue
        for values in wrong(flag):
            frameless(kind, flag, values, name)
            count += 1
        fits = [*map(str, flag.default)] if isinstance(flag.default, tuple) else [str(flag.default)]
        if flag.default is not UNKNOWN and not isinstance(flag.default, dict):
            flag.check(fits, name)  # its own default, as it would be written
    switches = all(flag.takes_switch or flag.takes_list for flag, positional in flags if not positional)
    assert count or switches


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_flag_of_training(method):
    start = Train(config=starting_config(["--method", method]))
    flags = [flag for flag, positional in _flags(Train, start) if not positional]
    if method != min(METHODS):  # what all methods share is tried once
        flags = [flag for flag in flags if flag.name.startswith(("layer.", "optimizer."))]
    for flag in flags:
        for values in wrong(flag)[:2]:
            frameless(Train, flag, values, "train", default=start)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "--train.steps", "abc"],
            "--train.steps 'abc' cannot be: it takes an integer, for example",
        ),
        (
            ["train", "--train.steps"],
            "--train.steps needs a value: an integer, for example --train.steps 1000",
        ),
        (["train", "--train.steps="], "--train.steps '' cannot be"),
        (
            ["train", "--data.vocab_size", "-5"],
            "data.vocab_size is -5: a byte-level tokenizer needs at",
        ),
        (["train", "--data.valid_fraction", "2"], "data.valid_fraction is 2.0: it must lie between 0 and 1"),
        (["train", "--data.source"], "data.source is empty: name a file"),
        (["train", "--other.betas", "0.9"], "--other.betas '0.9' cannot be: it takes 2 values"),
        (
            ["train", "--layer.rank", "a", "b"],
            "--layer.rank 'a' 'b' cannot be: it takes an integer or",
        ),
        (["export", "x", "--to", "foo"], "--to 'foo' cannot be: it takes one of hf, safetensors, gguf"),
        (["export"], "lowrise export needs RUN: lowrise export --help says what each is"),
        (["sweep", "a.toml"], "lowrise sweep needs --vary and --out"),
        (["methods", "a", "b"], "'b' is a word too many"),
        (["train", "--run", ""], "--run '' is empty: name a place (is a variable unset?)"),
        (["compare", "r.toml", "--budget", "tokens=1", "--out="], "--out '' is empty: name a place"),
        (["export", ""], "'' is no path: name one (is a variable unset?)"),
        (["train", "-x"], "there is no flag -x; all begin with --"),
        (["data", "prepare", "--vocab_size", "0"], "data.vocab_size is 0"),
    ],
)
def test_mistakes_are_one_message(words, said, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_true_is_a_switch_only_where_one_is():
    words = ["x", "--prompt", "true", "--explain=true", "--interactive"]
    command = parse(kind_of("generate"), words, "generate")
    assert (command.prompt, command.explain, command.interactive) == ("true", True, True)
