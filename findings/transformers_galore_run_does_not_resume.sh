#!/usr/bin/env bash
# transformers 5.24.0, galore-torch 1.0, torch 2.13.0 (Python 3.11).
# One would guess: a Trainer run with optim="galore_adamw" continues from its own checkpoint, as one with
#   optim="adamw_torch" does.
# What happens: it saves, and cannot continue. galore-torch keeps objects of its own class in the state of a
#   projected weight; the Trainer writes them into optimizer.pt, and reads that file as tensors only, which
#   ends with an UnpicklingError. "galore_adafactor" is the same. Read with weights_only=False, the state is
#   whole, and an optimizer that takes it goes on with the same numbers.
# Where it matters: every long GaLore baseline that is trained through the Trainer; the first kill ends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 accelerate==1.15.0 galore-torch==1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pickle
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
generator = torch.Generator().manual_seed(0)
texts = [torch.randint(0, 64, (16,), generator=generator) for _ in range(64)]
data = [{"input_ids": text, "labels": text} for text in texts]


def train(optim, resume=None):
    """Ten updates, saved after four, from the start or from a checkpoint: all weights."""
    torch.manual_seed(0)
    galore = dict(optim_target_modules=["q_proj", "up_proj"], optim_args="rank=4, update_proj_gap=3")
    arguments = TrainingArguments(
        optim,
        optim=optim,
        **(galore if "galore" in optim else {}),
        use_cpu=True,
        report_to=[],
        max_steps=10,
        save_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        disable_tqdm=True,
    )
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


seen = {}
for optim in ("adamw_torch", "galore_adamw", "galore_adafactor"):
    whole = train(optim)
    try:
        again = train(optim, f"{optim}/checkpoint-4")
        seen[optim] = "the same weights" if torch.equal(whole, again) else "other weights"
    except pickle.UnpicklingError as error:
        seen[optim] = type(error).__name__
    print(f"{optim}, continued after 4 of 10 updates: {seen[optim]}")
kept = torch.load("galore_adamw/checkpoint-4/optimizer.pt", weights_only=False)["state"].values()
classes = sorted({type(x).__name__ for state in kept for x in state.values() if not torch.is_tensor(x)})
print("what is no tensor in the state of galore_adamw:", classes)
refused = "UnpicklingError"
expected = dict(adamw_torch="the same weights", galore_adamw=refused, galore_adafactor=refused)
if seen != expected or "GaLoreProjector" not in classes:
    sys.exit("CHANGED: see the lines above")
print("AS STATED: a run with GaLore saves what it cannot read")
PYTHON
