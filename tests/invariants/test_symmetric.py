"""Symmetric products by blocks are the whole products."""

from __future__ import annotations

import pytest
import torch

from lowrise.linalg.symmetric import rows_of_blocks, symmetric_baddbmm, symmetric_products

SIZES = (1, 3, 64, 127, 128, 129, 191, 192, 193, 250, 301)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", SIZES)
def test_products_are_the_whole_products(k: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(k)
    Xs = [torch.randn(b, m, k, generator=g, dtype=dtype) for b, m in ((2, k + 5), (1, 7), (3, 4 * k))]
    for chosen in (Xs, Xs[:1]):
        S = symmetric_products([(X.mT, X) for X in chosen])
        whole = torch.cat([X.mT @ X for X in chosen])
        assert (S - whole).abs().max() <= 64 * torch.finfo(dtype).eps * whole.abs().max()
    moved = symmetric_baddbmm(S, S, S, beta=-0.5, alpha=2.0)
    whole = torch.baddbmm(S, S, S, beta=-0.5, alpha=2.0)
    assert (moved - whole).abs().max() <= 64 * torch.finfo(dtype).eps * whole.abs().max()
    broken = torch.full_like(S, torch.nan)
    assert symmetric_baddbmm(broken, S, S, beta=0.0).isfinite().all()


def test_transposed_and_strided_stacks_are_taken() -> None:
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(3, 400, 300, generator=g, dtype=torch.float64)
    for X in (whole, whole.mT, whole[:, 5:290, ::2]):
        torch.testing.assert_close(symmetric_products([(X.mT, X)]), X.mT @ X, rtol=1e-12, atol=1e-11)


def test_what_multiplies_a_batch_at_once_takes_it_whole() -> None:
    large = torch.empty(2, 512, 512, device="meta")
    assert rows_of_blocks(large) == 1
    assert rows_of_blocks(torch.empty(2, 512, 512, dtype=torch.bfloat16)) == 1
    assert [rows_of_blocks(torch.empty(1, k, k)) for k in (128, 191, 192)] == [1, 1, 4]
    assert [rows_of_blocks(torch.empty(1, k, 512)) for k in (127, 128, 129)] == [1, 4, 1]
