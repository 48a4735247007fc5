#!/usr/bin/env bash
# tokenizers 0.23.3 (Python 3.11).
# One would guess: a text given to a trainer as a special token is set apart while training as it is while
#   encoding, so a corpus in which it separates documents teaches nothing about it.
# What happens: training takes it for ordinary text. Byte-level BPE learns merges for it ("endoftext", "<|"),
#   although encoding never needs them: entries of the vocabulary that hardly any text reaches.
# Where it matters: a tokenizer trained on documents joined by "<|endoftext|>": embedding and head carry rows
#   that get hardly any gradient. Give the trainer documents without their separators.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

print("tokenizers", tokenizers.__version__)
END = "<|endoftext|>"
documents = ["the cat sat on the other mat", "the dog ate another hat"] * 10


def trained(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": [END], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, **options))
    return tokenizer


joined, apart = trained([END.join([*documents, ""])]), trained(documents)
learned = sorted(set(joined.get_vocab()) - set(apart.get_vocab()))
tokens = joined.encode(f"the cat{END}the dog").tokens
print("entries that only the joined text teaches:", learned)
print("encoding sets the special token apart:", tokens)
if "endoftext" not in learned or END not in tokens or not set(learned).isdisjoint(tokens):
    sys.exit("CHANGED: see the two lines above")
print(f"AS STATED: {len(learned)} entries of the vocabulary come from the separator's text")
PYTHON
