#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, safetensors 0.8.0 (Python 3.11).
# One would guess: tie_word_embeddings=True in config.json makes the output head and the embedding one
#   parameter; a lm_head.weight in the file is then ignored, or is an error where it differs.
# What happens: where the file holds both weights and they differ, both are loaded and nothing is tied. The
#   config goes on saying True, also in what save_pretrained writes, and the model trains, and counts, a head
#   of its own. Where they are equal, or the head is missing, they are tied.
# Where it matters: parameter counts, memory and FLOPs computed from the config; an export that factorizes or
#   edits one of two tied weights and writes both. Ask `lm_head.weight is embed_tokens.weight`, not the
#   config.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
heads = dict(num_attention_heads=2, num_key_value_heads=2)
config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
transformers.LlamaForCausalLM(config).save_pretrained("model")
weights = load_file("model/model.safetensors")
embedding = weights["model.embed_tokens.weight"]


def loaded(head):
    """With this head in the file (None: without one): tied, what the config says, parameters, head saved."""
    folder = {k: v for k, v in weights.items() if k != "lm_head.weight"}
    if head is not None:
        folder["lm_head.weight"] = head
    save_file(folder, "model/model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained("model")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained("again")
    says = json.load(open("again/config.json"))["tie_word_embeddings"]
    written = "lm_head.weight" in load_file("again/model.safetensors")
    return tied, says, sum(p.numel() for p in model.parameters()), written


files = {"without a head": None, "an equal head": embedding.clone(), "another head": embedding + 1}
seen = {name: loaded(head) for name, head in files.items()}
for name, (tied, says, count, written) in seen.items():
    print(f"{name}: tied {tied}, saved config says {says}, {count} parameters, head written {written}")
count = seen["without a head"][2]
tied = (True, True, count, False)
other = (False, True, count + embedding.numel(), True)
if seen != {"without a head": tied, "an equal head": tied, "another head": other}:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: with another head in the file nothing is tied and the config says that it is")
PYTHON
