"""The factored model in Hugging Face's world: conventions, saving, quantization, adapters, training."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from lowrise.export.hf import FactoredLinear, LowriseConfig, LowriseForCausalLM  # noqa: E402
from lowrise.export.huggingface import AUTO_MAP  # noqa: E402

PARTS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NAMES = [f"layers.{i}.{part}.{name}" for i in range(2) for part, names in PARTS.items() for name in names]
RANK = 32


def config_of(**changes: Any) -> LowriseConfig:
    """Two blocks, ranks 32, one with an activation, one with a sparse part, one left dense."""
    factors: dict[str, Any] = {name: {"rank": RANK} for name in NAMES}
    factors[NAMES[4]]["activation"] = "silu"
    factors[NAMES[5]]["sparse"] = 77
    del factors[NAMES[13]]
    shape = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    return LowriseConfig(factors=factors, **(shape | changes))


@pytest.fixture
def model() -> LowriseForCausalLM:
    model = LowriseForCausalLM(config_of()).eval()
    sparse = model.model.get_submodule(NAMES[5])
    nn.init.normal_(sparse.values, std=0.2)
    sparse.index.copy_(torch.randperm(64 * 96)[:77].sort().values)
    return model


TOKENS = torch.arange(14).view(2, 7)


def test_a_map_is_what_its_docstring_says(model: LowriseForCausalLM) -> None:
    x = torch.randn(5, 64)
    plain, bent, sparse = (model.model.get_submodule(NAMES[i]) for i in (0, 4, 5))
    torch.testing.assert_close(plain(x), x @ plain.down.weight.T @ plain.up.weight.T)
    torch.testing.assert_close(bent(x), torch.nn.functional.silu(x @ bent.down.weight.T) @ bent.up.weight.T)
    S = torch.zeros(96 * 64)
    S[sparse.index.long()] = sparse.values.detach()
    torch.testing.assert_close(
        sparse(x), x @ (sparse.up.weight @ sparse.down.weight + S.view(96, 64)).T, rtol=1e-5, atol=1e-6
    )


def test_conventions_that_back_ends_ask_for(model: LowriseForCausalLM) -> None:
    """vLLM's and SGLang's Transformers back ends, and tensor parallelism of transformers itself."""
    pytest.importorskip("transformers", minversion="5", reason="4 lacks some of these conventions")
    assert model._supports_attention_backend
    assert model._supports_sdpa
    assert model._can_compile_fullgraph
    assert all(type(b.self_attn.is_causal) is bool for b in model.model.layers)
    assert set(model._no_split_modules) == {"LlamaDecoderLayer"}
    for name in ("q_proj", "o_proj"):
        assert model.tp_plan[f"model.layers.*.self_attn.{name}.down"] == "colwise"
        assert model.tp_plan[f"model.layers.*.self_attn.{name}.up"] == "rowwise"
    assert not any(key.endswith("_proj") for key in model.tp_plan)  # a map that is dense stays whole
    assert model.all_tied_weights_keys == {}
    tied = LowriseForCausalLM(config_of(tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_the_list_on_the_page_of_serve(model: LowriseForCausalLM, tmp_path: Path) -> None:
    """Every condition of docs/commands/serve.md, "For load", on the folder itself."""
    pytest.importorskip("transformers", minversion="5", reason="4 lacks some of these conventions")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP  # of what is exported, also in what is saved again

    seen = []

    def attention(module: nn.Module, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        seen.append((module.layer_idx, module.is_causal, options.get("of_the_back_end")))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **options)

    ALL_ATTENTION_FUNCTIONS.register("of_a_back_end", attention)
    try:
        base = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="of_a_back_end").eval()
        # Back ends put linear maps of their own in the places of these, and of nothing else.
        places = [name for name, m in base.named_modules() if type(m) is nn.Linear]
        assert len(places) == 2 * 13 + 1  # two factors of thirteen maps, and the one that is dense
        for name in places:
            own = base.get_submodule(name)
            parent, _, child = name.rpartition(".")
            other = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(*own.weight.T.shape, bias=False)
            other.weight = own.weight
            setattr(base.get_submodule(parent), child, other)
        with torch.no_grad():
            hidden = base(
                inputs_embeds=base.get_input_embeddings()(TOKENS),
                position_ids=torch.arange(7).expand(2, 7),
                of_the_back_end=5,
            ).last_hidden_state
            expected = model.model(TOKENS).last_hidden_state
    finally:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop("of_a_back_end", None)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)  # float32 of order 1
    assert seen == [(0, True, 5), (1, True, 5)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_cache_changes_nothing(model: LowriseForCausalLM, attention: str) -> None:
    weights = model.state_dict()
    model = LowriseForCausalLM._from_config(config_of(), attn_implementation=attention).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        whole = model(TOKENS).logits
        first = model(TOKENS[:, :4], use_cache=True)
        name = "cache" if hasattr(first, "cache") else "past_key_values"  # before transformers 5.24
        rest = model(TOKENS[:, 4:], **{name: getattr(first, name)}).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole, rtol=0, atol=1e-5)


def test_it_is_known_to_those_who_have_lowrise(model: LowriseForCausalLM, tmp_path: Path) -> None:
    """No remote code, the same bits, and the saved folder has the modelling file for the others."""
    model.save_pretrained(tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(other) is LowriseForCausalLM
    assert other.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert (tmp_path / "modeling_lowrise.py").is_file()
    assert "AutoModelForCausalLM" in json.loads((tmp_path / "config.json").read_text())["auto_map"]
    narrow = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    sparse = narrow.model.get_submodule(NAMES[5])
    assert (sparse.values.dtype, sparse.index.dtype) == (torch.bfloat16, torch.int32)
    assert torch.isfinite(narrow(TOKENS).logits).all()


def test_checkpointing_gives_the_same_gradients(model: LowriseForCausalLM) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()(TOKENS, labels=TOKENS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain = gradients()
    assert all(g is not None and g.abs().sum() > 0 for g in plain.values())
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        assert torch.equal(gradient, plain[name]), name


def test_quantization_reaches_every_factor(model: LowriseForCausalLM) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    before = model(TOKENS).logits
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert len(linear) == 2 * 13 + 1 + 1  # two factors of 13 maps, one dense map, the head
    for name, module in linear.items():
        assert type(module.weight.data) is not torch.Tensor, f"{name} was not quantized"
    assert 0 < float((model(TOKENS).logits - before).detach().abs().max()) < 0.1


def test_lora_of_peft_attaches_by_name(model: LowriseForCausalLM) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj.down", "q_proj.up", "mlp.up_proj.up"]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    )
    wrapped = [n for n, m in adapted.named_modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert len(wrapped) == 2 * 3
    adapted(TOKENS, labels=TOKENS).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(wrapped)
    assert all(p.grad is not None for p in trained)
    adapted.generate(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=2)


def test_a_wrong_configuration_is_named() -> None:
    with pytest.raises(ValueError, match="activation must be one of none, silu, not 'gelu'"):
        FactoredLinear(4, 4, 2, activation="gelu")
    with pytest.raises(ValueError, match=r"layers\.0\.mlp is not a linear map"):
        LowriseForCausalLM(LowriseConfig(factors={"layers.0.mlp": {"rank": 2}}, **SMALL))


SMALL = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_fresh_weights_are_drawn(model: LowriseForCausalLM) -> None:
    """A model built from its configuration alone: factors as other linear maps, nothing sparse yet."""
    fresh = LowriseForCausalLM(config_of())
    assert float(fresh.model.get_submodule(NAMES[0]).down.weight.std()) == pytest.approx(0.02, rel=0.1)
    sparse = fresh.model.get_submodule(NAMES[5])
    assert not sparse.values.any()
    assert torch.equal(sparse.index, torch.arange(77, dtype=torch.int32))


def _sharded(rank: int, port: int, folder: str, tokens: torch.Tensor) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    down = model.model.get_submodule(NAMES[0]).down.weight
    with torch.no_grad():
        logits = model(tokens).logits
    if rank == 0:
        torch.save({"logits": logits, "rows": down.to_local().shape[0]}, Path(folder) / "answer.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    return number


@pytest.mark.xdist_group("ranks")
def test_two_processes_share_the_latents(model: LowriseForCausalLM, tmp_path: Path, port: int) -> None:
    pytest.importorskip("transformers", minversion="4.57", reason="earlier ones do not know tp_plan")
    model.save_pretrained(tmp_path)
    torch.multiprocessing.spawn(_sharded, (port, str(tmp_path), TOKENS), nprocs=2)
    answer = torch.load(tmp_path / "answer.pt")
    assert answer["rows"] == RANK // 2
    with torch.no_grad():
        torch.testing.assert_close(answer["logits"], model(TOKENS).logits, rtol=0, atol=1e-5)
