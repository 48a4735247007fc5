"""Chat templates are rendered as transformers renders them, for which they are written."""

from __future__ import annotations

from typing import Any

import pytest

from lowrise.data.chat import ChatTemplate
from lowrise.data.samples import SampleFormat, spans_of
from lowrise.errors import LowriseError

MESSAGES = [
    {"role": "user", "content": "Zwei <und> zwei, é?"},
    {"role": "assistant", "content": "Vier."},
]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "a<b>é", "parameters": {}}}]
SPECIALS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}

ASSISTANT_MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|a|>"
    "{%- generation %}{% set said = m.content %} {{ said }}{{ eos_token }}{% endgeneration %}\n"
    "{% else %}<|u|> {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)
TEMPLATES = {
    "answers marked": ASSISTANT_MARKED,
    "options of tojson": "{% for t in tools or [] %}{{ t | tojson(ensure_ascii=False) }}"
    "{{ t | tojson(indent=2, sort_keys=true) }}{{ t | tojson(separators=(',', ':')) }}{% endfor %}",
    "tools": "{{ tools is defined }} {{ tools is none }} {{ documents is defined }} {{ documents is none }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "white space": "{% if true %}\n    {{ bos_token }}\n    {% endif %}\n{{ messages[0].content }}\n",
}


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("answer_follows", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_that_transformers_gives(
    name: str, answer_follows: bool, tools: list[dict[str, Any]] | None
) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>")), **SPECIALS
    )
    messages = MESSAGES[:1] if answer_follows else MESSAGES
    expected = tokenizer.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tools=tools,
        add_generation_prompt=answer_follows,
        tokenize=False,
    )
    found = ChatTemplate(TEMPLATES[name], SPECIALS).rendered(
        messages, answer_follows=answer_follows, tools=tools
    )
    assert found == expected


def test_what_counts_is_the_same_with_marks_around_the_answers_and_without() -> None:
    plain = ASSISTANT_MARKED.replace("{%- generation %}", "{%- if true %}").replace("endgeneration", "endif")
    spans = [
        spans_of({"messages": MESSAGES}, SampleFormat(template=ChatTemplate(source, SPECIALS)), "here")
        for source in (ASSISTANT_MARKED, plain)
    ]
    assert spans[0] == spans[1]
    assert [s.text for s in spans[0] if s.counts] == [" Vier.<|endoftext|>"]


def test_a_template_that_writes_todays_date_is_refused_by_name() -> None:
    """Samples would be others tomorrow. Those that can do without the date are not asked for it."""
    with pytest.raises(LowriseError, match=r"date of today \(strftime_now\).*write a date into the template"):
        ChatTemplate("{{ strftime_now('%Y') }}").rendered(MESSAGES, answer_follows=False)
    able = ChatTemplate("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}")
    assert able.rendered(MESSAGES, answer_follows=False) == "2024"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "marks", "end"),
    [
        (CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        (CHATML, ("<|endoftext|>",), "<|im_end|>"),  # of a tokenizer that spells it out
        (ASSISTANT_MARKED, ("<|endoftext|>",), "<|endoftext|>"),
        (CHATML, ("<|im", "<|im_end|>"), "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ("<|endoftext|>",), None),
        ("{{ raise_exception('no answers') }}", ("<|endoftext|>",), None),
        ("{{ messages[0].content }}", ("<|endoftext|>",), None),
    ],
)
def test_what_ends_an_answer(template: str, marks: tuple[str, ...], end: str | None) -> None:
    assert ChatTemplate(template, SPECIALS).end_of_answer(marks) == end
