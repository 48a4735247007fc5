"""From a Hugging Face `config.json` to a `LlamaConfig`, or a sentence that says what our model has not.

Families: `llama`, `mistral` without a sliding window, `qwen2` and `qwen3` where nothing but the name differs,
and our own factored form, `lowrise`. What is refused would be computed wrongly, not just slowly:

| in the file | why it is refused |
|---|---|
| biases (Qwen2's q, k, v) | our maps have none; zero ones are dropped |
| `q_norm`, `k_norm` (Qwen3) | our attention has no norms within |
| a sliding window shorter than the longest sequence | our attention is over all tokens before |
| rope scaling (Llama 3.1), partial rotary factors | our rotary positions have one base and no scaling |
| `head_dim` that is not hidden_size / heads | ours is |
| quantized weights | they would have to be decoded first |
| `rope_theta` given twice, unlike | readers before and after transformers 5 take one each |

A key that a file leaves out has the value that transformers gives its family (`_LEFT_OUT`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrise.errors import UsageError
from lowrise.model import LlamaConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "lowrise")
# What the configuration classes of transformers take where Llama's has another value.
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "use_sliding_window": False},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "use_sliding_window": False,
              "head_dim": 128},
}  # fmt: skip


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; `UsageError` for anything else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse_adapter(file.parent)
        raise UsageError(
            f"There is no {file.name} in {file.parent}: give a Hugging Face folder, as save_pretrained "
            "writes it."
        ) from None
    except NotADirectoryError:
        raise UsageError(
            f"{file.parent} is a file: give a Hugging Face folder, as save_pretrained writes it."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error}): give a Hugging Face folder.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} holds no JSON object: give a Hugging Face folder.")
    return values


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder in which peft left an adapter, with its model (which transformers loads with the
    adapter in it) or without."""
    if not (folder / "adapter_config.json").is_file():
        return
    if (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} holds an adapter of peft beside the model, and would be another function without it: "
            "merge it (merge_and_unload) and save the whole model elsewhere, or remove adapter_config.json "
            "to take the model alone."
        )
    raise UsageError(
        f"{folder} holds an adapter of peft without its model: merge it (merge_and_unload), save the "
        "whole model and its tokenizer, and give that folder."
    )


def llama_of(values: dict[str, Any], source: Path) -> LlamaConfig:
    """The model's shape. Raises `UsageError` naming the setting that our Llama cannot follow."""
    try:
        values = _LEFT_OUT.get(str(values.get("model_type")), {}) | values
        _refuse_others(values, source)
        return _shape(values)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{source}/config.json has no {error.args[0]}: it is not a Llama's.") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UsageError(f"{source}/config.json is not a Llama's ({error}).") from None


def _shape(values: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=values.get("num_key_value_heads"),
        max_seq_len=values.get("max_position_embeddings", 2048),
        rope_theta=float(_rope(values).get("rope_theta") or 10_000.0),
        norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(values.get("tie_word_embeddings", False)),
        init_std=float(values.get("initializer_range") or 0.02),
        mlp_activation="silu" if values.get("hidden_act", "silu") in ("silu", "swish") else "none",
    )


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary positions, where transformers keeps them before and after its version 5. Where
    a file has both, `rope_scaling` is the one that either reads."""
    settings = values.get("rope_scaling") or values.get("rope_parameters") or {}
    theta = settings.get("rope_theta") or values.get("rope_theta")
    return {**settings, "rope_theta": theta}


def _refuse_others(values: dict[str, Any], source: Path) -> None:
    def refuse(what: str) -> None:
        raise UsageError(f"{source} cannot be taken in: {what}.")

    family = values.get("model_type")
    if family not in FAMILIES:
        refuse(f"its model_type is {family!r}, and our model holds {', '.join(FAMILIES)}")
    rope = _rope(values)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in (None, "default"):
        refuse(f"its rotary positions are scaled (rope_type {kind!r}), and ours are not")
    thetas = {rope["rope_theta"], values.get("rope_theta") or rope["rope_theta"]}
    if len(thetas) > 1:
        refuse(
            f"rope_theta stands in its config.json twice, as {' and as '.join(map(str, sorted(thetas)))}; "
            "remove the one that it was not trained with"
        )
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        refuse("it turns a part of each head only (partial_rotary_factor), and ours turn whole heads")
    window, longest = values.get("sliding_window"), values.get("max_position_embeddings", 2048)
    if window is not None and values.get("use_sliding_window", True) and window < longest:
        refuse(
            f"its attention sees the last {window} tokens only (sliding_window), and ours sees all "
            f"{longest}; set sliding_window to null if it was trained on no longer texts than that"
        )
    heads, width, head = (values.get(k) for k in ("num_attention_heads", "hidden_size", "head_dim"))
    if head is not None and heads and width and head * heads != width:
        refuse(
            f"its head_dim {head} is not hidden_size / num_attention_heads = {width / heads:g}, and ours is"
        )
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish") and not (family == "lowrise" and activation == "linear"):
        refuse(f"its MLP has the activation {activation!r}, and ours has silu")
    if values.get("quantization_config"):
        refuse("its weights are quantized; save it with plain weights first")
