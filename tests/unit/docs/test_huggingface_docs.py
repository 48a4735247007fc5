"""What docs/huggingface.md and examples/finetune_hf.py show runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from lowrise.optim import OPTIMIZERS

pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")

ROOT = Path(__file__).parents[3]


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict = {}
    trainer, split, saving = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "huggingface.md").read_text(), flags=re.DOTALL
    )
    exec(trainer, names)
    assert names["trainer"].state.global_step == 4
    assert [group["weight_decay"] for group in names["optimizer"].param_groups] == [0.1, 0.1]
    exec(split, names)
    optimizer = OPTIMIZERS["adamw"](names["groups"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(names["model"].parameters())
    )
    exec(saving, names)
    tokens = torch.arange(6)[None]
    assert torch.equal(names["model"].eval()(tokens).logits, names["again"](tokens).logits)


@pytest.mark.parametrize("name", ["adamw", "fira"])
def test_the_example_runs(name: str, text_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft", reason="the example puts LoRA of peft beside the optimizer")
    pytest.importorskip("pydoc_data.topics", reason="this Python was installed without its manual")
    example = runpy.run_path(str(ROOT / "examples" / "finetune_hf.py"))
    small = "--steps 2 --pretrain-steps 2 --batch 2 --seq-len 32 --vocab 300 --width 16 --layers 1 --rank 2"
    source = ["--pretrain-text", str(text_folder / "text.jsonl"), "--cache", str(text_folder / "cache")]
    full, lora = example["main"]([*small.split(), *source, "--lrs", "1e-3,1e-2", "--optimizer", name])
    assert full.trained > lora.trained > 0
    assert full.state_bytes > lora.state_bytes > 0
    printed = capsys.readouterr().out
    assert f"{name}, all weights" in printed.splitlines()[-2]
    assert printed.splitlines()[-1].startswith("LoRA (peft), AdamW")
    assert f"{full.state_bytes:,} bytes" in printed


def test_every_optimizer_of_dense_weights_is_offered() -> None:
    offered = runpy.run_path(str(ROOT / "examples" / "finetune_hf.py"))["DENSE_SIDE"]
    assert {"adamw", "muon", "galore", "fira", "apollo"} <= set(offered)
