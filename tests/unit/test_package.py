"""What is installed: the version from one place, type information, every package, in wheel and sdist."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lowrise

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lowrise"


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lowrise.__version__"}
    (value,) = (
        node.value
        for node in ast.parse((SOURCE / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    )
    # A plain string, which setuptools reads without importing torch.
    assert ast.literal_eval(value) == lowrise.__version__


def test_the_citation_file_has_the_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {lowrise.__version__}" in lines


def test_the_doors_lead_to_what_is_there() -> None:
    """The workflow calls what CI calls, and hooks run files and tools that exist."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run" in workflow
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    commands = [line.split("entry: ")[1].split() for line in hooks.splitlines() if "entry: " in line]
    assert len(commands) == 5
    for tool, *words in commands:
        assert tool in (".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/python")
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this source, built by the installed setuptools."""
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="pyproject.toml needs it")
    assert setuptools
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(SOURCE, folder / "src" / "lowrise", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta as b; b.build_sdist('out'); b.build_wheel('out')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_wheel_is_typed_and_whole(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"lowrise-{lowrise.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "lowrise/py.typed" in names
    assert {f"lowrise/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")} <= names


def test_the_sdist_is_typed_and_whole(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    root = f"lowrise-{lowrise.__version__}"
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    assert {f"{root}/src/lowrise/py.typed", f"{root}/pyproject.toml", f"{root}/README.md"} <= names
    assert {f"{root}/src/lowrise/{p.relative_to(SOURCE).as_posix()}" for p in SOURCE.rglob("*.py")} <= names
