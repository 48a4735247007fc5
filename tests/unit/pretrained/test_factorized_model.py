"""A factorized Hugging Face model comes back as it was, and never with random dense weights in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowrise
from lowrise.errors import LowriseError, UsageError
from lowrise.layers import LAYERS

transformers = pytest.importorskip("transformers")
TOKENS = torch.arange(14).view(2, 7)


def llama(tied: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def moved(model: nn.Module) -> nn.Module:
    """Every weight away from its first value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_every_layer_comes_back_to_the_bit(layer: str, make: Any, tmp_path: Path) -> None:
    model = moved(lowrise.factorize(make(), layer=layer, rank={"0": 4, "1": 7}))
    lowrise.save_pretrained(model, tmp_path)
    other = lowrise.from_pretrained(tmp_path)
    assert type(other) is type(model)
    own, read = model.state_dict(), other.state_dict()
    assert own.keys() == read.keys()
    assert all(torch.equal(own[name], read[name]) for name in own)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)
    assert [repr(m) for m in model.modules()] == [repr(m) for m in other.modules()]


def test_transformers_does_not_load_it_with_random_weights(tmp_path: Path) -> None:
    """What `model.save_pretrained` would have led to; the error is transformers' own."""
    lowrise.save_pretrained(lowrise.factorize(llama(), rank=4), tmp_path)
    for reader in (transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM, transformers.AutoModel):
        with pytest.raises(OSError, match="no file named"):
            reader.from_pretrained(tmp_path)


def test_tied_heads_stay_tied_and_dtypes_stay(tmp_path: Path) -> None:
    model = moved(lowrise.factorize(llama(tied=True), rank=4)).to(torch.bfloat16)
    lowrise.save_pretrained(model, tmp_path)
    other: Any = lowrise.from_pretrained(tmp_path)
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert other.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)


def test_a_guide_that_has_gone_stays_away(tmp_path: Path) -> None:
    model = lowrise.factorize(llama(), layer="selfguided", rank=4)
    for module in model.modules():
        if isinstance(module, LAYERS["selfguided"]):
            module.before_update(2, 2)
    lowrise.save_pretrained(model, tmp_path)
    other = lowrise.from_pretrained(tmp_path)
    assert not any("guide" in name for name, _ in other.named_parameters())


def test_what_cannot_be_saved_or_loaded_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Linear is no Hugging Face model"):
        lowrise.save_pretrained(nn.Linear(2, 2), tmp_path)
    with pytest.raises(UsageError, match="has no low-rank layers"):
        lowrise.save_pretrained(llama(), tmp_path)
    llama().save_pretrained(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"not written by lowrise\.save_pretrained"):
        lowrise.from_pretrained(tmp_path / "plain")
    folder = tmp_path / "ours"
    lowrise.save_pretrained(lowrise.factorize(llama(), rank=4), folder)
    values = json.loads((folder / "config.json").read_text())
    values["lowrise"]["layers"]["model.layers.0.mlp.up_proj"]["rank"] = 5
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(LowriseError, match=r"model\.layers\.0\.mlp\.up_proj\.A differs"):
        lowrise.from_pretrained(folder)
    (folder / "lowrise.safetensors").write_bytes(b"half")
    with pytest.raises(LowriseError, match="not a whole safetensors file"):
        lowrise.from_pretrained(folder)


def test_what_another_version_wrote_names_both_versions(tmp_path: Path) -> None:
    lowrise.save_pretrained(lowrise.factorize(llama(), rank=4), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for described in values["lowrise"]["layers"].values():
        described["options"]["twist"] = 2
    values["lowrise"]["version"] = "7.5.0"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        UsageError, match=r"no option 'twist'. lowrise 7\.5\.0 wrote .*config\.json, and this is"
    ):
        lowrise.from_pretrained(tmp_path)
