"""The three sections whose fields come from the thing that they configure, so that no option is written
twice: `[model]` from `LlamaConfig`, `[layer]` and `[optimizer]` from the constructor of the named class.

Those of the package's own classes lie in `layer_options.py` and `optimizer_options.py`, written from the
constructors by `docs/make_options.py`: flags are read, explained and refused without torch. A plugin's class
is asked itself.
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
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any

import tyro

from lowrise.config.layer_options import LAYER_OPTIONS
from lowrise.config.optimizer_options import OPTIMIZER_OPTIONS
from lowrise.config.sections import DENSE, FactorizedSection, LayerSection, ModelSection, OptimizerSection
from lowrise.model.config import LlamaConfig


@cache
def model_section() -> type[ModelSection]:
    """`[model]`: a preset and every field of `LlamaConfig`, unset."""
    hints, help_texts = typing.get_type_hints(LlamaConfig), field_help(LlamaConfig)
    options = [
        (f.name, _with_help(hints[f.name] | None, help_texts.get(f.name)), field(default=None))
        for f in fields(LlamaConfig)
    ]
    return dataclasses.make_dataclass("Model", options, bases=(ModelSection,), kw_only=True)


def layer_names() -> list[str]:
    """The layers that there are, without "dense"."""
    return [*dict.fromkeys([*LAYER_OPTIONS, *_imported("layers.registry", "LAYERS")])]


def optimizer_names() -> list[str]:
    """The optimizers that there are."""
    return [*dict.fromkeys([*OPTIMIZER_OPTIONS, *_imported("optim", "OPTIMIZERS")])]


def layer_section(name: str) -> type[LayerSection]:
    """`[layer]` of the named class: rank, targets, skip and the keyword-only options of its constructor."""
    if name == DENSE:
        return LayerSection
    return LAYER_OPTIONS.get(name) or layer_options(_imported("layers.registry", "LAYERS")[name])


def optimizer_section(name: str) -> type[OptimizerSection]:
    """`[optimizer]` of the named class: its learning rate and the keyword-only options of its constructor."""
    return OPTIMIZER_OPTIONS.get(name) or optimizer_options(_imported("optim", "OPTIMIZERS")[name])


def _imported(module: str, table: str) -> Mapping[str, type]:
    """A table of classes where it has been imported, as by a plugin that adds to it, and nothing elsewhere:
    the options of its own classes are in a file, and to import it would import torch for a flag's help."""
    found: Mapping[str, type] = getattr(sys.modules.get(f"lowrise.{module}"), table, {})
    return found


@cache
def layer_options(cls: Any) -> type[FactorizedSection]:
    """The section of a layer's class, with its role. `init_std` is not an option: it is the model's."""
    return _section_of(cls, FactorizedSection, {"device", "dtype", "init_std"}, {"role": cls.role})


@cache
def optimizer_options(cls: type) -> type[OptimizerSection]:
    """The section of an optimizer's class."""
    section = _section_of(cls, OptimizerSection, set(), {})
    lr = field(default=inspect.signature(cls).parameters["lr"].default)
    kind = _with_help(float, argument_help(cls).get("lr"))
    return dataclasses.make_dataclass(section.__name__, [("lr", kind, lr)], bases=(section,), kw_only=True)


def _section_of(target: Callable[..., Any], base: type, skip: set[str], namespace: dict[str, Any]) -> type:
    hints, help_texts = typing.get_type_hints(target.__init__), argument_help(target)
    options = [
        (p.name, _with_help(_writable(hints[p.name]), help_texts.get(p.name)), field(default=p.default))
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in skip
    ]
    name = getattr(target, "__name__", "Options")
    return dataclasses.make_dataclass(name, options, bases=(base,), kw_only=True, namespace=namespace)


def _writable(kind: Any) -> Any:
    """The annotation without functions, which a file or a flag cannot hold."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    kinds = [k for k in typing.get_args(kind) if typing.get_origin(k) is not collections.abc.Callable]
    return functools.reduce(operator.or_, kinds)


def _with_help(kind: Any, text: str | None) -> Any:
    return typing.Annotated[kind, tyro.conf.arg(help=text)] if text else kind


def field_help(cls: type) -> dict[str, str]:
    """Field -> help text of a dataclass and its bases: the string under it, or the one that a made class has
    in its annotation (`tyro` cannot see the former through the latter)."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if "__annotations__" in vars(base) and base.__module__ != "types":
            texts |= _strings_under(base)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            texts[name] = extra.help
    return texts


def _strings_under(cls: type) -> dict[str, str]:
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # made while the program runs
        return {}
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
