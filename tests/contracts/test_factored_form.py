"""Every layer's `factored_form` is the map that it computes, or there is a dense weight to take instead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lowrise.layers import LAYERS
from lowrise.layers.base import FactoredForm


def applied(form: FactoredForm, x: torch.Tensor) -> torch.Tensor:
    """y = up(activation(down(x))) + S x, as the docstring has it."""
    z = x @ form.down.T
    y = (F.silu(z) if form.activation == "silu" else z) @ form.up.T
    if form.values is None:
        return y
    m, n = form.up.shape[0], form.down.shape[1]
    S = torch.zeros(m * n, dtype=x.dtype)
    assert form.index is not None
    S[form.index.long()] = form.values
    return y + x @ S.view(m, n).T


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (10, 6)])
def test_it_is_the_map(name: str, rows: int, columns: int) -> None:
    layer = LAYERS[name](columns, rows, 3, dtype=torch.float64)  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        x = torch.randn(4, columns, dtype=torch.float64)
        form = layer.factored_form()
        if form is None:
            assert F.linear(x, layer.dense()).allclose(layer(x))
            return
        assert form.down.shape == (3, columns)
        assert form.up.shape == (rows, 3)
        torch.testing.assert_close(applied(form, x), layer(x))
        assert (form.activation != "none") is (name in ("cola", "dlr"))
