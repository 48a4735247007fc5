"""Multipliers of rates and first weights: their values, and that activations change alike at every size."""

from __future__ import annotations

import math

import pytest
import torch

from lowrise.cli import main
from lowrise.config import advice, load
from lowrise.errors import UsageError
from lowrise.linalg.energy import gaussian_energy
from lowrise.methods import METHODS
from lowrise.model import next_token_loss
from lowrise.optim import OPTIMIZERS
from lowrise.runs.build import build_optimizer, model_from, multipliers
from lowrise.runs.transfer import CHANGES, ENTRYWISE, Weight, check_transfer

VOCAB, BASE, BASE_RANK = 256, 64, 16
META = torch.device("meta")
# Every method whose optimizer and layer have multipliers: a new row in CHANGES needs no line here.
TRANSFERRED = [
    row.name
    for row in METHODS.values()
    if row.optimizer in CHANGES
    and row.layer in ("dense", "lowrank")
    and not row.defaults.get("optimizer.hyperball")
]
FACTORED = [name for name in TRANSFERRED if METHODS[name].layer == "lowrank"]
ALONE = {"other.lr": 1e-9}  # the matrices' own steps: embedding, head and norms stay


def config_of(method, width, rank=None, *, transfer=True, blocks=1, **more):
    values = {
        "method": method,
        "model.preset": "nano",
        "model.hidden_size": width,
        "model.intermediate_size": 2 * width,
        "model.num_layers": blocks,
        "model.num_heads": width // 32,
        "train.seq_len": 32,
    }
    if rank is not None:
        values["layer.rank"] = rank
    if transfer:
        values["transfer.base"] = BASE
        if rank is not None:
            values["transfer.rank"] = BASE_RANK
    return load(None, values | more)


# --- coordinate check -------------------------------------------------------------------------------------


def changes(config, updates=4):
    """Module -> root mean square of the change of its output by an update, the mean of some."""
    model = model_from(config, VOCAB, torch.device("cpu"))
    optimizer = build_optimizer(config, model)
    frequencies = 1.0 / torch.arange(1, VOCAB + 1)
    tokens = torch.multinomial(
        frequencies.expand(4, -1), 33, True, generator=torch.Generator().manual_seed(1)
    )
    probed = {"logits": model.lm_head}
    for i, block in enumerate(model.model.layers):
        probed |= {f"attention {i}": block.self_attn, f"mlp {i}": block.mlp}
    outputs = {}
    for name, module in probed.items():
        module.register_forward_hook(lambda m, x, y, name=name: outputs.update({name: y.detach()}))

    def seen():
        with torch.no_grad():
            model(tokens[:, :-1])
        return dict(outputs)

    total = dict.fromkeys(probed, 0.0)
    for _ in range(updates):
        before = seen()
        next_token_loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, after in seen().items():
            total[name] += float((after - before[name]).square().mean().sqrt()) / updates
    return total


def slopes(sizes, measured):
    """Module -> exponent of the size in its change, by least squares of the logarithms."""
    x = torch.tensor(sizes).double().log()
    x = (x - x.mean()) / (x - x.mean()).square().sum()
    return {
        name: float((x * torch.tensor([m[name] for m in measured]).double().log()).sum())
        for name in measured[0]
    }


def over_widths(method, widths, **more):
    ranks = [w // 4 if method in FACTORED else None for w in widths]
    return slopes(
        widths, [changes(config_of(method, w, r, **more)) for w, r in zip(widths, ranks, strict=True)]
    )


def over_ranks(method, ranks, width, **more):
    return slopes(ranks, [changes(config_of(method, width, r, **more)) for r in ranks])


@pytest.mark.parametrize("method", TRANSFERRED)
def test_activations_change_alike_at_every_width(method):
    found = over_widths(method, (64, 128, 256))
    assert max(map(abs, found.values())) < 0.3, found  # 64 is small: the limit is not reached there


@pytest.mark.parametrize("method", TRANSFERRED)
def test_without_multipliers_they_do_not(method):
    found = over_widths(method, (64, 256), transfer=False)
    assert found["logits"] > 0.5
    assert found["mlp 0"] > 0.5, found


@pytest.mark.parametrize("method", FACTORED)
def test_activations_change_alike_at_every_rank(method):
    """Within 12^0.35 = 2.4 over ranks x 12. Not closer: a low rank needs a larger norm for the same output,
    and what a map before has learned lies in its leading directions."""
    found = over_ranks(method, (16, 64, 192), 256)
    assert max(map(abs, found.values())) < 0.35, found
    bare = over_ranks(method, (16, 192), 256, transfer=False)
    assert bare["mlp 0"] > 0.7, bare


@pytest.mark.parametrize("method", FACTORED)
def test_what_the_factors_alone_change_is_alike(method):
    """Beside the embedding's change, which most of the above is, a step of factors that is too long or too
    short would not be seen. Within 4^0.4 = 1.7 over widths x 4 and 2.3 over ranks x 8. The logits answer
    through a head that stays at its first, random entries, and so with a power of -1/2 of the width."""
    for found in (over_widths(method, (64, 256), **ALONE), over_ranks(method, (16, 128), 256, **ALONE)):
        blocks = {name: slope for name, slope in found.items() if name != "logits"}
        assert max(map(abs, blocks.values())) < 0.4, found
    bare = over_widths(method, (64, 256), transfer=False, **ALONE)
    assert bare["mlp 0"] > 0.7, bare


def test_loramuon_at_full_rank_is_refused_without_the_whole_bound():
    """The second-order part of its step, up to lr^2 over W's least singular value, outgrows the first."""
    with pytest.raises(UsageError, match=r'rank 256 of 256 x 256.*bound = "whole".*at most 224'):
        by_role("loramuon", 256, 256)
    assert by_role("loramuon", 256, 224)["factors", 256, 256].lr == pytest.approx(1.0)
    whole = by_role("loramuon", 256, 256, **{"optimizer.bound": "whole"})
    assert whole["factors", 256, 256].lr == pytest.approx(1.0)
    published = {"optimizer.scale": "none", "model.intermediate_size": 1024}  # twice the base's ratio
    assert by_role("loramuon", 256, 64, **published)["factors", 1024, 256].lr == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", TRANSFERRED)
def test_activations_change_alike_from_64_to_1024(method):
    widths = (64, 128, 256, 512, 1024)
    assert max(map(abs, over_widths(method, widths, blocks=2).values())) < 0.15
    if method in FACTORED:  # rank 16 is a 32nd of the width, where the norm is three times that of full rank
        found = over_ranks(method, (16, 32, 64, 128, 256), 512, blocks=2)
        assert max(map(abs, found.values())) < 0.4, found
        assert max(abs(found[name]) for name in ("mlp 0", "mlp 1", "logits")) < 0.2, found


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRANSFERRED)
def test_the_base_is_as_without_multipliers(method):
    rank = BASE_RANK if method in FACTORED else None
    with_it, without = (config_of(method, BASE, rank, transfer=t) for t in (True, False))
    assert all((m.lr, m.init) == (1.0, 1.0) for m in multipliers(with_it, model_from(with_it, VOCAB, META)))
    models = [model_from(c, VOCAB, torch.device("cpu")) for c in (with_it, without)]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    groups = [build_optimizer(c, m).param_groups for c, m in zip((with_it, without), models, strict=True)]
    assert [g["lr"] for g in groups[0]] == [g["lr"] for g in groups[1]]


def by_role(method, width, rank=None, **more):
    config = config_of(method, width, rank, **more)
    return {(m.role, m.weight.m, m.weight.n): m for m in multipliers(config, model_from(config, VOCAB, META))}


def test_the_rates_of_the_derivation():
    """Width x 4 at one shape ratio: Adam 1/n, factors of rank r in proportion to n Adam 1 / sqrt(n r), rates
    that are norms of the change of W 1, Muon's 0.2 sqrt(max(m, n)) over its root; entries 1 / sqrt(n)."""
    head, square = ("head", VOCAB, 256), ("matrix", 256, 256)
    pair = ("factors", 256, 256)
    assert by_role("adamw", 256)[square].lr == pytest.approx(1 / 4)
    assert by_role("adamw", 256)[square].init == pytest.approx(1 / 2)
    assert by_role("muon", 256)[square].lr == pytest.approx(1 / 2)
    assert by_role("muon", 256, **{"optimizer.adjust_lr": "original"})[square].lr == pytest.approx(1.0)
    assert by_role("lowrank", 256, 64)[pair].lr == pytest.approx(1 / 4)
    assert by_role("spectron", 256, 64)[pair].lr == pytest.approx(1.0)
    assert by_role("spectron", 256, 64)[pair].init == pytest.approx(1 / 2)
    for method in TRANSFERRED:
        found = by_role(method, 256, 64 if method in FACTORED else None)
        assert (found[head].lr, found[head].init) == (1 / 4, 1 / 4)
        kept = [m for m in found.values() if m.role in ("embedding", "other")]
        assert len(kept) >= 2
        assert all((m.lr, m.init) == (1.0, 1.0) for m in kept)


def test_the_rate_of_factors_over_ranks():
    """At one width: Adam's 1 / sqrt(r) over the root of the partner's norm, which is e^(-1/4) by the share of
    the energy that the rank keeps; a rate that is the norm of the change of W stays."""
    assert by_role("spectron", BASE, 64)["factors", 64, 64].lr == pytest.approx(1.0)
    found = by_role("lowrank", BASE, 64)["factors", 64, 64]
    share = gaussian_energy(64, 64, BASE_RANK)
    assert found.lr == pytest.approx(math.sqrt(16 / 64) * share**-0.25)
    assert found.init == pytest.approx(math.sqrt(share))


@pytest.mark.parametrize(("m", "n", "r"), [(64, 64, 4), (176, 64, 16), (64, 176, 16), (96, 96, 96)])
def test_the_energy_of_a_gaussian_matrix(m, n, r):
    torch.manual_seed(0)
    s = torch.linalg.svdvals(torch.randn(20, m, n, dtype=torch.float64)).square()
    drawn = float((s[:, :r].sum(-1) / s.sum(-1)).mean())
    assert gaussian_energy(m, n, r) == pytest.approx(drawn, rel=0.02)


def test_first_weights_have_the_sizes_of_the_derivation():
    """Outputs of a factored map keep their size at every rank, and the head's rows fall with the width."""
    for rank in (8, 64):
        model = model_from(config_of("spectron", 256, rank), VOCAB, torch.device("cpu"))
        W = model.model.layers[0].mlp.up_proj.dense().detach()
        share = gaussian_energy(128, 64, BASE_RANK)  # of the base's map
        assert float(W.std()) == pytest.approx(0.02 * math.sqrt(64 / 256) * math.sqrt(share), rel=0.03)
        assert float(model.lm_head.weight.std()) == pytest.approx(0.02 / 4, rel=0.02)
        assert float(model.model.embed_tokens.weight.std()) == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("method", TRANSFERRED)
def test_every_parameter_has_its_rate_once_and_rate_times_decay_stays(method):
    rank = 64 if method in FACTORED else None
    config = config_of(method, 256, rank, **{"optimizer.weight_decay": 0.1, "other.weight_decay": 0.2})
    model = model_from(config, VOCAB, META)
    groups = build_optimizer(config, model).param_groups
    assert sorted(n for g in groups for n in g["param_names"]) == sorted(
        n for n, _ in model.named_parameters()
    )
    for group in groups:
        rate, decay = (config.other.lr, 0.2) if group["role"] == "other" else (config.optimizer.lr, 0.1)
        assert group["lr"] * group["weight_decay"] == pytest.approx(rate * decay)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "adamw"])
def test_a_row_is_the_norm_of_what_the_optimizer_does(name):
    """A step from a random gradient of low rank, at two sizes: norms of the change of W in the ratio of the
    row. Not of AdamW's, whose row is a bound that only gradients of rank one reach."""
    measured, stated = [], []
    for width in (64, 256):
        method = next(m for m in TRANSFERRED if METHODS[m].optimizer == name)
        rank = width // 4 if method in FACTORED else None
        config = config_of(method, width, rank, transfer=False)
        model = model_from(config, VOCAB, torch.device("cpu"))
        layer = model.model.layers[0].mlp.up_proj
        for p in layer.parameters():
            torch.manual_seed(0)
            p.grad = torch.randn(p.shape[0], 4) @ torch.randn(4, p.shape[1])
        before = (layer.dense() if rank else layer.weight).detach().clone()
        optimizer = build_optimizer(config, model)
        optimizer.step()
        after = (layer.dense() if rank else layer.weight).detach()
        measured.append(float(torch.linalg.matrix_norm(after - before, 2)))
        options = optimizer.param_groups[0]
        stated.append(CHANGES[name](Weight(2 * width, width, rank), options))
    assert measured[1] / measured[0] == pytest.approx(stated[1] / stated[0], rel=0.25)


# --- shown and refused ------------------------------------------------------------------------------------


def test_plan_shows_the_table(tmp_path, capsys):
    recipe = tmp_path / "wide.toml"
    recipe.write_text('method = "spectron"\n[model]\npreset = "mini"\n[transfer]\nbase = "tiny"\n')
    assert main(["plan", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "256 x 256, rank 64" in shown
    assert "128 x 128, rank 32" in shown
    assert main(["plan", "--model", "tiny", "--method", "spectron"]) == 0
    assert "first weights" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"transfer.base": "tinny"}, "tinny"),
        ({"transfer.base": 0}, "transfer.base = 0 cannot be"),
        ({"transfer.rank": 4}, "it is the rank at transfer.base"),
        ({"transfer.base": "tiny", "method": "galore"}, "not for galore"),
        ({"transfer.base": "tiny", "method": "muonh"}, "optimizer.hyperball"),
        ({"transfer.base": "tiny", "method": "cola", "optimizer.name": "adamw"}, "not for cola"),
        ({"transfer.base": "tiny", "layer.init": "xavier"}, "layer.init = 'xavier' cannot be"),
        ({"transfer.base": "tiny", "model.tie_embeddings": True}, "model.tie_embeddings"),
        ({"transfer.base": 100}, "not a multiple of 32"),
        ({"transfer.base": 32, "model.num_kv_heads": 1}, "not a whole number"),
    ],
)
def test_what_is_not_derived_is_refused(values, message):
    def build():
        config = load(None, values)
        check_transfer(config)
        model_from(config, VOCAB, META)

    with pytest.raises(UsageError, match=message):
        build()


def test_wider_heads_are_told():
    assert not advice(load(None, {"transfer.base": "nano"}))
    (sentence,) = advice(load(None, {"transfer.base": "tiny", "model.preset": "mini"}))
    assert "model.num_heads = 8" in sentence


def test_factors_that_the_optimizer_leaves_to_adamw_are_refused(monkeypatch):
    monkeypatch.setitem(CHANGES, "sinkgd", ENTRYWISE)
    with pytest.raises(UsageError, match="sinkgd leaves factors to AdamW"):
        check_transfer(config_of("lowrank", 256, 64, **{"optimizer.name": "sinkgd"}))


def test_a_row_makes_a_further_optimizer_known(monkeypatch):
    config = config_of("sinkgd", 256)
    assert "sinkgd" in OPTIMIZERS
    monkeypatch.setitem(CHANGES, "sinkgd", ENTRYWISE)
    found = multipliers(config, model_from(config, VOCAB, META))
    assert next(m.lr for m in found if m.role == "matrix") == pytest.approx(1 / 4)
