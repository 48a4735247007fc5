"""What `factorize` leaves alone or takes over by itself, and what it says of it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import lowrise
from lowrise.errors import UsageError
from lowrise.layers import LAYERS


def adapted(**options):
    """Three maps, of which "proj" has an adapter that changes the output."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("proj", "other", "last"):
        model.add_module(name, nn.Linear(16, 16))
    config = peft.LoraConfig(r=4, target_modules=["proj"], modules_to_save=["last"], **options)
    model = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_merging_an_adapter_loses_nothing(options):
    """What is added to the weight of a factorized map, a product made anew, would be lost in silence."""
    model, x = adapted(**options), torch.randn(5, 16)
    with pytest.warns(
        UserWarning, match=r"leaves 1 maps dense that adapters .*proj\.base_layer.*Factorize befor"
    ):
        lowrise.factorize(model, rank=1.0, from_weights=True)
    low = [name for name, m in model.named_modules() if type(m).__name__ == "LowRankLinear"]
    assert low == ["base_model.model.other"]
    before = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), before, rtol=1e-4, atol=1e-5)


def test_a_map_with_an_adapter_is_no_target():
    with pytest.raises(UsageError, match=r"proj\.base_layer is part of an adapter of peft.*skip it"):
        lowrise.factorize(adapted(), rank=4, targets="*proj.base_layer")
    model = lowrise.factorize(adapted(), rank=4, targets=["*other", "*proj.base_layer"], skip="*proj*")
    assert [n for n, m in model.named_modules() if type(m).__name__ == "LowRankLinear"] == [
        "base_model.model.other"
    ]


class ManyHeads(nn.Module):
    """Three predictions a token."""

    def __init__(self, columns: int = 8) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(90, columns), nn.Linear(columns, columns)
        self.first, self.second, self.third = (nn.Linear(columns, 90) for _ in range(3))


def test_several_maps_with_a_row_for_each_token_are_told():
    with pytest.warns(
        UserWarning, match="takes 3 maps with 90 rows, .*first, second, third.: name them in skip"
    ):
        lowrise.factorize(ManyHeads(), rank=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "factorize takes")
        lowrise.factorize(ManyHeads(), rank=0.5, skip=["first", "second", "third"])
        lowrise.factorize(ManyHeads(90), rank=0.5)  # as wide as its vocabulary


class Scaled(nn.Linear):
    pass


def test_classes_of_linear_are_named_where_they_are_all_that_is_left():
    model = nn.Sequential(Scaled(8, 8), nn.Linear(8, 8))
    with pytest.raises(
        UsageError, match=r"skipped, a head, or shared; Scaled may read the weight in other ways"
    ):
        lowrise.factorize(model, rank=2, skip="1")


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_hung_on_a_map_stays(name):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    own = model[0]
    own.gain, own.label = 0.5, "first"
    own.register_buffer("seen", torch.ones(3))
    own.register_parameter("offset", nn.Parameter(torch.ones(2)))
    own.after = nn.LayerNorm(8)
    lowrise.factorize(model, rank=2, layer=name)
    new = model[0]
    assert new is not own
    assert (new.gain, new.label) == (0.5, "first")
    assert new.get_buffer("seen") is own.seen
    assert new.get_parameter("offset") is own.offset
    assert new.after is own.after
    names = [n for group in lowrise.param_groups(model, lr=1.0) for n, _ in group["params"]]
    assert names.count("0.offset") == 1


def test_a_name_that_the_layer_uses_is_told():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].rank = "first"
    with pytest.warns(UserWarning, match="^0 had rank, which .* not take over: a LowRankLinear uses"):
        lowrise.factorize(model, rank=2)
    assert model[0].rank == 2


def test_what_is_hung_on_a_weight_is_told():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.lr_mult = 0.5
    with pytest.warns(UserWarning, match=r"^0 had weight\.lr_mult, which factorize does not take over"):
        lowrise.factorize(model, rank=2)


def test_singular_values_beyond_the_dtype_are_refused():
    model = nn.Sequential(nn.Linear(16, 16))
    nn.init.constant_(model[0].weight, 1e38)
    with pytest.raises(UsageError, match=r"singular value of 1\.6e\+39, which torch\.float32 cannot hold"):
        lowrise.factorize(model, rank=4, layer="svd", from_weights=True)
    assert lowrise.factorize(model, rank=4, from_weights=True)[0].dense().isfinite().all()
