"""`reset_parameters` after `fully_shard`, the order of loops that build their model on the meta device."""

import pytest
import torch
from own_sharded_loops import drawn, on_meta, taken_over
from processes import needs_fsdp, on_ranks

from lowrise.layers import LAYERS

pytestmark = [pytest.mark.xdist_group("ranks"), needs_fsdp]


@pytest.fixture(scope="module", params=[(2,), (2, 2)], ids=["fsdp", "hsdp"])
def ranks(request, tmp_path_factory):
    size = torch.Size(request.param).numel()
    folder = tmp_path_factory.mktemp("draws")
    return {seed: on_ranks(size, folder / str(seed), drawn, request.param, seed) for seed in (5, None)}


@pytest.mark.parametrize("name", LAYERS)
def test_the_values_of_one_process(name, ranks):
    model = on_meta(name).to_empty(device="cpu")
    model.get_submodule("0").reset_parameters(torch.Generator().manual_seed(5))
    for of_rank in ranks[5]:
        assert set(of_rank[name]) == set(model.state_dict())
        for key, t in model.state_dict().items():
            assert torch.equal(of_rank[name][key], t), key


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_generator_the_ranks_agree_on_a_seed(name, ranks):
    first, *others = (of_rank[name] for of_rank in ranks[None])
    for other in others:
        for key, t in first.items():
            assert torch.equal(other[key], t), key  # buffers are each rank's own
    drawn_ones = [t for t in first.values() if t.ndim == 2 and t.any()]
    assert drawn_ones
    for t in drawn_ones:
        assert len(t.unique(dim=0)) == len(t)  # no rows twice


def test_a_dense_weight_is_taken_over_by_rows(tmp_path):
    weight = torch.randn(20, 24, generator=torch.Generator().manual_seed(1))
    bias = torch.arange(20.0)
    for of_rank in on_ranks(2, tmp_path, taken_over, weight, bias):
        assert set(of_rank) == set(LAYERS)
        for name, tensors in of_rank.items():
            model = on_meta(name).to_empty(device="cpu")
            layer = model.get_submodule("0")
            layer.reset_parameters(torch.Generator().manual_seed(5))
            layer.load_dense_(weight, bias)
            for key, t in model.state_dict().items():
                torch.testing.assert_close(tensors[key], t, rtol=0, atol=1e-6, msg=f"{name} {key}")
