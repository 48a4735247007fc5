"""Lines of samples -> spans -> words -> packed rows: what counts, what is cut, in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_runs import TEMPLATE, write_samples

from lowrise.data import Corpus, DataConfig, prepare
from lowrise.data.chat import ChatTemplate
from lowrise.data.packing import SampleStream, packed
from lowrise.data.samples import SampleFormat, spans_of
from lowrise.errors import UsageError

PAIR = {"prompt": "Two and two?", "completion": " Four."}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
}


def corpus_of(tmp_path: Path, rows: list[dict[str, Any]], **more: Any) -> Corpus:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"vocab_size": 300, "cache": str(tmp_path / "cache"), "valid_fraction": 0.2} | more
    return prepare(DataConfig(source=str(path), format="samples", **values))


def texts_of(corpus: Corpus, batch: np.ndarray) -> list[tuple[str, str]]:
    """(what is read, what is predicted) of every sample of a batch, as text."""
    found = []
    for inputs, targets, numbers in batch:
        for number in np.unique(numbers):
            mine = numbers == number
            wanted = targets[mine]
            if (wanted >= 0).any():
                decode = corpus.tokenizer.decode
                found.append((decode(inputs[mine]), decode(wanted[wanted >= 0])))
    return found


# --- spans ------------------------------------------------------------------------------------------------


def test_a_completion_counts_and_its_prompt_does_not() -> None:
    spans = spans_of(PAIR, SampleFormat(), "here")
    assert [(s.text, s.counts, s.text_bytes) for s in spans] == [
        ("Two and two?", False, 0),
        (" Four.", True, 6),
    ]


def test_a_conversation_in_the_plain_form() -> None:
    spans = spans_of(CHAT, SampleFormat(), "here")
    assert [(s.text, s.counts) for s in spans] == [
        ("System: Be short.\nUser: Two and two?\nAssistant:", False),
        (" Four.\nUser:", True),  # what ends the answer, here and on the server
        (" Sure?\nAssistant:", False),
        (" Yes.", True),
    ]
    assert [s.text_bytes for s in spans] == [0, 5, 0, 4]


def test_a_conversation_by_a_template() -> None:
    spans = spans_of(CHAT, SampleFormat(template=ChatTemplate(TEMPLATE)), "here")
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    first = turn.format("system", "Be short.") + turn.format("user", "Two and two?")
    assert [(s.text, s.counts, s.marked) for s in spans] == [
        (f"{first}<|im_start|>assistant\n", False, True),
        ("Four.<|im_end|>\n", True, True),
        (turn.format("user", "Sure?") + "<|im_start|>assistant\n", False, True),
        ("Yes.<|im_end|>\n", True, True),
    ]


def test_what_follows_the_last_answer_is_left_out() -> None:
    more = {"messages": [*CHAT["messages"], {"role": "user", "content": "Thanks."}]}
    assert spans_of(more, SampleFormat(), "here") == spans_of(CHAT, SampleFormat(), "here")


def test_other_names_of_the_keys(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f" {i}", "id": i} for i in range(40)]
    corpus = corpus_of(tmp_path, rows, keys={"prompt": "question", "completion": "answer"})
    assert ("<|endoftext|>3? 3", " 3<|endoftext|>") in texts_of(
        corpus, np.concatenate([*corpus.train.windows(64, 4), *corpus.valid.windows(64, 4)])
    )


BAD_LINES = [
    ('{"prompt": "a"}', "line 2: no key 'completion' and no 'messages'.*data.keys"),
    ('{"text": "a"}', r"line 2: no key 'prompt' and no 'messages' \(keys found: 'text'\).*format = \"text\""),
    ('{"prompt": "a", "completion": 3}', "line 2: 'completion' holds number, not a string"),
    ('{"prompt": "a", "completion": ""}', "line 2: 'completion' is empty.*remove the line"),
    ('{"prompt": "a", "completion": "\\ud800"}', "line 2: 'completion' has half a surrogate pair"),
    ('{"prompt": "a", "prompt": "b", "completion": "c"}', "line 2: .*a key twice"),
    ('{"prompt": "a", "completion": "b"', "line 2: not a JSON object.*repair or remove the line"),
    ('["a", "b"]', "line 2: a JSON array"),
    ('{"messages": []}', "line 2: 'messages' is no list of messages"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: no message of the role 'assistant'"),
    (
        '{"messages": [{"role": "x", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        "line 2: .*role 'x'",
    ),
    ('{"messages": [{"content": "a"}]}', r"line 2: messages\[0\] is no object with a string 'role'"),
    (
        '{"messages": [{"role": "assistant", "content": null}]}',
        r"line 2: messages\[0\]: 'content' holds null",
    ),
    (
        '{"messages": [{"role": "assistant", "content": ""}]}',
        r"line 2: messages\[0\]: the assistant says nothing",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_faulty_line_is_named_with_file_line_and_remedy(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{json.dumps(PAIR)}\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=f"(?s)samples.jsonl, {message}"):
        prepare(DataConfig(source=str(path), format="samples", cache=str(tmp_path / "cache")))


def test_what_a_template_refuses_has_a_place() -> None:
    refusing = ChatTemplate("{{ raise_exception('no system messages') }}")
    with pytest.raises(UsageError, match=r"a.jsonl, line 3: The chat template refuses.*no system"):
        spans_of(CHAT, SampleFormat(template=refusing), "a.jsonl, line 3")


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """Templates of reasoning models drop what was thought in earlier turns."""
    last_only = ChatTemplate(
        "{% for m in messages %}{{ m.content if loop.last or m.role != 'assistant' else '-' }};{% endfor %}"
    )
    with pytest.raises(UsageError, match=r"line 3: .*otherwise once it follows.*a line for each answer"):
        spans_of(CHAT, SampleFormat(template=last_only), "a.jsonl, line 3")


def test_a_template_that_asks_otherwise_than_it_writes_is_shown_where() -> None:
    """A line for each answer would not help: it is the first answer already."""
    turns = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    asking = ChatTemplate(turns + "{% if add_generation_prompt %}<assistant>\n{{ '' }}{% endif %}")
    with pytest.raises(UsageError, match=r"line 3: .*asks for messages\[2\] with .*<assistant>\\n', and "):
        spans_of(CHAT, SampleFormat(template=asking), "a.jsonl, line 3")


def test_a_mark_quoted_in_a_message_is_refused() -> None:
    how = SampleFormat(template=ChatTemplate(TEMPLATE), marks=("<|im_end|>",))
    quoting = {"messages": [{"role": "assistant", "content": "a<|im_end|>b"}]}
    with pytest.raises(UsageError, match=r"line 1: messages\[0\] quotes '<|im_end|>'"):
        spans_of(quoting, how, "a.jsonl, line 1")
    assert spans_of(quoting, SampleFormat(), "here"), "text is text in the plain form"


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for source in (str(tmp_path / "a.txt"), "builtin"):
        with pytest.raises(UsageError, match=r'is no JSON Lines, which data.format = "samples" reads'):
            prepare(DataConfig(source=source, format="samples", cache=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keys": {"prompt": "q"}}, 'data.keys is of samples.*set data.format = "samples"'),
        ({"overlong": "drop"}, "data.overlong is of samples"),
        ({"format": "sample"}, 'it may be "text" or "samples"'),
        ({"format": "samples", "keys": {"promt": "q"}}, "promt"),
        ({"format": "samples", "keys": {"prompt": ""}}, "data.keys.prompt is ''"),
        (
            {"format": "samples", "keys": {"prompt": "q", "completion": "q"}},
            "prompt and completion are both 'q'",
        ),
        ({"format": "samples", "keys": {"completion": "prompt"}}, "prompt and completion are both 'prompt'"),
        ({"format": "samples", "overlong": "wrap"}, 'it may be "cut" or "drop"'),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataConfig(**values)


# --- streams ----------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = write_samples(tmp_path / "samples.jsonl")
    config = DataConfig(
        source=str(path), format="samples", vocab_size=300, cache=str(tmp_path / "cache"), valid_fraction=0.2
    )
    return prepare(config)


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_sample_comes_once_an_epoch_whole_and_by_itself(corpus: Corpus, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "samples.jsonl")
    expected = sorted(
        (f"<|endoftext|>{r['prompt']}{r['completion']}", f"{r['completion']}<|endoftext|>") for r in rows
    )
    passes = corpus.train._windows_of(corpus.train._rings()[0], 64)
    for epoch in range(2):
        numbers = range(epoch * passes, (epoch + 1) * passes)
        of_epoch = [corpus.train.batch(k, sequences=1, seq_len=64, seed=3) for k in numbers]
        found = texts_of(corpus, np.concatenate(of_epoch))
        held_out = texts_of(corpus, np.concatenate([*corpus.valid.windows(64, 5)]))
        assert sorted(found + held_out) == expected
    assert passes < corpus.train.documents / 2, "several samples share a row"


def test_samples_with_one_prompt_are_held_out_together(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i // 3}?", "completion": f" {i}"} for i in range(300)]
    corpus = corpus_of(tmp_path, rows)
    prompts = [
        {text.split("?")[0] for text, _ in texts_of(corpus, np.concatenate([*stream.windows(64, 4)]))}
        for stream in (corpus.train, corpus.valid)
    ]
    assert all(prompts)
    assert not prompts[0] & prompts[1]


@pytest.mark.parametrize("prompts", [2, 3, 12])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.98])
def test_few_prompts_are_held_out_whole(prompts: int, fraction: float, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"{i % prompts}?", "completion": f" {i}"} for i in range(60)]
    rows += [
        {
            "messages": [
                {"role": "user", "content": f"{i % prompts}"},
                {"role": "assistant", "content": f"{i}"},
            ]
        }
        for i in range(30)
    ]
    corpus = corpus_of(tmp_path, rows, valid_fraction=fraction)
    asked = [
        {
            text.split("\n")[0].split("?")[0]
            for text, _ in texts_of(corpus, np.concatenate([*s.windows(64, 4)]))
        }
        for s in (corpus.train, corpus.valid)
    ]
    assert all(asked)
    assert not asked[0] & asked[1]
    assert corpus.train.documents + corpus.valid.documents == len(rows)


def test_few_prompts_leave_every_source_of_a_mixture_one(tmp_path: Path) -> None:
    sources = []
    for name, prompts in {"a": ["w"], "b": ["x", "y"], "c": ["z"] * 2}.items():
        sources.append(str(tmp_path / f"{name}.jsonl"))
        rows = [{"prompt": prompt, "completion": f" {name}"} for prompt in prompts]
        Path(sources[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed = DataConfig(
        source=sources, weights=(1, 1, 1), format="samples", vocab_size=300, cache=str(tmp_path / "cache")
    )
    corpus = prepare(mixed)
    assert len(corpus.train.parts) == 3
    assert all(part.tokens for part in corpus.train.parts)
    held = [text for text, _ in texts_of(corpus, np.concatenate([*corpus.valid.windows(64, 4)]))]
    assert len(held) == 1
    assert "y" in held[0] or "x" in held[0]


def test_samples_with_one_prompt_name_the_remedy(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "completion": f" {i}"} for i in range(40)]
    with pytest.raises(
        UsageError, match=r"all 40 samples .*Name held-out files with data\.valid, or give samples"
    ):
        corpus_of(tmp_path, rows)


def test_a_sample_alone_is_called_a_sample_where_it_leaves_a_split_empty(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"all 1 samples of .* fell into .*or give samples of more prompts .*, or change"
    ):
        corpus_of(tmp_path, [PAIR])


def test_a_batch_is_a_function_of_its_number_and_a_rank_reads_its_rows(corpus: Corpus) -> None:
    asked = {"sequences": 4, "seq_len": 48, "seed": 5}
    whole = corpus.train.batch(7, **asked)
    assert whole.shape == (4, 3, 48)
    assert np.array_equal(whole[2:], corpus.train.batch(7, rows=slice(2, 4), **asked))
    alone = [corpus.train.batch(k, sequences=1, seq_len=48, seed=5) for k in range(28, 32)]
    assert np.array_equal(whole, np.concatenate(alone)), "another batch size, the same sequences"
    assert not np.array_equal(whole, corpus.train.batch(7, sequences=4, seq_len=48, seed=6))
    assert corpus.train.predicted(7, **asked) == (whole[:, 1] >= 0).sum() < 4 * 48


def test_overlong_samples_are_cut_or_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "ab?", "completion": " yes"},
        {"prompt": "ab?", "completion": " x" * 40},  # longer than a row
        {"prompt": "q " * 40, "completion": " no"},  # nothing of the completion within a row
    ]
    (tmp_path / "valid.jsonl").write_text(json.dumps(rows[0]) + "\n")
    corpus = corpus_of(tmp_path, rows, valid=str(tmp_path / "valid.jsonl"))
    counts = corpus.train.counts(16)
    assert (counts.samples, counts.cut, counts.left_out) == (3, 1, 1)
    texts = texts_of(corpus, np.concatenate([*corpus.train.windows(16, 1)]))
    assert len(texts) == 2
    assert all(not predicted.endswith("<|endoftext|>") for text, predicted in texts if " x x" in text)
    dropping = corpus_of(tmp_path, rows, valid=str(tmp_path / "valid.jsonl"), overlong="drop")
    assert dropping.fingerprint == corpus.fingerprint, "nothing is prepared anew"
    counts = dropping.train.counts(16)
    assert (counts.samples, counts.cut, counts.left_out) == (3, 0, 2)
    with pytest.raises(UsageError, match=r"No sample of the train split.*raise train.seq_len"):
        corpus.train.batch(0, sequences=1, seq_len=1, seed=0)


def test_bytes_and_targets_are_those_of_the_completions(corpus: Corpus, tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "samples.jsonl")
    streams = (corpus.train, corpus.valid)
    assert sum(s.text_bytes for s in streams) == sum(len(r["completion"]) for r in rows)
    ids = corpus.tokenizer.encode_batch([r["completion"] for r in rows])
    assert sum(s.targets for s in streams) == sum(len(i) + 1 for i in ids)
    assert corpus.train.read(0, 40).max() < corpus.tokenizer.vocab_size


def test_mixtures_of_samples(tmp_path: Path) -> None:
    sources = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": f"{name} {i}", "completion": f" {i}"}) + "\n" for i in range(40))
        )
        sources.append(str(path))
    config = DataConfig(
        source=sources, weights=(3, 1), format="samples", vocab_size=300, cache=str(tmp_path / "cache")
    )
    batch = prepare(config).train.batch(0, sequences=8, seq_len=8, seed=0)
    first = [bytes(row[0][1:2]) for row in batch]
    assert sorted(first.count(value) for value in set(first)) == [2, 6]


def test_a_template_counts_the_end_mark_and_needs_no_second_end(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f" {i}"}]}
        for i in range(40)
    ]
    corpus = corpus_of(tmp_path, rows, chat_template=str(tmp_path / "template.jinja"))
    texts = texts_of(corpus, np.concatenate([*corpus.train.windows(32, 4), *corpus.valid.windows(32, 4)]))
    assert ("<|endoftext|>7? 7", " 7<|endoftext|>") in texts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_holds_every_sample_once_within_a_row(lengths: list[int]) -> None:
    sizes = np.array(lengths)
    rows = packed(sizes, 20)
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    totals = [int(sizes[rows.samples(i)].sum()) for i in range(len(rows))]
    assert max(totals) <= 20
    # Two rows that fit into one would have been one.
    assert len(rows) == 1 or sorted(totals)[0] + sorted(totals)[1] > 20


def test_text_is_prepared_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(60)))
    made = [
        prepare(DataConfig(source=str(path), vocab_size=300, cache=str(tmp_path / "cache"), format=form))
        for form in (None, "text")
    ]
    assert made[0].fingerprint == made[1].fingerprint
    assert not isinstance(made[0].train, SampleStream)
    assert made[0].sample_counts(8) == {}
