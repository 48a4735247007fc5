"""What the file system, a terminal and a user's haste do to a command: one message, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from lowrise import cli
from lowrise.config import load, validate
from lowrise.data import DataConfig
from lowrise.errors import UsageError, printable
from lowrise.inference.generate import generate
from lowrise.inference.sampling import pick_rows
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import AdamW
from lowrise.signals import StopRequest


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ENOTDIR, errno.EISDIR]
)
@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_errors_of_the_file_system_are_messages(command, number, monkeypatch, capsys):
    def failing(arguments, console):
        raise OSError(number, os.strerror(number), "run/[bold]metrics\x1b.jsonl")

    monkeypatch.setitem(cli.COMMANDS, command, (failing, ""))
    assert cli.main([command]) == 1
    error = capsys.readouterr().err
    assert "run/[bold]metrics\\x1b.jsonl" in error
    assert os.strerror(number) in error


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capsys):
    def failing(arguments, console):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setitem(cli.COMMANDS, "methods", (failing, ""))
    stdout = cli.sys.stdout
    assert cli.main(["methods"]) == 141
    monkeypatch.setattr(cli.sys, "stdout", stdout)


def test_an_interrupt_is_one_message(monkeypatch, capsys):
    def failing(arguments, console):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "data", (failing, ""))
    assert cli.main(["data"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted: the same command continues."


def test_a_run_that_is_a_file_is_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    assert cli.main(["eval", str(tmp_path / "file" / "x")]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_control_characters_do_not_reach_a_terminal():
    assert printable("a\x1b[31mb\x07\x9b\tc\nd\r") == "a\\x1b[31mb\\x07\\x9b\tc\nd\\r"
    assert printable("Grüße 世界") == "Grüße 世界"


def test_a_group_after_a_scheduler_is_a_message():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = AdamW([{"params": list(net[0].parameters()), "role": "other"}])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    late = {"params": list(net[1].parameters()), "role": "other"}
    with pytest.raises(UsageError, match="before the scheduler is built"):
        optimizer.add_param_group(late)
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group(late | {"initial_lr": 1e-3})
    scheduler.base_lrs.append(1e-3)
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**64),
        ("seed", 10**30),
        ("data.split_seed", 2**130),
        ("model.hidden_size", 2**31),
        ("model.num_layers", 10**12),
        ("train.steps", 10**30),
        ("train.grad_clip", float("nan")),
        ("model.rope_theta", float("inf")),
        ("optimizer.power_iters", 2**40),
        ("schedule.warmup", float("inf")),
    ],
)
def test_numbers_that_no_machine_holds_are_refused(key, value):
    with pytest.raises(UsageError, match=key.replace(".", r"\.")):
        validate(load(None, {key: value}))


@pytest.mark.parametrize("key", ["vocab_size", "workers"])
def test_numbers_that_no_preparation_holds_are_refused(key):
    with pytest.raises(UsageError, match=rf"data\.{key} = 10\d+ cannot be"):
        DataConfig(source="builtin", **{key: 10**20})


@pytest.mark.parametrize("temperature", [1e-39, 1e-300])
def test_a_tiny_temperature_is_the_likeliest_token(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert pick_rows(logits, temperature, None, 0.95, [torch.Generator()]).item() == 1


@pytest.mark.parametrize("key", ["train.threads", "data.workers"])
def test_a_million_threads_are_a_message(key):
    """Libraries end the process over them, or stand still."""
    load(None, {key: 4096})
    with pytest.raises(UsageError, match=f"{key} = 1000000 cannot be: .*at most 4096"):
        load(None, {key: 1_000_000})


def test_a_seed_of_more_than_64_bits_is_a_message():
    model = build_model(LlamaConfig.preset("nano", vocab_size=300))
    with pytest.raises(UsageError, match="64 bits"):
        list(generate(model, [1], max_new_tokens=1, seed=2**64))


@pytest.mark.parametrize(("before", "asked"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_hangup_stops_a_run_unless_it_was_started_under_nohup(before, asked):
    earlier = signal.signal(signal.SIGHUP, before)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert bool(stop) == asked
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_a_closed_pipe_behind_a_table_is_none_either():
    """`lowrise methods | head -1`, for a table that rich writes."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "lowrise", "methods"]
    try:
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""
