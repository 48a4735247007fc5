#!/usr/bin/env bash
# transformers 5.23.0, sentencepiece 0.2.3, tokenizers 0.23.3, without torch (Python 3.11).
# One would guess: AutoTokenizer.from_pretrained of a folder with a tokenizer.model, which says itself whether it
#   is BPE or unigram and whether a text gets a leading space, gives sentencepiece's ids.
# What happens: the class decides. LlamaTokenizer reads a unigram model as BPE: words fall apart into letters.
#   T5Tokenizer is right for it. Without tokenizer_class, model_type "llama", the first word lacks its leading
#   space in both kinds. No error, and decode gives the text back.
# Where it matters: models pretrained on sentencepiece's ids and exported as Llama: plain English, every text, has
#   other ids. Compare a few texts with sentencepiece itself, or export a tokenizer.json.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import random
import shutil
import sys

import sentencepiece
import transformers

print("transformers", transformers.__version__, "sentencepiece", sentencepiece.__version__)
words = "the quick brown fox jumps over a lazy dog low rank factor matrix gradient model token train".split()
draw = random.Random(0)
pathlib.Path("corpus.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(2000)))
text = "low rank factor"
seen = {}
for kind, size in (("bpe", 350), ("unigram", 300)):
    sentencepiece.SentencePieceTrainer.train(
        input="corpus.txt", model_prefix=kind, vocab_size=size, model_type=kind, byte_fallback=True, minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=f"{kind}.model")
    print(f"{kind}, sentencepiece: {model.encode(text, out_type=str)}")
    for name in ("llama", "LlamaTokenizer") if kind == "bpe" else ("llama", "LlamaTokenizer", "T5Tokenizer"):
        folder = pathlib.Path(f"{kind}-{name}")
        folder.mkdir()
        shutil.copy(f"{kind}.model", folder / "tokenizer.model")
        config = {"model_type": name} if name == "llama" else {"tokenizer_class": name}
        file = "config.json" if name == "llama" else "tokenizer_config.json"
        (folder / file).write_text(json.dumps(config))
        auto = transformers.AutoTokenizer.from_pretrained(folder)
        ids = auto(text, add_special_tokens=False)["input_ids"]
        seen[kind, name] = ids == model.encode(text)
        back = auto.decode(ids) == text
        print(f"{kind}, {name}: {auto.tokenize(text)}; sentencepiece's ids: {seen[kind, name]}; decode right: {back}")
        if not back:
            sys.exit("CHANGED: decode does not give the text back")
right = [key for key, same in seen.items() if same]
if right != [("bpe", "LlamaTokenizer"), ("unigram", "T5Tokenizer")]:
    sys.exit(f"CHANGED: sentencepiece's ids are given by {right}")
print("AS STATED: one class for each kind gives its ids, the others give other ids in silence")
PYTHON
