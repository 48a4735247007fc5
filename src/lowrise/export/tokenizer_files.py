"""A run's tokenizer for Hugging Face's `AutoTokenizer`, with the same ids and the same text back.

A `tokenizer.json` may ask for more than our `Tokenizer` does: begin and end tokens around every text,
cutting, padding. These requests are left out of the copy. `tokenizer_config.json` names the class that reads
the file as it is (others rebuild the pre-tokenizer of the family they are named after), and says that special
tokens within a text are text (`split_special_tokens`), that spaces stay as they are, and which token ends a
document.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrise.data.chat import TEMPLATE, ChatTemplate
from lowrise.data.tokenizer import PADDING, Tokenizer
from lowrise.files import strict_json, write_whole

_ADDS_OR_CUTS = ("post_processor", "truncation", "padding")


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    write_whole(folder / "tokenizer.json", plain_json(tokenizer))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.separator_token,
        "eos_token": tokenizer.separator_token,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "add_bos_token": False,
        "add_eos_token": False,
        # transformers 4 adds token_type_ids without it, which no Llama takes: generate(**ids) would fail
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tokenizer.id_of(PADDING) is not None:
        settings["pad_token"] = PADDING
    splits = json.loads(tokenizer.text).get("pre_tokenizer") or {}
    if splits.get("add_prefix_space"):  # transformers 4 takes its own default over the file's
        settings["add_prefix_space"] = True
    write_whole(folder / "tokenizer_config.json", strict_json(settings, indent=2) + "\n")


def end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The id of the special token that a template writes after an answer; None where it writes none. It is
    the one that the tokenizer uses: where ids in the file have a gap, the library numbers them anew.
    """
    mark = template.end_of_answer(tokenizer.special_tokens)
    return None if mark is None else tokenizer.id_of(mark)


def add_template(folder: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Add the chat template that a run was trained with. Its marks are special tokens, which transformers
    must then find within a text: it tokenizes what a template writes like any other text. The one that ends
    an answer ends what `generate` writes, too.
    """
    write_whole(folder / TEMPLATE, template.source)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"split_special_tokens": False}
    write_whole(file, strict_json(dict(template.specials) | settings, indent=2) + "\n")
    file = folder / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8"))
    end = end_of_turn(tokenizer, template)
    if end not in (None, generation["eos_token_id"]):
        generation["eos_token_id"] = [generation["eos_token_id"], end]
        write_whole(file, strict_json(generation, indent=2) + "\n")


def plain_json(tokenizer: Tokenizer) -> str:
    """The tokenizer.json without what adds tokens to a text or cuts it."""
    described = json.loads(tokenizer.text)
    if not any(described.get(key) for key in _ADDS_OR_CUTS):
        return tokenizer.text
    return json.dumps(described | dict.fromkeys(_ADDS_OR_CUTS), ensure_ascii=False, indent=2)
