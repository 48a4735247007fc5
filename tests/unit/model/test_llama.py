"""The decoder against Hugging Face's, its cache, its sizes and its initialization."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.layers import LAYERS, LowRankLayer, LowRankLinear, factorize
from lowrise.model import PRESETS, Llama, LlamaConfig, build_model
from lowrise.model.norm import RMSNorm

SIZES = {
    # published_results.md, cola.md section 4, loro.md section 1: dense and factorized totals, rank
    "60m": (58_073_600, 42_770_944, 128),
    "130m": (134_105_856, 93_997_824, 256),
    "350m": (367_969_280, 185_222_144, 256),
    "1b": (1_339_082_752, 609_310_720, 512),
    "7b": (6_738_415_616, 2_820_935_680, 1024),
}


def small(**overrides: object) -> LlamaConfig:
    sizes = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_layers": 2, "num_heads": 4}
    return LlamaConfig(**{**sizes, **overrides})  # type: ignore[arg-type]


def hugging_face(config: LlamaConfig) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            tie_word_embeddings=config.tie_embeddings,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).eval()


def lively(model: Llama) -> Llama:
    """Weights so large that attention is not uniform, and norms not one: mistakes become visible."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5) if p.ndim == 2 else p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("size", list(SIZES))
def test_published_parameter_counts(size: str) -> None:
    config = LlamaConfig.preset(size)
    full, low, rank = SIZES[size]
    assert sum(p.numel() for p in build_model(config, device="meta").parameters()) == full
    model = build_model(config, layer="lowrank", rank=rank, device="meta")
    assert sum(p.numel() for p in model.parameters()) == low


@settings(max_examples=12, deadline=None)
@given(
    heads=st.sampled_from([(2, 1), (4, 2), (6, 6), (6, 2), (1, 1)]),
    half_head=st.integers(1, 8),
    mlp=st.integers(1, 70),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    theta=st.sampled_from([100.0, 1e4, 5e5]),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_logits_equal_hugging_face(
    heads: tuple[int, int],
    half_head: int,
    mlp: int,
    layers: int,
    tied: bool,
    theta: float,
    length: int,
    seed: int,
) -> None:
    config = LlamaConfig(
        vocab_size=37,
        hidden_size=heads[0] * half_head * 2,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        tie_embeddings=tied,
        rope_theta=theta,
    )
    torch.manual_seed(seed)
    ours = lively(build_model(config, seed=seed))
    theirs = hugging_face(config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(37, (2, length))
    with torch.no_grad():
        logits, expected = ours(tokens), theirs(input_ids=tokens).logits
    # float32: the bar of the brief, relative to the largest logit
    assert float((logits - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_state_dicts_are_interchangeable_both_ways() -> None:
    for tied in (False, True):
        config = small(tie_embeddings=tied)
        theirs = hugging_face(config)
        ours = Llama(config)
        ours.load_state_dict(theirs.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert list(dict(ours.named_parameters())) == list(dict(theirs.named_parameters()))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("cuts", [(9,), (1, 1, 7), (4, 3, 2), (8, 1)])
def test_cached_logits_equal_the_full_forward(kv_heads: int, cuts: tuple[int, ...]) -> None:
    # recomputation must step aside: a checkpointed block would not see the cache
    model = lively(Llama(small(num_kv_heads=kv_heads, recompute="block"))).double()
    tokens = torch.randint(61, (3, 9))
    cache = model.new_cache(9)
    parts = [model(piece, cache=cache) for piece in tokens.split(list(cuts), dim=1)]
    assert cache.length == 9
    # float64 weights; angles are float32 in both, so only the order of sums differs
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-10)


def test_cache_and_sequence_limits_are_sentences() -> None:
    model = Llama(small(max_seq_len=8))
    with pytest.raises(UsageError, match=r"9 tokens is longer than model.max_seq_len 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    cache = model.new_cache(4)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(UsageError, match="3 are used and 2 more"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)


def test_a_token_sees_nothing_after_it() -> None:
    model = lively(Llama(small()))
    tokens = torch.randint(61, (1, 10))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 61
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("layer", ["dense", *LAYERS])
def test_recomputation_changes_no_gradient(layer: str) -> None:
    gradients = []
    for recompute in ("none", "block"):
        model = build_model(small(recompute=recompute), layer=layer, rank=None if layer == "dense" else 4)
        for module in model.modules():
            if isinstance(module, LowRankLayer):
                module.before_update(2, 8)  # layers that change with time take part as a whole
        model(torch.arange(20)[None] % 61).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_recomputation_keeps_only_block_inputs() -> None:
    """What autograd keeps between the blocks must be of the residual stream's width, not the MLP's."""
    widths: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        widths.add(t.shape[-1] if t.ndim else 0)
        return t

    model = build_model(small(recompute="block"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.hidden(torch.arange(20)[None])
    assert 80 not in widths


def test_autocast_and_bfloat16_run() -> None:
    tokens = torch.randint(61, (2, 8))
    model = build_model(small(num_kv_heads=2), layer="lowrank", rank=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    # 2 blocks of bfloat16 products (2^-9 each); logits are of order 0.1
    assert float((logits.float() - model(tokens)).detach().abs().max()) < 0.02
    assert build_model(small(), dtype=torch.bfloat16)(tokens).dtype == torch.bfloat16


def test_norm_takes_its_mean_in_float32() -> None:
    """In float16 the squares of 300 overflow; in bfloat16 a sum of 4,096 ones stops at 256."""
    norm = RMSNorm(4096, 1e-6)
    ones = torch.ones(4096)
    assert torch.equal(norm.half()(300 * ones.half()), ones.half())
    assert torch.equal(norm.bfloat16()(ones.bfloat16()), ones.bfloat16())


def test_same_seed_same_weights_and_another_seed_others() -> None:
    def weights(**arguments: object) -> dict[str, Tensor]:
        return build_model(small(), **arguments).state_dict()  # type: ignore[arg-type]

    first, again, other = weights(seed=1), weights(seed=1), weights(seed=2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    q, k = (first[f"model.layers.0.self_attn.{p}_proj.weight"] for p in "qk")
    assert not torch.equal(q, k)


def test_building_neither_reads_nor_moves_the_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_model(small(), layer="lowrank", rank=4, seed=0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("layer", list(LAYERS))
def test_all_layers_share_what_they_do_not_replace(layer: str) -> None:
    dense = build_model(small(), seed=4).state_dict()
    other = build_model(small(), layer=layer, rank=0.25, seed=4).state_dict()
    common = [name for name in dense if name in other]
    assert len(common) == 2 + 1 + 2 * 2  # embedding, head, final norm, two norms a block
    assert all(torch.equal(dense[name], other[name]) for name in common)


def test_spectral_factors_are_the_truncation_of_the_dense_model() -> None:
    dense = build_model(small(init_std=0.05), seed=4)
    low = build_model(small(init_std=0.05), layer="lowrank", rank=1.0, seed=4)
    for name, module in low.named_modules():
        if isinstance(module, LowRankLinear):
            W = dense.get_submodule(name).weight
            # float32 rounding of factors of order sqrt(0.3), summed over 48
            torch.testing.assert_close(module.dense(), W, rtol=0, atol=1e-6)


def test_initial_weights_are_as_stated() -> None:
    model = build_model(LlamaConfig.preset("tiny", vocab_size=2000, init_std=0.03))
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert bool((p == 1).all()), name
        else:
            assert float(p.detach().std()) == pytest.approx(0.03, rel=0.03), (
                name
            )  # 16,384 entries: 0.55% a sigma


def test_llama_itself_follows_the_torch_seed() -> None:
    torch.manual_seed(5)
    first = Llama(small())
    torch.manual_seed(5)
    second = Llama(small())
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, Llama(small()).lm_head.weight)


def test_tied_weights_survive_meta_to_empty_deepcopy_and_dtype() -> None:
    with torch.device("meta"):
        model = Llama(small(tie_embeddings=True))
    model.to_empty(device="cpu")
    model.init_weights(0)
    for candidate in (model, copy.deepcopy(model), model.double()):
        assert candidate.lm_head.weight is candidate.model.embed_tokens.weight
    assert len(list(model.parameters())) == len(list(Llama(small()).parameters())) - 1


def test_presets_build_and_accept_overrides() -> None:
    for name in PRESETS:
        assert build_model(LlamaConfig.preset(name, vocab_size=300), device="meta").config.vocab_size == 300
    config = LlamaConfig.preset("60m", tie_embeddings=True)
    assert dataclasses.replace(config, num_layers=1).hidden_size == 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 50}, "hidden_size 50 is not a multiple of model.num_heads 4"),
        ({"hidden_size": 12}, "even head width"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 does not divide"),
        ({"num_kv_heads": 0}, "num_kv_heads 0 does not divide"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, not 0"),
        ({"num_layers": 2.0}, "num_layers must be an integer"),
        ({"norm_eps": 0.0}, "norm_eps must be positive"),
        ({"recompute": "all"}, "recompute must be one of none, block, latents"),
        ({"mlp_activation": "relu"}, "mlp_activation must be one of silu, none"),
    ],
)
def test_impossible_shapes_are_sentences(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**fields)


def test_unknown_names_are_sentences() -> None:
    with pytest.raises(UsageError, match="no model preset '60M'; did you mean '60m'"):
        LlamaConfig.preset("60M")
    with pytest.raises(UsageError, match="no setting 'hiden_size'; did you mean 'hidden_size'"):
        LlamaConfig.preset("60m", hiden_size=3)
    with pytest.raises(UsageError, match="needs a rank"):
        build_model(small(), layer="lowrank")
    with pytest.raises(UsageError, match="dense model has no rank"):
        build_model(small(), rank=4)


def test_blocks_compile_one_by_one() -> None:
    model = factorize(Llama(small()), rank=4)
    tokens = torch.randint(61, (2, 8))
    expected = model(tokens)
    for block in model.model.layers:
        block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(tokens), expected)
    assert any(isinstance(m, LowRankLayer) for m in model.modules())
