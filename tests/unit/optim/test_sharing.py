"""Rows, owners and rules of shared models, without other processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import parallel_config
from torch import nn

from lowrise.distributed import World
from lowrise.distributed.gradients import clip_gradients_
from lowrise.distributed.sharding import rows_of, whole_parameters
from lowrise.distributed.transfers import least_loaded
from lowrise.errors import UsageError
from lowrise.layers.registry import LAYERS, option_names
from lowrise.methods import METHODS
from lowrise.model import LlamaConfig, build_model
from lowrise.runs.parallel import check_world, copied_parameters

COSTS = st.lists(st.integers(0, 10**9), max_size=60)


@given(COSTS, st.integers(1, 9))
def test_owners_have_even_loads(costs, ranks):
    """Whatever is given to the least loaded rank ends at most one item above the mean."""
    loads = [0.0] * ranks
    owners = least_loaded(costs, loads)
    counted = [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) for rank in range(ranks)]
    assert loads == counted
    assert max(loads) <= sum(costs) / ranks + max(costs, default=0)


@given(COSTS, COSTS, st.integers(1, 5))
def test_owners_of_a_later_group_fill_up_the_loads_of_the_first(first, second, ranks):
    loads = [0.0] * ranks
    least_loaded(first, loads)
    least_loaded(second, loads)
    assert max(loads) <= sum(first + second) / ranks + max(first + second, default=0)


def test_equal_matrices_are_dealt_in_turn():
    assert least_loaded([5, 5, 5, 5, 5], [0.0, 0.0]) == [0, 1, 0, 1, 0]


@given(st.integers(0, 40), st.integers(1, 9))
def test_rows_of_ranks_are_torchs_chunks(size, ranks):
    chunks = [t.tolist() for t in torch.arange(size).chunk(ranks)] if size else []
    mine = [list(range(size))[rows_of(size, ranks, rank)] for rank in range(ranks)]
    assert mine == chunks + [[]] * (ranks - len(chunks))


def test_parameters_that_are_not_shared_stay_as_they_are():
    layer = nn.Linear(3, 2)
    before = dict(layer.named_parameters())
    with whole_parameters(layer):
        assert dict(layer.named_parameters()) == before


def test_clipping_is_torchs_without_shared_parameters():
    parameters = [nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    for p in parameters[:2]:
        p.grad = torch.randn(3, 2)
    others = [nn.Parameter(p.detach().clone()) for p in parameters]
    for p, q in zip(parameters[:2], others, strict=False):
        assert p.grad is not None
        q.grad = p.grad.clone()
    assert torch.equal(clip_gradients_(parameters, 0.5), nn.utils.clip_grad_norm_(others, 0.5))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(parameters[:2], others, strict=False))


def test_small_parameters_and_layers_that_change_are_copies():
    config = LlamaConfig.preset("nano", vocab_size=300)
    names = {
        layer: _copied(build_model(config, layer=layer, rank=8, layer_options=options, device="meta"))
        for layer, options in (("lowrank", {}), ("selfguided", {}), ("svd", {"energy": 0.9}))
    }
    assert all(name.endswith("norm.weight") for name in names["lowrank"])
    for layer in ("selfguided", "svd"):
        inside = names[layer] - names["lowrank"]
        assert inside
        assert all(name.startswith("model.layers") for name in inside)
        assert "lm_head.weight" not in names[layer]


def _copied(model: nn.Module) -> set[str]:
    copied = copied_parameters(model, 65)
    return {name for name, p in model.named_parameters() if p in copied}


@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_rewrites_parameters_in_secret(name):
    """`after_update` where `rewrites_after` is False would write into rows as if they were the whole."""
    options = {"merge_every": 3} if "merge_every" in option_names(LAYERS[name]) else {}
    layer = LAYERS[name](6, 5, 2, **options)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    rewritten = []
    for number in range(1, 9):
        before = {key: p.detach().clone() for key, p in layer.named_parameters()}
        layer.after_update(number, 8)
        same = all(torch.equal(p, before[key]) for key, p in layer.named_parameters())
        assert same or layer.rewrites_after(number, 8)
        rewritten += [] if same else [number]
    assert rewritten == ([3, 6] if options else [])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"parallel.data": "hsdp", "parallel.shard_degree": 3}, "4 ranks cannot be split into copies"),
        ({"parallel.data": "fsdp", "parallel.param_dtype": "bfloat16"}, 'train.precision is "auto"'),
    ],
)
def test_what_ranks_cannot_do_gets_a_sentence(settings, sentence, text_folder):
    with pytest.raises(UsageError, match=sentence):
        check_world(parallel_config(text_folder, "adamw", **settings), World(0, 4, 0, 2))


@pytest.mark.parametrize("method", METHODS)
def test_sharing_is_no_part_of_a_recipes_identity(method, text_folder):
    plain = parallel_config(text_folder, method)
    shared = parallel_config(
        text_folder, method, **{"parallel.data": "fsdp", "parallel.distribute_optimizer": False}
    )
    assert plain.hash == shared.hash
