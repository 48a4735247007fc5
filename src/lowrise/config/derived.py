"""The three sections whose fields come from the thing that they configure, so that no option is written
twice: `[model]` from `LlamaConfig`, `[layer]` and `[optimizer]` from the constructor of the named class.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import inspect
import itertools
import operator
import re
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import field, fields
from functools import cache
from typing import Any

import tyro

from lowrise.config.sections import DENSE, FactorizedSection, LayerSection, ModelSection, OptimizerSection
from lowrise.layers import LAYERS
from lowrise.model.config import LlamaConfig
from lowrise.optim import OPTIMIZERS


@cache
def model_section() -> type[ModelSection]:
    """`[model]`: a preset and every field of `LlamaConfig`, unset."""
    hints, help_texts = typing.get_type_hints(LlamaConfig), _field_help(LlamaConfig)
    options = [
        (f.name, _with_help(hints[f.name] | None, help_texts.get(f.name)), field(default=None))
        for f in fields(LlamaConfig)
    ]
    return dataclasses.make_dataclass("Model", options, bases=(ModelSection,), kw_only=True)


@cache
def layer_section(name: str) -> type[LayerSection]:
    """`[layer]` of the named class: rank, targets, skip and the keyword-only options of its constructor.

    `init_std` is not among them: it is the model's.
    """
    if name == DENSE:
        return LayerSection
    return _section_of(LAYERS[name], FactorizedSection, skip={"device", "dtype", "init_std"})


@cache
def optimizer_section(name: str) -> type[OptimizerSection]:
    """`[optimizer]` of the named class: its learning rate and the keyword-only options of its constructor."""
    target = OPTIMIZERS[name]
    section = _section_of(target, OptimizerSection, skip=set())
    lr = field(default=inspect.signature(target).parameters["lr"].default)
    kind = _with_help(float, argument_help(target).get("lr"))
    return dataclasses.make_dataclass(section.__name__, [("lr", kind, lr)], bases=(section,), kw_only=True)


def _section_of(target: Callable[..., Any], base: type, skip: set[str]) -> type:
    hints, help_texts = typing.get_type_hints(target.__init__), argument_help(target)
    options = [
        (p.name, _with_help(_writable(hints[p.name]), help_texts.get(p.name)), field(default=p.default))
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in skip
    ]
    return dataclasses.make_dataclass(
        getattr(target, "__name__", "Options"), options, bases=(base,), kw_only=True
    )


def _writable(kind: Any) -> Any:
    """The annotation without functions, which a file or a flag cannot hold."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    kinds = [k for k in typing.get_args(kind) if typing.get_origin(k) is not collections.abc.Callable]
    return functools.reduce(operator.or_, kinds)


def _with_help(kind: Any, text: str | None) -> Any:
    return typing.Annotated[kind, tyro.conf.arg(help=text)] if text else kind


def _field_help(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, which `tyro` cannot see through a made one."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, following in itertools.pairwise(body.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            assert isinstance(statement.target, ast.Name)
            texts[statement.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return texts


def argument_help(target: Callable[..., Any]) -> dict[str, str]:
    """Option -> text of the section `Args:` of a class's docstring (entries `name: text`, indented once; what
    is indented further continues an entry).
    """
    _, _, section = (inspect.getdoc(target) or "").partition("\nArgs:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = re.match(r" {4}(\w+): (.+)", line)
        if entry:
            name = entry[1]
            texts[name] = entry[2]
        elif line.startswith(" " * 5):
            texts[name] += f" {line.strip()}"
        else:
            break
    return texts


def options_of(section: LayerSection | OptimizerSection) -> dict[str, Any]:
    """The fields of a section that its class added: the keyword arguments of the constructor."""
    base = FactorizedSection if isinstance(section, FactorizedSection) else OptimizerSection
    own = {f.name for f in fields(base)}
    return {f.name: getattr(section, f.name) for f in fields(section) if f.name not in own}
