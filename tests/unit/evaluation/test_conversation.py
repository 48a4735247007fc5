"""Questions of tasks as conversations."""

from __future__ import annotations

import pytest
from small_runs import config_for, console, run_training

from lowrise.data.chat import ChatTemplate
from lowrise.evaluation.conversation import Conversation
from lowrise.evaluation.scoring import Scorer
from lowrise.runs.load import load_run

MARKED = ChatTemplate(
    "{% for m in messages %}<|endoftext|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant\n{% endif %}"
)
ASKED = [
    {"role": "system", "content": "Short answers."},
    {"role": "user", "content": "1 or 2?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3 or 4?"},
]


def test_the_plain_form_is_that_of_training_and_of_the_server() -> None:
    plain = Conversation()
    text = "System: Short answers.\nUser: 1 or 2?\nAssistant: 2\nUser: 3 or 4?\nAssistant: "
    assert plain.context(ASKED, answer_follows=True) == text
    begun = [*ASKED, {"role": "assistant", "content": "It is "}]
    assert plain.context(begun, answer_follows=False) == f"{text}It is"
    assert plain.asked(text, {"until": "."}) == (text[:-1], {"until": [".", "\nUser:"]})
    assert plain.answer(" 4") == "4"


def test_a_template_writes_the_context_whole() -> None:
    pytest.importorskip("jinja2")
    chat = Conversation(MARKED)
    text = "<|endoftext|>user\n3 or 4?\n<|endoftext|>assistant\n"
    assert chat.context(ASKED[3:], answer_follows=True) == text
    begun = [ASKED[3], {"role": "assistant", "content": "It is"}]
    assert chat.context(begun, answer_follows=False) == f"{text}It is"
    assert chat.asked(text, {"until": ["."]}) == (text, {"until": ["."]})
    ending = Conversation(ChatTemplate("{% for m in messages %}{{ m.content }}<end>\n{% endfor %}"))
    assert ending.asked(text, {"until": "."}, ["<end>"]) == (text, {"until": [".", "<end>"]})


def test_marks_of_a_template_are_marks_and_its_end_is_no_answer(text_folder, tmp_path) -> None:
    settings = {"model.max_seq_len": 64, "eval.every": 0, "train.steps": 2}
    run_training(config_for(text_folder, "adamw", **settings), tmp_path / "run")
    run = load_run(tmp_path / "run", "cpu", console())
    separator = run.tokenizer.separator_id
    context = "<|endoftext|>user\nthe rank\n<|endoftext|>assistant\n"
    ids, counted = Scorer(run, marked=True)._ids(context, "of a matrix")
    assert ids.count(separator) == 2, "one at the beginning, not two, and one before the answer's turn"
    assert ids[-counted:] == run.tokenizer.encode("of a matrix"), "the line's end belongs to the context"
    plain, counted = Scorer(run)._ids("Assistant: ", "of a matrix")
    assert plain[-counted:] == run.tokenizer.encode(" of a matrix")
