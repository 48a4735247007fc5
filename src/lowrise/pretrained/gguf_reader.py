"""A GGUF file of the llama family, read back: the way that `lowrise.export.gguf_file` writes it, reversed.

Weights are decoded to float32 (the package `gguf` knows the quantized kinds), q and k are put back into the
order of half-split rotary positions, and a byte-level BPE tokenizer is made of the entries and merges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor

from lowrise.data import Tokenizer
from lowrise.errors import LowriseError, UsageError
from lowrise.export.gguf_file import GGUF_BLOCK, GGUF_OUTSIDE
from lowrise.model import LlamaConfig

_CONTROL, _USER, _UNUSED = 3, 4, 5


@dataclass(frozen=True)
class GGUFModel:
    """What a file holds, in our terms."""

    config: LlamaConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer


def gguf_in(place: Path) -> Path | None:
    """The GGUF file that a path names or a folder holds; None where there is none, `UsageError` for
    several."""
    if place.is_file():
        return place if place.suffix == ".gguf" else None
    files = sorted(place.glob("*.gguf")) if place.is_dir() else []
    if len(files) > 1:
        raise UsageError(f"{place} holds {len(files)} GGUF files: name one, for example {files[0]}.")
    return files[0] if files else None


def read_gguf(file: Path) -> GGUFModel:
    """Read a file. Raises `LowriseError` without the package `gguf`, `UsageError` for what is no such file,
    is of another family, or has a tokenizer of another kind.
    """
    try:
        import gguf
    except ImportError as error:
        raise LowriseError(f"{file} needs the package gguf: pip install 'lowrise[gguf]'.") from error
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{file} is not a whole GGUF file ({error}): copy it again.") from error
    family = fields.get("general.architecture")
    if family != "llama":
        raise UsageError(f"{file} is of the family {family!r}, and our model holds llama: take another form.")
    try:
        tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
        config = _config(fields, tied)
        tensors = {
            _own_name(tensor.name): torch.from_numpy(
                np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            )
            for tensor in reader.tensors
            if tensor.name != "rope_freqs.weight"
        }
    except (KeyError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{file} cannot be taken in: {error}.") from error
    return GGUFModel(
        config, {n: _reordered(n, t, config) for n, t in tensors.items()}, _tokenizer(fields, file)
    )


def _config(fields: dict[str, Any], tied: bool) -> LlamaConfig:
    def value(name: str) -> Any:
        return fields[f"llama.{name}"]

    return LlamaConfig(
        vocab_size=int(fields.get("llama.vocab_size") or len(fields["tokenizer.ggml.tokens"])),
        hidden_size=int(value("embedding_length")),
        intermediate_size=int(value("feed_forward_length")),
        num_layers=int(value("block_count")),
        num_heads=int(value("attention.head_count")),
        num_kv_heads=int(value("attention.head_count_kv")),
        max_seq_len=int(value("context_length")),
        rope_theta=float(fields.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=float(value("attention.layer_norm_rms_epsilon")),
        tie_embeddings=tied,
    )


def _own_name(name: str) -> str:
    outside = {theirs: ours for ours, theirs in GGUF_OUTSIDE.items()}
    stem = name.removesuffix(".weight")
    if stem in outside and name != stem:
        return f"{outside[stem]}.weight"
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    inside = {theirs: ours for ours, theirs in GGUF_BLOCK.items()}
    if block != "blk" or part not in inside or name == stem:
        raise ValueError(f"it has {name}, for which our model has no place")
    return f"model.layers.{layer}.{inside[part]}.weight"


def _reordered(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """q and k (heads * head_dim x n): neighbouring rows of a head back into its two halves."""
    heads = {"q_proj": config.num_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    pairs = weight.view(heads, config.head_dim // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)


def _tokenizer(fields: dict[str, Any], file: Path) -> Tokenizer:
    """The byte-level BPE of a file's entries and merges."""
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or split not in ("gpt-2", None):
        raise UsageError(
            f"{file} has a tokenizer of the kind {kind!r}, {split!r}, and only byte-level BPE that splits as "
            "GPT-2 does is read from GGUF: take the Hugging Face form."
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = {n for n, kind in enumerate(kinds) if kind == _CONTROL}
    added = {n for n, kind in enumerate(kinds) if kind in (_CONTROL, _USER)}
    unused = {n for n, kind in enumerate(kinds) if kind == _UNUSED}
    described = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": n,
                "content": tokens[n],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": n in special,
            }
            for n in sorted(added)
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "vocab": {token: n for n, token in enumerate(tokens) if n not in unused},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }
    separator = tokens[int(fields["tokenizer.ggml.eos_token_id"])]
    text = tokenizers.Tokenizer.from_str(json.dumps(described)).to_str()
    return Tokenizer(text, separator_token=separator, name=str(file))
