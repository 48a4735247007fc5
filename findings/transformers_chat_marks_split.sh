#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3, without torch (Python 3.11).
# One would guess: split_special_tokens: true in tokenizer_config.json guards the text of users, so that a
#   mark typed by one stays text; apply_chat_template(tokenize=True) goes on writing the template's own marks
#   as their ids.
# What happens: it tokenizes the finished text as one, so that the template's own marks are split into
#   characters, without a word. decode gives the same text as before, and the eos token is not among the ids.
# Where it matters: a model tuned on, or served, conversations with such a tokenizer never sees a mark nor
#   learns to stop, and a round trip through decode does not show it; 7 ids become 27. Neither setting keeps a
#   user's mark text and the template's own a mark. Look for the ids of the marks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6 jinja2==3.1.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import io
import json
import logging
import sys
import warnings

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
start, end = "<|im_start|>", "<|im_end|>"
letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bytewise = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytewise.decoder = decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bytewise, additional_special_tokens=[start, end], eos_token=end
)
tokenizer.chat_template = (
    "{% for message in messages %}" + start + "{{ message['content'] }}" + end + "{% endfor %}"
)
tokenizer.save_pretrained("saved")
config = json.load(open("saved/tokenizer_config.json"))


def tokens(split, content):
    """Tokens of a conversation of one message, its text decoded again, and whether the eos id is there."""
    with open("saved/tokenizer_config.json", "w") as file:
        json.dump({**config, "split_special_tokens": split}, file)
    loaded = transformers.AutoTokenizer.from_pretrained("saved")
    chat = [{"role": "user", "content": content}]
    ids = loaded.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    return loaded.convert_ids_to_tokens(ids), loaded.decode(ids), loaded.eos_token_id in ids


said = io.StringIO()
seen = {}
transformers.logging.set_verbosity_warning()
transformers.logging.add_handler(logging.StreamHandler(said))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for split in (False, True):
        for content in ("hello", "a" + end + "b"):
            seen[split, content] = tokens(split, content)
for (split, content), (pieces, text, stops) in seen.items():
    shown = " ".join(pieces)
    print(f"split_special_tokens {split}, message {content!r}: {len(pieces)} ids, eos among them {stops}")
    print(f"  {shown}")
    print(f"  decoded: {text}")
print("warnings:", [str(warning.message) for warning in caught], "logged:", repr(said.getvalue()))


def right(content, split):
    """What was seen when this was written."""
    text = start + content + end
    if split:
        return list(text), text, False
    inside = [end if letter == "|" else letter for letter in content.replace(end, "|")]
    return [start, *inside, end], text, True


if any(seen[split, content] != right(content, split) for split, content in seen) or caught or said.getvalue():
    sys.exit("CHANGED: see the lines above")
print("AS STATED: with split_special_tokens the template's own marks are split, and nothing is said")
PYTHON
