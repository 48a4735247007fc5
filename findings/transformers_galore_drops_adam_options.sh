#!/usr/bin/env bash
# transformers 5.24.0, galore-torch 1.0, torch 2.13.0 (Python 3.11).
# One would guess: weight_decay, adam_beta1, adam_beta2 and adam_epsilon of TrainingArguments reach the
#   optimizer of optim="galore_adamw" as they reach that of optim="adamw_torch".
# What happens: they are dropped without a word, for all weights, those that are not projected too. The
#   optimizer has the defaults of galore-torch: no decay, betas 0.9 and 0.999, epsilon 1e-6 (the Trainer's
#   own default is 1e-8). The learning rate arrives. The same holds for "galore_adafactor" and the decay.
# Where it matters: a comparison of GaLore with AdamW in one script compares a decay of 0.1 with none. Look at
#   trainer.optimizer.param_groups.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 galore-torch==1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "torch", torch.__version__)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)


def groups(optim):
    """(rate, decay, betas, epsilon) of every group of the optimizer that the Trainer builds."""
    arguments = TrainingArguments(
        optim,
        optim=optim,
        optim_target_modules="all-linear" if "galore" in optim else None,
        use_cpu=True,
        report_to=[],
        learning_rate=3e-4,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-7,
    )
    made = Trainer(LlamaForCausalLM(config), arguments, train_dataset=[0]).create_optimizer()
    return {tuple(g.get(k) for k in ("lr", "weight_decay", "betas", "eps")) for g in made.param_groups}


seen = {optim: groups(optim) for optim in ("adamw_torch", "galore_adamw", "galore_adafactor")}
for optim, found in seen.items():
    print(f"{optim}: (lr, weight_decay, betas, eps) {sorted(found, key=str)}")
asked = (3e-4, 0.1, (0.8, 0.95), 1e-7)
if (
    asked not in seen["adamw_torch"]
    or seen["galore_adamw"] != {(3e-4, 0.0, (0.9, 0.999), 1e-6)}
    or {decay for _, decay, _, _ in seen["galore_adafactor"]} != {0.0}
):
    sys.exit("CHANGED: see the lines above")
print("AS STATED: GaLore gets the learning rate and nothing else of what was asked")
PYTHON
