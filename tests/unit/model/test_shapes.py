"""The family of shapes."""

from __future__ import annotations

import pytest

from lowrise.errors import UsageError
from lowrise.model.config import PRESETS
from lowrise.model.shapes import FINE_WIDTHS, WIDTHS, shape_of


@pytest.mark.parametrize("preset", ["nano", "mini", "60m", "130m"])
def test_presets_are_members(preset: str) -> None:
    size = PRESETS[preset]
    shape = shape_of(size["hidden_size"])
    assert shape.settings == {f"model.{key}": size[key] for key in size if key != "vocab_size"}


def test_widths() -> None:
    assert WIDTHS[:10] == (16, 24, 32, 48, 64, 80, 96, 112, 128, 160)
    assert list(FINE_WIDTHS) == sorted(set(FINE_WIDTHS))
    for width in (*WIDTHS, *FINE_WIDTHS):
        shape_of(width)


@pytest.mark.parametrize("width", [8, 20, 0, -16])
def test_widths_outside_the_family(width: int) -> None:
    with pytest.raises(UsageError, match="not in the family"):
        shape_of(width)
