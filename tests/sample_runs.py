"""Samples for fine-tuning, and runs on them small enough for a test."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from small_runs import config_for, trainer_for

from lowrise.config import RunConfig
from lowrise.distributed import World

# A template as published ones are: marks around each turn, and a prompt for the answer.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_samples(path: Path, samples: int = 120) -> Path:
    """JSON Lines of prompts and completions of different lengths, the same on every call."""
    draw = random.Random(2)
    lines = []
    for _ in range(samples):
        numbers = [draw.randint(0, 99) for _ in range(draw.randint(1, 4))]
        asked = " + ".join(map(str, numbers))
        lines.append(json.dumps({"prompt": f"What is {asked}?", "completion": f" It is {sum(numbers)}."}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sample_settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Settings that put samples in the place of text."""
    path = folder / "samples.jsonl"
    if not path.exists():
        write_samples(path)
    return {
        "data.source": [str(path)],
        "data.format": "samples",
        "data.valid_fraction": 0.2,
        "train.seq_len": 48,
        "log.telemetry_every": 0,
        "sample.tokens": 0,
        **more,
    }


def sample_config(folder: Path, method: str = "adamw", **more: Any) -> RunConfig:
    return config_for(folder, method, **sample_settings(folder, **more))


def finetune(world: World, folder: Path, run: Path, steps: int) -> list[float]:
    """The losses of a run's updates at one of several ranks."""
    config = sample_config(folder, **{"train.micro_batch_size": 1, "train.steps": steps, "eval.every": 0})
    trainer = trainer_for(config, run, world)
    summary = trainer.run()
    return [summary["val_loss"], summary["val_bits_per_byte"]]
