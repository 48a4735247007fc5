"""lowrise generate, eval of several runs and serve, as a user types them."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from served import ENVIRONMENT, LOWRISE, start_server
from small_runs import overrides

from lowrise.cli import main
from lowrise.config import load
from lowrise.inference.generate import generate
from lowrise.inference.terminal import read_prompts
from lowrise.runs.load import load_run


@pytest.fixture(scope="module")
def runs(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trained runs on one text."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for method in ("spectron", "adamw"):
        recipe = folder / f"{method}.toml"
        recipe.write_text(load(None, overrides(text_folder, method)).to_toml())
        made.append(folder / method)
        assert main(["train", str(recipe), "--run", str(made[-1])]) == 0
    return made


def test_a_text_is_the_one_of_the_plain_form(runs, capsys) -> None:
    from lowrise.console import Console

    options = {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 4}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["generate", str(runs[0]), "--prompt", "the rank", "--tokens", "12", *words]) == 0
    shown = capsys.readouterr()
    run = load_run(runs[0], "cpu", Console(quiet=True))
    separator, known = run.tokenizer.separator_id, run.tokenizer.encode("the rank")
    new = generate(run.model, [separator, *known], max_new_tokens=12, stop_token=separator, **options)
    assert shown.out == run.tokenizer.decode([*known, *new]) + "\n"
    assert re.search(r"\d+ tokens, the first after [\d.]+ s, then [\d.]+ tokens per second\.", shown.err)


def test_explain_shows_both_times_and_the_choice(runs, capsys) -> None:
    assert main(["generate", str(runs[0]), "--tokens", "2", "--explain"]) == 0
    lines = capsys.readouterr().err.splitlines()
    rows = [line.split() for line in lines if line.rstrip().endswith(("stored", "merged"))]
    assert len(rows) >= 4
    assert all(float(row[-2]) > 0 and float(row[-3]) > 0 for row in rows if row[0] != "maps")


def test_a_file_of_prompts_gives_json_lines_of_the_single_texts(runs, tmp_path, capsys) -> None:
    prompts = ["the rank of a matrix", "a", "is small and\nits norm"]
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        json.dumps(prompts[0]) + "\n\n" + "".join(json.dumps({"prompt": p}) + "\n" for p in prompts[1:])
    )
    options = [str(runs[1]), "--tokens", "9", "--stop", "norm", "rank"]
    assert main(["generate", *options, "--prompt-file", str(file), "--batch", "2"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["prompt"] for r in records] == prompts
    for record in records:
        assert main(["generate", *options, "--prompt", record["prompt"]]) == 0
        assert capsys.readouterr().out == record["prompt"] + record["text"] + "\n"
        assert record["finish"] in ("stop", "length")
        assert record["tokens"] <= 9


def test_interactive_continues_every_line(runs) -> None:
    done = subprocess.run(
        [*LOWRISE, "generate", str(runs[0]), "--interactive", "--tokens", "3", "--temperature", "0"],
        input="the rank\n" + "long " * 500 + "\na matrix\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("the rank")
    assert lines[-1].startswith("a matrix")
    assert "longer than model.max_seq_len" in done.stderr.replace("\n", " ")


INTERRUPTED_CONTINUATION = """
import os, signal, sys
from lowrise import __main__, cli
from lowrise.inference import terminal

name, pieces, texts = sys.argv.pop(), terminal._pieces, []

def interrupted(*asked):
    texts.append(0)
    for number, piece in enumerate(pieces(*asked)):
        if len(texts) == 1 and number == 2:
            os.kill(os.getpid(), getattr(signal, name))
        yield piece

terminal._pieces = interrupted
sys.exit(__main__.main())
"""


@pytest.mark.parametrize(("name", "code", "texts"), [("SIGINT", 0, 2), ("SIGTERM", 128 + signal.SIGTERM, 1)])
def test_ctrl_c_ends_a_continuation_and_not_the_command(runs, name, code, texts) -> None:
    """Any other signal that stops ends the command, as everywhere."""
    options = ["--interactive", "--tokens", "9", "--temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_CONTINUATION, "generate", str(runs[0]), *options, name],
        input="the rank\na matrix\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith("the rank")
    assert ("a matrix" in done.stdout) == (texts == 2)
    assert done.stderr.count(" tokens, the first after") == texts
    assert re.match(r"[34] tokens", done.stderr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--interactive"], "--prompt and --interactive exclude each other"),
        (["--prompt_file", "nowhere.txt"], "There is no file nowhere.txt"),
        (["--batch", "0"], "--batch 0"),
        (["--temperature", "-1"], "temperature must be 0"),
        (["--repetition_penalty", "0"], "repetition_penalty must be positive"),
        (["--stop", ""], "stop string is empty"),
        (["--tokens", "100000"], "longer than model.max_seq_len"),
    ],
)
def test_a_wrong_request_is_a_message_and_shows_no_text(runs, words, message, capsys) -> None:
    assert main(["generate", str(runs[0]), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_a_prompt_keeps_what_other_programs_take_for_the_end_of_a_line(tmp_path) -> None:
    prompts = ["a form\x0cfeed", "a line\u2028separator", "next\x85line"]
    text = tmp_path / "prompts.txt"
    text.write_bytes("\r\n".join(prompts).encode())
    assert read_prompts(text) == prompts
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts))
    assert read_prompts(lines) == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'"fine"\n{"text": 1}\n',
            r'line 2: should be a string, or an object with a string "prompt"',
        ),
        ("a.jsonl", b"{\n", "line 1 is not JSON"),
        ("a.txt", b"\n\n", "has no prompt"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_read(runs, tmp_path, name, content, message, capsys) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["generate", str(runs[0]), "--prompt_file", str(tmp_path / name)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_several_runs_in_one_table_and_as_json(runs, capsys) -> None:
    singles = []
    for run in runs:
        assert main(["eval", str(run), "--json"]) == 0
        singles.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert main(["eval", *map(str, runs), "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]] == singles
    assert main(["eval", *map(str, runs)]) == 0
    table = capsys.readouterr().out
    for single in singles:
        assert f"{single['val_bits_per_byte']:.5f}" in table
        assert f"{single['val_loss']:.6f}" in table
    assert "different texts" not in table


def test_no_run_is_evaluated_where_one_is_none(runs, tmp_path, capsys) -> None:
    assert main(["eval", str(runs[0]), str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_runs_of_different_texts_are_said_to_be(capsys) -> None:
    from lowrise.console import Console
    from lowrise.evaluation.measure import show

    one = {"run": "[red]a", "step": 1, "val_loss": 1.0, "val_perplexity": 2.7, "val_bits_per_byte": 1.4,
           "val_tokens": 10, "val_bytes": 30}  # fmt: skip
    show([one, {**one, "val_bytes": 31}], Console())
    shown = capsys.readouterr().out
    assert "different texts" in shown
    assert "[red]a" in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_server_answers_and_a_signal_stops_it(runs, number, code) -> None:
    process, url = start_server(str(runs[0]), "--grace", "5")
    try:
        body = {"prompt": "the", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.read())["model"] == "spectron"
    finally:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors


def test_a_stop_signal_lets_a_stream_end(runs) -> None:
    process, url = start_server(str(runs[0]), "--grace", "30")
    try:
        body = {"prompt": "the", "max_tokens": 200, "seed": 1, "stream": True}
        request = urllib.request.Request(
            f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            process.send_signal(signal.SIGTERM)
            assert answer.read().endswith(b"data: [DONE]\n\n")
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "ports are 1 to 65535"),
        (["--concurrency", "0"], "--concurrency 0: should be at least 1"),
        (["--queue", "-1"], "--queue -1: cannot be negative"),
        (["--host", "no.such.host.invalid"], "give an address of this machine"),
    ],
)
def test_a_server_that_cannot_start_says_why(runs, words, message, capsys) -> None:
    pytest.importorskip("uvicorn")
    assert main(["serve", str(runs[0]), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_and_a_missing_package(runs, capsys, monkeypatch) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(runs[0]), "--port", port]) == 2
    assert f"Port {port} of 127.0.0.1 is taken" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(runs[0])]) == 1
    assert "pip install 'lowrise[serve]'" in capsys.readouterr().err
