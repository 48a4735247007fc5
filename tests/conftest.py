"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrise.layers import LAYERS
from lowrise.methods import METHODS
from lowrise.optim import OPTIMIZERS
from lowrise.plugins import load_plugins

ROOT = Path(__file__).resolve().parents[1]

# The contract tests run over the tables of methods, and so over those of plugins that are named here too.
load_plugins(name for name in os.environ.get("LOWRISE_TEST_PLUGINS", "").split(os.pathsep) if name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    return (yield from _skipped_without_torchao())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    return (yield from _skipped_without_torchao())


def _skipped_without_torchao() -> Generator[None, Any, Any]:
    """8-bit state is part of many grids; where torchao is absent or too old, those tests are skipped."""
    try:
        return (yield)
    except Exception as error:  # of this process, or what a rank wrote before it ended
        if "needs torchao 0.11 or newer" in str(error) and not _has_torchao():
            pytest.skip("8-bit state needs torchao 0.11 or newer")
        raise


def _has_torchao() -> bool:
    try:
        from torchao.optim import quant_utils  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden fixtures and real text; it lies beside the repository and is not part of it."""
    path = Path(os.environ.get("LOWRISE_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"the folder with fixtures and text is not at {path} (set LOWRISE_SHARED to its place)")
    return path


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept for a user (the key of `runs/trust.py`) is not the tester's."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _tables_as_they_were() -> Iterator[None]:
    """A plugin that a test loads is gone after it."""
    tables: list[dict[str, Any]] = [METHODS, OPTIMIZERS, LAYERS]  # type: ignore[list-item]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, rows in zip(tables, before, strict=True):
        if table != rows:
            table.clear()
            table.update(rows)
            for name in [m for m in sys.modules if m.startswith("lowrise_plugin_") and m not in modules]:
                del sys.modules[name]


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `text.jsonl`; prepared corpora go to `cache` beside it."""
    from small_runs import write_text

    folder = tmp_path_factory.mktemp("text")
    write_text(folder / "text.jsonl")
    return folder
