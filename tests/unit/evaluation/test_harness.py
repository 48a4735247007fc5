"""`lowrise eval --tasks` with tasks in local files, offline."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from small_runs import config_for, console, run_training

from lowrise import cli
from lowrise.evaluation.scoring import Scorer
from lowrise.runs.load import load_run

QUESTIONS = [
    {"question": f"{i} and {i + 1}: the larger is", "choices": [str(i), str(i + 1)], "label": 1 - i % 2}
    for i in range(6)
]
TEXTS = [{"text": "the rank of a matrix is bounded"}, {"text": "every step keeps both factors in balance"}]
TASKS = {
    "local_choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "local_text": """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
    "local_writing": """
task: local_writing
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "never"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def run(text_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_training(config_for(text_folder, "adamw", **{"model.max_seq_len": 64, "eval.every": 0}), folder)
    return folder


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval.tasks", reason="lm-eval (the extra eval) is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rows in (("questions", QUESTIONS), ("texts", TEXTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


def test_local_tasks_on_a_run_and_its_export(run: Path, tasks: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    names = ["--tasks", *TASKS, "--task_path", str(tasks)]
    assert cli.main(["eval", str(run), str(tmp_path / "hf"), *names, "--json", "true"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["val_bits_per_byte"] > 0
    assert "val_loss" not in second, "an exported model has no text of its own"
    assert first["tasks"] == second["tasks"]

    scorer = Scorer(load_run(run, "cpu", console()))
    right = []
    for row in QUESTIONS:
        scores = scorer.log_likelihoods([(row["question"], f" {choice}") for choice in row["choices"]])
        right.append(scores[row["label"]][0] == max(value for value, _ in scores))
    assert first["tasks"]["local_choice"]["acc"] == pytest.approx(sum(right) / len(right))
    nats = -sum(scorer.rolling([row["text"] for row in TEXTS]))
    size = sum(len(row["text"].encode()) for row in TEXTS)
    assert first["tasks"]["local_text"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert first["tasks"]["local_writing"]["exact_match"] == 0.0


def test_one_table_of_tasks(run: Path, tasks: Path, capsys) -> None:
    names = ["--tasks", "local_choice", "--task_path", str(tasks), "--limit", "2", "--shots", "1"]
    assert cli.main(["eval", str(run), *names]) == 0
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    assert "local_choice" in printed
    assert "acc" in printed


def test_nothing_but_the_tables_is_printed_where_nobody_watches(run, tasks, monkeypatch, capfd) -> None:
    """lm-eval's bars and git's "fatal: not a git repository" would stand between the lines of a log."""
    monkeypatch.chdir(tasks)
    assert cli.main(["eval", str(run), "--tasks", *TASKS, "--task_path", str(tasks)]) == 0
    shown = capfd.readouterr()
    assert "local_writing" in shown.out
    assert not re.search(r"it/s|examples/s|fatal", shown.err)


def test_questions_as_turns_of_a_conversation(run: Path, tasks: Path, tmp_path: Path, capsys) -> None:
    """The run has no template: the plain form. Its export gets one. Examples are earlier turns."""
    assert cli.main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    (tmp_path / "hf" / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    capsys.readouterr()
    names = ["--tasks", "local_choice", "local_writing", "--task_path", str(tasks), "--shots", "1", "--chat"]
    assert cli.main(["eval", str(run), str(tmp_path / "hf"), *names, "--json"]) == 0
    results = [json.loads(line)["tasks"] for line in capsys.readouterr().out.splitlines()]
    for result in results:
        assert result["local_choice"]["acc"] in [pytest.approx(right / 6) for right in range(7)]
        assert result["local_writing"]["exact_match"] == 0.0

    asked: list[str] = []
    scores = Scorer.log_likelihoods

    def noted(self: Scorer, pairs):
        asked.extend(context + continuation for context, continuation in pairs)
        return scores(self, pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "log_likelihoods", noted)
        choice = [
            "--tasks",
            "local_choice",
            "--task_path",
            str(tasks),
            "--limit",
            "1",
            "--chat",
            "--shots",
            "1",
        ]
        assert cli.main(["eval", str(run), str(tmp_path / "hf"), *choice, "--json"]) == 0
    plain, _, marked, _ = asked
    assert plain.startswith("User: ")
    assert plain.count("User: ") == plain.count("Assistant: ") == 2
    assert plain.endswith(f"User: {QUESTIONS[0]['question']}\nAssistant: 0")
    assert marked.endswith(f"[user] {QUESTIONS[0]['question']} [assistant] 0")


def test_an_unknown_task_is_named(run: Path, tasks: Path, capsys) -> None:
    assert cli.main(["eval", str(run), "--tasks", "local_chioce", "--task_path", str(tasks)]) == 2
    assert "lm-eval has no task 'local_chioce'" in capsys.readouterr().err


def test_data_that_is_not_there_is_a_sentence(run: Path, tasks: Path, capsys) -> None:
    (tasks / "texts.jsonl").unlink()
    assert cli.main(["eval", str(run), "--tasks", "local_text", "--task_path", str(tasks)]) == 1
    assert "lm-eval failed on local_text" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(run: Path, monkeypatch, capsys) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert cli.main(["eval", str(run), "--tasks", "arc_easy"]) == 1
    assert "pip install 'lowrise[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "3"], "--limit is of tasks, and none is named"),
        (["--task_path", "x"], "--task_path is of tasks"),
        (["--chat"], "--chat is of tasks"),
        (["--tasks", "a", "--limit", "0"], "--limit 0: give at least 1"),
        (["--seq_len", "100000"], "longer than the model reads"),
    ],
)
def test_requests_that_cannot_be(run: Path, words, message, capsys) -> None:
    assert cli.main(["eval", str(run), *words]) == 2
    assert message in capsys.readouterr().err
