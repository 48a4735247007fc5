"""The job file of docs/slurm.md, with `srun` and `scontrol` played by scripts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from small_runs import config_for, final_tensors, run_training

ROOT = Path(__file__).resolve().parents[3]
SRUN = """#!/bin/bash
# As srun: starts the tasks (one here) and hands signals to them.
export SLURM_PROCID=0 SLURM_LOCALID=0
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$REQUEUED"; fi
"""
STEPS = {"train.steps": 120, "checkpoint.every": 0, "eval.every": 0}
LOWRISE = """#!/bin/bash
exec {python} -m lowrise "$@"
"""


def job_file() -> str:
    text = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]


def test_a_warned_job_saves_is_queued_again_and_continues(text_folder, tmp_path):
    config = config_for(
        text_folder, "spectron", **{"train.steps": 150, "checkpoint.every": 0, "eval.every": 0}
    )
    run_training(config, tmp_path / "whole")
    (tmp_path / "recipe.toml").write_text(config.to_toml())
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("lowrise", LOWRISE)):
        (tools / name).write_text(text.format(python=sys.executable) if name == "lowrise" else text)
        (tools / name).chmod(0o755)
    script = job_file().replace("recipes/spectron-130m.toml", str(tmp_path / "recipe.toml"))
    script = script.replace("$PWD/runs/spectron-130m", str(tmp_path / "run"))
    (tmp_path / "job.sh").write_text(script)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
    }
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 10):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    again = subprocess.run(["bash", str(tmp_path / "job.sh")], env=environment, timeout=180)
    assert again.returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n", "it is not queued a third time"
    assert final_tensors(tmp_path / "whole", 120) == final_tensors(tmp_path / "run", 120)
