#!/usr/bin/env bash
# tokenizers 0.23.3 (Python 3.11).
# One would guess: add_tokens(["the"]), where the vocabulary has the entry "the" already, adds nothing and
#   changes nothing; and what is set on a tokenizer is saved with it.
# What happens: it returns 1, the vocabulary keeps its size and ids, and every text is now cut at these
#   letters before anything else: "other" becomes "o", "the", "r". Decoding still gives the text back, so a
#   round trip finds nothing. And `encode_special_tokens = True` (special tokens in a text are ordinary
#   letters) is not in tokenizer.json: the loaded tokenizer takes them for special ones again.
# Where it matters: adding a list of domain words to a pretrained tokenizer: sequences get longer, losses per
#   token are no longer comparable. Prepared data and a served model cut texts differently where only one of
#   them sets the switch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

print("tokenizers", tokenizers.__version__)
END = "<|endoftext|>"
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
options = {"special_tokens": [END], "initial_alphabet": alphabet, "show_progress": False}
trainer = trainers.BpeTrainer(vocab_size=300, **options)
tokenizer.train_from_iterator(["the cat sat on the other mat", "the dog ate another hat"] * 10, trainer)

known, size = tokenizer.token_to_id("the"), tokenizer.get_vocab_size()
before = tokenizer.encode("another other").tokens
added = tokenizer.add_tokens(["the"])
after = tokenizer.encode("another other")
unchanged = tokenizer.token_to_id("the") == known is not None and tokenizer.get_vocab_size() == size
round_trip = tokenizer.decode(after.ids) == "another other"
print(f"before: {before}; add_tokens returned {added}, ids and size unchanged: {unchanged}")
print(f"after: {after.tokens}; decoded to the same text: {round_trip}")

tokenizer.encode_special_tokens = True
here = tokenizer.encode("a" + END).tokens
loaded = Tokenizer.from_str(tokenizer.to_str())
there = loaded.encode("a" + END).tokens
print(f"encode_special_tokens: {here}; after saving and loading ({loaded.encode_special_tokens}): {there}")
cut = "the" not in before and after.tokens.count("the") == 2 and added == 1 and unchanged and round_trip
if not cut or END in here or END not in there or loaded.encode_special_tokens:
    sys.exit("CHANGED: see the lines above")
print("AS STATED")
PYTHON
