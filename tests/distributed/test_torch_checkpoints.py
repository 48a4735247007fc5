"""Loops of the user's own that save by `torch.distributed.checkpoint`: every optimizer goes on as if nothing
had been, on other numbers of ranks too.
"""

import pytest
import torch
from own_sharded_loops import load_by_torch, save_by_torch
from processes import needs_fsdp, on_ranks

from lowrise.optim import OPTIMIZERS

pytestmark = [pytest.mark.xdist_group("ranks"), needs_fsdp]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch checkpoints")
    (goes_on, _) = on_ranks(2, folder / "saving", save_by_torch, folder / "saved")
    loaded = {n: on_ranks(n, folder / f"loading-{n}", load_by_torch, folder / "saved")[0] for n in (2, 4)}
    return goes_on, loaded


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_bits_on_as_many_ranks(name, ends):
    goes_on, loaded = ends
    for key, weight in goes_on[name].items():
        assert torch.equal(loaded[2][name][key], weight), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_weights_on_another_number(name, ends):
    goes_on, loaded = ends
    bar = 3e-2 if name == "swan" else 2e-5  # its whitening divides the smallest singular values by themselves
    for key, weight in goes_on[name].items():
        distance = torch.linalg.vector_norm(loaded[4][name][key] - weight) / torch.linalg.vector_norm(weight)
        assert distance <= bar, (key, float(distance))
