#!/usr/bin/env bash
# transformers 5.24.0, peft 0.21.2, galore-torch 1.0, torch 2.13.0 (Python 3.11).
# One would guess: "all-linear" names the same matrices as optim_target_modules of the Trainer and as
#   target_modules of peft, whose word it is.
# What happens: peft leaves the output head out. The Trainer takes it in: GaLore then projects lm_head to the
#   rank, where its authors' script names attention and MLP only. Untied, the head is the largest matrix of a
#   small model.
# Where it matters: a GaLore baseline beside LoRA, "both on all-linear": they do not touch the same weights.
#   Name the modules: ["attn", "mlp"], as the authors do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 galore-torch==1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "peft", peft.__version__, "torch", torch.__version__)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)

adapted = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(target_modules="all-linear", r=4))
by_peft = {n.split(".lora_A")[0].split(".")[-1] for n, _ in adapted.named_parameters() if "lora_A" in n}

model = LlamaForCausalLM(config)
arguments = TrainingArguments(
    "out", optim="galore_adamw", optim_target_modules="all-linear", use_cpu=True, report_to=[]
)
groups = Trainer(model, arguments, train_dataset=[0]).create_optimizer().param_groups
name_of = {id(weight): name.split(".")[-2] for name, weight in model.named_parameters()}
by_trainer = {name_of[id(weight)] for group in groups if "rank" in group for weight in group["params"]}

print("peft:", sorted(by_peft))
print("Trainer:", sorted(by_trainer))
if "lm_head" in by_peft or by_trainer != by_peft | {"lm_head"}:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: the Trainer's all-linear has the output head, peft's has not")
PYTHON
