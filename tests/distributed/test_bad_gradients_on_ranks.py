"""A bad gradient of which one rank alone has the rows: all ranks leave the unit as it was, and count it."""

import pytest
import torch
from processes import on_ranks
from spoiled_ranks import CASES, everything, one_process

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("bad"), everything, seconds=600)


@pytest.mark.parametrize(("name", "role"), CASES)
def test_ranks_decide_alike(name, role, ranks):
    expected = one_process(name, role)
    cases = {key: value for key, value in ranks[0].items() if key.startswith(f"{name} {role} ")}
    assert len(cases) == 8
    for key, ends in cases.items():
        for other, tensor in ends.items():
            assert torch.equal(tensor, ranks[1][key][other]), (key, other)
            # Batches of an owner are parts of those of one process, which may round otherwise.
            torch.testing.assert_close(tensor, expected[other], rtol=1e-4, atol=1e-5, msg=f"{key}: {other}")
