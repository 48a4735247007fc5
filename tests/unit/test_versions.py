"""What is promised of old versions is what `make test-oldest` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In no test environment: services that report over the network, peers of a benchmark. No part in what runs:
# linters and the builder.
ELSEWHERE = {"wandb", "trackio", "mlflow-skinny", "galore-torch", "fira", "ruff", "mypy", "setuptools"}


def bounds() -> list[tuple[str, str]]:
    """Each name with its lower bound, of the dependencies and every extra but `docs`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in extras if name != "docs" for text in extras[name])]
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)(,<[\d.]+)?(; .+)?", text) for text in texts]
    assert all(found), texts
    return sorted({(match[1], match[2]) for match in found if match})


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize(("name", "bound"), bounds())
def test_the_lower_bound_is_what_is_tested(name: str, bound: str) -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    if name in ELSEWHERE:
        assert name not in pinned
        return
    # A bound of two places leaves the last one open: pyarrow>=15 is tested as 15.0.2.
    assert numbers(pinned[name])[: len(numbers(bound))] == numbers(bound)


def test_every_name_has_one_lower_bound() -> None:
    names = [name for name, _ in bounds()]
    assert len(names) == len(set(names))
