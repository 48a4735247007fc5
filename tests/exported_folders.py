"""Reads exported folders as a stranger would: in a process of its own, in which lowrise cannot be imported.

python -I readers.py REQUEST.json ANSWER.pt, the request being {"folders": [...], "tokens": [[...]], "texts":
[...], "new_tokens": n}; the answer has, for each folder, logits, greedy continuation, ids and texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.modules["lowrise"] = None  # type: ignore[assignment]  # any import of it fails

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def read(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    gguf = {"gguf_file": "model.gguf"} if (folder / "model.gguf").is_file() else {}
    trust = {"trust_remote_code": True} if (folder / "modeling_lowrise.py").is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **gguf, **trust).eval()
    # transformers 4 begins texts with a token, and takes spaces away, where it reads a GGUF file
    plain, cleaning = {}, {}
    if gguf:
        plain, cleaning = {"add_bos_token": False}, {"clean_up_tokenization_spaces": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **gguf, **plain, **trust)
    tokens = torch.tensor(request["tokens"])
    with torch.no_grad():
        logits = model(tokens).logits
    ids = [tokenizer(text)["input_ids"] for text in request["texts"]]
    new = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=request["new_tokens"],
        do_sample=False,
        eos_token_id=None,
    )
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "dtype": str(model.dtype),
        "logits": logits,
        "generated": new[:, tokens.shape[1] :],
        "ids": ids,
        "decoded": [tokenizer.decode(row, **cleaning) for row in ids],
        "saved_again": saved_again(model, folder, trust) if trust else None,
    }


def saved_again(model: Any, folder: Path, trust: dict[str, bool]) -> bool:
    """Whether save_pretrained and from_pretrained give the same bits, from a folder that stands alone."""
    again = folder.with_name(f"{folder.name}-again")
    model.save_pretrained(again)
    other = AutoModelForCausalLM.from_pretrained(again, **trust)
    own, read_back = model.state_dict(), other.state_dict()
    same = all(torch.equal(own[name], read_back[name]) for name in own)
    return same and own.keys() == read_back.keys() and (again / "modeling_lowrise.py").is_file()


def main(request_file: str, answer_file: str) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    request = json.loads(Path(request_file).read_text())
    torch.save({name: read(Path(name), request) for name in request["folders"]}, answer_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
