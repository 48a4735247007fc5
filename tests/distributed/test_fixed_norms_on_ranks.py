"""Norm-fixed weights on three ranks that share rows, some without any: what one process computes."""

import pytest
import torch
from fixed_norm_ranks import CASES, everything, one_process
from processes import on_ranks

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(3, tmp_path_factory.mktemp("norms"), everything, seconds=300)


@pytest.mark.parametrize("way", ["rows", "copies"])
@pytest.mark.parametrize(("name", "role", "dtype"), CASES)
def test_ranks_equal_one(name, role, dtype, way, ranks):
    expected = one_process(name, role, dtype)
    key = f"{name} {role} {dtype} {way}"
    # Sums of float64 in another order; bfloat16 weights by one unit in the last place where a tie falls
    # otherwise.
    bars = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2**-7, "atol": 1e-3}
    for found in ranks:
        for tensor, wanted in zip(found[key], expected, strict=True):
            torch.testing.assert_close(tensor, wanted, **bars)
