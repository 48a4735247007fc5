#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (Python 3.11).
# One would guess: generate() with one prompt without padding and no attention_mask attends to the whole
#   prompt, as the model itself does when it is called without a mask.
# What happens: generate() makes a mask of its own and hides every token of the prompt that equals
#   pad_token_id, also in the middle of it. The continuation is another one than that of a plain greedy loop
#   over the same model; with a mask of ones both agree. Without pad_token_id in the prompt they agree as
#   well, so most prompts show nothing.
# Where it matters: models whose pad token is a token that texts contain (token 0, the end-of-text separator
#   between documents). Samples after an export differ from samples before it, which looks like a wrong
#   export.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
heads = dict(num_attention_heads=2, num_key_value_heads=2)
config = transformers.LlamaConfig(**sizes, **heads, pad_token_id=0, bos_token_id=2, eos_token_id=1)
model = transformers.LlamaForCausalLM(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.mul_(8)  # so that the greedy choice depends on the prompt


@torch.no_grad()
def by_hand(tokens, count=8):
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[0, -count:].tolist()


def generated(tokens, **mask):
    length = {"max_new_tokens": 8, "min_new_tokens": 8}
    return model.generate(tokens, do_sample=False, **length, **mask)[0, -8:].tolist()


seen = {}
for prompt in ([5, 0, 9, 0, 7], [5, 3, 9, 4, 7]):
    tokens = torch.tensor([prompt])
    hand, plain = by_hand(tokens), generated(tokens)
    masked = generated(tokens, attention_mask=torch.ones_like(tokens))
    seen[0 in prompt] = hand == plain, hand == masked
    print(f"prompt {prompt}, pad_token_id 0:\n  by hand {hand}\n  generate {plain}\n  with ones {masked}")
if seen != {True: (False, True), False: (True, True)}:
    sys.exit(f"CHANGED: has the pad token -> (same without a mask, same with a mask of ones): {seen}")
print("AS STATED: the tokens that equal pad_token_id were hidden")
PYTHON
