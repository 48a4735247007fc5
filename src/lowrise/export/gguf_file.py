"""One GGUF file of the llama family, for llama.cpp and the readers that follow it.

- Rotary pairs lie beside each other there (2i, 2i + 1) and half a head apart here (i, i + head_dim / 2), so
  the rows of q and k are put in that order within each head.
- A tied head is left out: readers take the embedding where `output.weight` is missing.
- Norms stay float32. q8_0 (blocks of 32 along a row, one float16 scale each) is for matrices whose rows are a
  multiple of 32; others are float16.
- The tokenizer is a byte-level BPE that splits as GPT-2's does, the one kind that the format's "gpt-2" means;
  special tokens are marked as such, so readers may find them within a text.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrise.data import Tokenizer
from lowrise.data.chat import ChatTemplate
from lowrise.data.tokenizer import PADDING
from lowrise.errors import UsageError
from lowrise.export.forms import check_dense, tensors
from lowrise.export.tokenizer_files import end_of_turn
from lowrise.files import naming
from lowrise.model import Llama, LlamaConfig
from lowrise.model.finite import require_range

GGUF_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GGUF_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_Q8_BLOCK = 32
_FLOAT16 = float(np.finfo(np.float16).max)


def require_gguf() -> None:
    """Say what to install where the `gguf` package is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("--to gguf needs the package gguf: pip install 'lowrise[gguf]'.")


def write_gguf(
    path: Path,
    model: Llama,
    tokenizer: Tokenizer,
    dtype: str,
    name: str,
    template: ChatTemplate | None = None,
) -> None:
    """Write the model, its tokenizer and the chat template that it was trained with; `dtype` is float32,
    float16 or q8_0. Raises `UsageError` for a model without a dense form and a tokenizer that the format has
    no name for.
    """
    import gguf

    check_dense(model)
    vocabulary = gpt2_vocabulary(tokenizer, model.config.vocab_size)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"lowrise {name}")
    _add_shape(writer, model.config)
    kinds = gguf.LlamaFileType
    file_types = {"float32": kinds.ALL_F32, "float16": kinds.MOSTLY_F16, "q8_0": kinds.MOSTLY_Q8_0}
    writer.add_file_type(file_types[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, tokenizer, *vocabulary)
    if template is not None:
        _add_template(writer, tokenizer, template)
    # Two passes over the tensors: the header needs the size of each, and none of them is kept.
    for tensor, values, kind in _stored(model, dtype):
        writer.add_tensor_info(tensor, values.shape, values.dtype, values.nbytes, raw_dtype=kind)
    with naming(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values, _ in _stored(model, dtype):
            writer.write_tensor_data(values)
        writer.close()


def _add_shape(writer: Any, config: LlamaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _stored(model: Llama, dtype: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, stored values and type of every tensor, in the format's names."""
    import gguf

    types = gguf.GGMLQuantizationType
    for name, tensor in tensors(model, {}, torch.float32):
        stem = name.removesuffix(".weight")
        values = _reordered(stem, tensor, model.config).contiguous().numpy()
        if dtype == "float32" or values.ndim == 1:
            yield _gguf_name(stem), values, types.F32
        elif dtype == "q8_0" and values.shape[-1] % _Q8_BLOCK == 0:
            require_range(name, float(np.abs(values).max()), 127 * _FLOAT16, "q8_0")  # a float16 scale
            yield _gguf_name(stem), gguf.quants.quantize(values, types.Q8_0), types.Q8_0
        else:
            require_range(name, float(np.abs(values).max()), _FLOAT16, "float16")
            yield _gguf_name(stem), values.astype(np.float16), types.F16


def _reordered(stem: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """q and k (heads * head_dim x n): row i of each half of a head next to row i of the other half."""
    heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(stem.rpartition(".")[2])
    if heads is None:
        return weight
    halves = weight.view(heads, 2, config.head_dim // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape)


def _gguf_name(stem: str) -> str:
    if stem in GGUF_OUTSIDE:
        return f"{GGUF_OUTSIDE[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_BLOCK[part]}.weight"


def gpt2_vocabulary(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int], list[str]]:
    """Entries, their types and the merges, `rows` entries in all: ids without an entry are marked unused.

    Types: 1 normal, 3 control (special), 4 user-defined (added, not special), 5 unused.
    """
    described = json.loads(tokenizer.text)
    _require_gpt2(tokenizer, described)
    model = described["model"]
    entries = {number: (token, 1) for token, number in model["vocab"].items()}
    for added in described.get("added_tokens", ()):
        # Not the id in the file: where those have a gap, the library numbers them anew.
        number = tokenizer.id_of(added["content"])
        assert number is not None, added
        entries[number] = (added["content"], 3 if added.get("special") else 4)
    listed = [entries.get(number, (f"[PAD{number}]", 5)) for number in range(rows)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return [token for token, _ in listed], [kind for _, kind in listed], merges


def _require_gpt2(tokenizer: Tokenizer, described: dict[str, Any]) -> None:
    model, splitter = described.get("model", {}), described.get("pre_tokenizer") or {}
    plain_bpe = model.get("type") == "BPE" and not any(
        model.get(key)
        for key in ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    )
    plain_split = (
        splitter.get("type") == "ByteLevel"
        and splitter.get("use_regex", True)
        and not splitter.get("add_prefix_space")
        and not described.get("normalizer")
    )
    if not (plain_bpe and plain_split):
        raise UsageError(
            "--to gguf holds byte-level BPE tokenizers that split text as GPT-2's does, and "
            f"{tokenizer.name} is another kind: take --to hf."
        )


def _add_tokenizer(
    writer: Any, tokenizer: Tokenizer, tokens: list[str], kinds: list[int], merges: list[str]
) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.separator_id)
    writer.add_eos_token_id(tokenizer.separator_id)
    padding = tokenizer.id_of(PADDING)
    if padding is not None:
        writer.add_pad_token_id(padding)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _add_template(writer: Any, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """The template, and the special token that it writes after an answer as the end of a turn: readers stop
    there as well as at the end of a document."""
    writer.add_chat_template(template.source)
    end = end_of_turn(tokenizer, template)
    if end is not None:
        writer.add_eot_token_id(end)
