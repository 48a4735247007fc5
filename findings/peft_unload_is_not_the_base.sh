#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0, transformers 5.23.0 (Python 3.11).
# One would guess: PeftModel.unload() and disable_adapter() give the base model back as it was before the
#   adapter was attached: LoRA leaves the base weights alone.
# What happens: with init_lora_weights="pissa" or "olora" the base weight is replaced, when the adapter is
#   attached, by what is left of it without the adapter's start. unload() returns a model with these
#   remainders, and disable_adapter() computes with them: other outputs than the base model's, in silence.
#   With the Gaussian and the "orthogonal" start nothing of the kind happens.
# Where it matters: comparing with the base ("adapter off"), continuing from it, factorizing it. Keep a copy,
#   or merge.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import peft
import torch

print("peft", peft.__version__, "torch", torch.__version__)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.linear(x)


changes = {}
for start in ("gaussian", "orthogonal", "pissa", "olora"):
    torch.manual_seed(0)
    model, x = Model(), torch.randn(4, 32)
    weight, y = model.linear.weight.detach().clone(), model(x)
    config = peft.LoraConfig(r=4, target_modules=["linear"], init_lora_weights=start)
    adapted = peft.get_peft_model(model, config)
    attached = (adapted(x) - y).abs().max().item()
    with adapted.disable_adapter():
        disabled = (adapted(x) - y).abs().max().item()
    unloaded = (adapted.unload().linear.weight - weight).abs().max().item()
    changes[start] = attached, disabled, unloaded
    outputs = f"output changed by {attached:.1e} with the adapter, by {disabled:.3f} with it disabled"
    print(f"{start}: {outputs}; weights changed by {unloaded:.3f} after unload()")

kept = all(max(changes[start]) < 1e-5 for start in ("gaussian", "orthogonal"))
replaced = all(a < 1e-5 and d > 0.1 and u > 0.1 for a, d, u in (changes["pissa"], changes["olora"]))
if not (kept and replaced):
    sys.exit(f"CHANGED: kept with gaussian, orthogonal: {kept}; replaced with pissa, olora: {replaced}")
print("AS STATED: after pissa and olora neither unload() nor disable_adapter() is the base model")
PYTHON
