#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3, without torch (Python 3.11).
# One would guess: AutoTokenizer.from_pretrained of a folder with a tokenizer.json tokenizes as that file says.
#   tokenizer_class, and the model_type of config.json, say whose methods the object has.
# What happens: some classes take vocabulary and merges from the file and put normalizer and pre-tokenizer of
#   the family they are named after in place of the file's, in silence: Qwen2Tokenizer, GPT2Tokenizer,
#   GPTNeoXTokenizer and others; without tokenizer_class so does model_type "qwen2" or "gpt2". LlamaTokenizer, and
#   "llama", look into the file and follow it. decode gives the text back, so no round trip shows it.
# Where it matters: a tokenizer of one's own with a model of a known family: served or evaluated, the model gets
#   other ids than it was trained on. Write "tokenizer_class": "PreTrainedTokenizerFast".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
text = "the rank of 1234 factors in 2024"


def trained(by_words):
    """Byte-level BPE that splits as GPT-2's does, or one whose merges go across words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text] * 3, trainer)
    return tokenizer


def loaded(tokenizer, by_words, tokenizer_class, model_type):
    folder = pathlib.Path(f"{by_words}-{tokenizer_class}-{model_type}")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return transformers.AutoTokenizer.from_pretrained(folder)


other = []
for by_words in (True, False):
    tokenizer = trained(by_words)
    right = tokenizer.encode(text).ids
    for name in ("PreTrainedTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "llama", "qwen2"):
        names = (name, None) if "Tokenizer" in name else (None, name)
        auto = loaded(tokenizer, by_words, *names)
        ids = auto(text, add_special_tokens=False)["input_ids"]
        same_text = auto.decode(ids) == text
        where = "within" if by_words else "across"
        print(f"merges {where} words, {name}: {len(ids)} ids, {len(right)} by the file; decoded alike: {same_text}")
        if ids != right and same_text:
            other.append(f"{name} {where}")
expected = ["Qwen2Tokenizer within", "qwen2 within", "GPT2Tokenizer across", "Qwen2Tokenizer across", "qwen2 across"]
if other != expected:
    sys.exit(f"CHANGED: other ids than by the file and the same text: {other}")
print("AS STATED: two classes and a model_type give other ids than tokenizer.json, and the same text")
PYTHON
