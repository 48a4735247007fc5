"""The folder that Hugging Face's `from_pretrained` reads, written without transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from lowrise.data import Tokenizer
from lowrise.data.tokenizer import PADDING
from lowrise.errors import UsageError
from lowrise.export.forms import Form, check_dense, described, factors_of, tensors
from lowrise.export.shards import write_shards
from lowrise.export.tokenizer_files import write_tokenizer
from lowrise.files import strict_json, write_whole
from lowrise.model import Llama, LlamaConfig

MODELLING = Path(__file__).with_name("modeling_lowrise.py")
# The modelling file has these too, but cannot be read without transformers, which writing does not need.
AUTO_MAP = {
    "AutoConfig": f"{MODELLING.stem}.LowriseConfig",
    "AutoModel": f"{MODELLING.stem}.LowriseModel",
    "AutoModelForCausalLM": f"{MODELLING.stem}.LowriseForCausalLM",
}


def write_folder(
    folder: Path, model: Llama, tokenizer: Tokenizer, form: Form, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Write config, weights and tokenizer, and for the factored form the modelling file."""
    config = llama_json(model.config, dtype) | special_ids(tokenizer)
    factors = {}
    if form == "factored":
        factors = factors_of(model)
        if not factors and model.config.mlp_activation == "silu":
            raise UsageError(
                "No map of this model is stored as two factors (dense weights, or LoRA, whose W0 is dense): "
                "export it with --form dense."
            )
        config |= {
            "architectures": ["LowriseForCausalLM"],
            "model_type": "lowrise",
            "auto_map": AUTO_MAP,
            "factors": described(factors),
        }
        shutil.copyfile(MODELLING, folder / MODELLING.name)
    else:
        check_dense(model)
    write_shards(folder, tensors(model, factors, dtype), shard_bytes)
    write_whole(folder / "config.json", strict_json(config, indent=2) + "\n")
    generation = {"do_sample": False} | special_ids(tokenizer)
    write_whole(folder / "generation_config.json", strict_json(generation, indent=2) + "\n")
    write_tokenizer(folder, tokenizer, model.config.max_seq_len)


def llama_json(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` of a plain Llama. `rope_theta` and `torch_dtype` stand twice, as readers before and after
    transformers 5 look for them in different places.
    """
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu" if config.mlp_activation == "silu" else "linear",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": name,
        "torch_dtype": name,
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """A document begins and ends with the separator; padding where the tokenizer has a token for it."""
    ids: dict[str, Any] = {"bos_token_id": tokenizer.separator_id, "eos_token_id": tokenizer.separator_id}
    padding = tokenizer.id_of(PADDING)
    return ids if padding is None else ids | {"pad_token_id": padding}
