"""JSON Lines of samples for fine-tuning -> spans of text, of which some are to be predicted.

    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}

The completion and what the assistant says count in the loss; prompts, other roles and the marks around them
do not. Each span is tokenized by itself, as a prompt is when the model is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrise.data.chat import PLAIN_ROLES, ChatTemplate, find_template, read_template
from lowrise.data.config import SAMPLE_KEYS, DataConfig
from lowrise.data.readers import Chunk, Span, json_rows, kind_of_json, refuse_half_pairs
from lowrise.data.stored import LIMITS, Limits
from lowrise.errors import LowriseError, UsageError


@dataclass(frozen=True)
class SampleFormat:
    """How a line becomes a sample."""

    keys: Mapping[str, str] = field(default_factory=lambda: dict(SAMPLE_KEYS))
    template: ChatTemplate | None = None
    """None: the plain form."""
    marks: tuple[str, ...] = ()
    """Special tokens of the tokenizer, which the contents of messages must not quote under a template."""

    def identity(self) -> list[object]:
        """All that decides the samples of a file."""
        if self.template is None:
            return [dict(sorted(self.keys.items()))]
        described = json.dumps([self.template.source, dict(sorted(self.template.specials.items()))])
        return [dict(sorted(self.keys.items())), hashlib.sha256(described.encode()).hexdigest()]


def sample_format(config: DataConfig) -> SampleFormat:
    """The format that a configuration asks for. Raises as `find_template` and `read_template`."""
    folders: list[Path] = []
    if config.tokenizer is not None:
        place = Path(config.tokenizer).expanduser()
        folders = [place if place.is_dir() else place.parent]
    if config.chat_template is not None:
        template: ChatTemplate | None = read_template(config.chat_template, folders)
    else:
        template = find_template(folders)
    keys = SAMPLE_KEYS | config.keys
    return SampleFormat(keys, template, _marks(folders) if template is not None else ())


def template_place(config: DataConfig) -> str | None:
    """Where the template of a configuration lies, by which another tokenizer's place does not change it."""
    if config.chat_template is not None or config.tokenizer is None:
        return config.chat_template
    place = Path(config.tokenizer).expanduser()
    folder = place if place.is_dir() else place.parent
    return str(folder) if find_template([folder]) is not None else None


def are_samples(path: Path, like: DataConfig) -> bool:
    """Whether the first line of JSON Lines is a sample and not a text. Where it could be both, it is what the
    lines of `like` are."""
    keys = SAMPLE_KEYS | like.keys
    for _, row, _ in json_rows(path, LIMITS, example={like.text_key: "..."}):
        if not isinstance(row, dict):
            return False
        sample = keys["messages"] in row or (keys["prompt"] in row and keys["completion"] in row)
        return sample and (like.is_samples or like.text_key not in row)
    return False


def _marks(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the special tokens in a folder's tokenizer.json; what is wrong with it is said elsewhere."""
    try:
        described = json.loads((folders[0] / "tokenizer.json").read_text(encoding="utf-8"))
        return tuple(t["content"] for t in described["added_tokens"] if t["special"])
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return ()


def read_samples(path: Path, how: SampleFormat, limits: Limits) -> Iterator[Chunk]:
    """The samples of a file, a chunk each. Raises `UsageError` that names the file, the line and the
    remedy."""
    example = {how.keys["prompt"]: "...", how.keys["completion"]: "..."}
    for number, row, position in json_rows(path, limits, example=example, all_keys_once=True):
        place = f"{path}, line {number}"
        spans = spans_of(row, how, place)
        yield Chunk("".join(span.text for span in spans), True, position, spans)


def spans_of(row: Any, how: SampleFormat, place: str) -> tuple[Span, ...]:
    """The spans of one line. Raises `UsageError` that begins with `place`."""
    prompt, completion, messages = (how.keys[name] for name in SAMPLE_KEYS)
    if not isinstance(row, dict):
        raise UsageError(
            f"{place}: a JSON {kind_of_json(row)}, not an object with {prompt!r} and {completion!r} or with "
            f"{messages!r}: write one object a line."
        )
    if messages in row:
        return _conversation(row[messages], row.get("tools"), how, place, messages)
    missing = [key for key in (prompt, completion) if key not in row]
    if missing:
        keys = ", ".join(map(repr, row)) or "none"
        text = ' Text, all of which is learned, needs data.format = "text".' if "text" in row else ""
        raise UsageError(
            f"{place}: no key {missing[0]!r} and no {messages!r} (keys found: {keys}). A sample has "
            f"{prompt!r} and {completion!r}, or {messages!r}; say what they are called here with data.keys."
            f"{text}"
        )
    asked, answer = _text(row[prompt], prompt, place), _text(row[completion], completion, place)
    if not answer:
        raise UsageError(
            f"{place}: {completion!r} is empty, so there is nothing to learn: fill in or remove the line."
        )
    first = (Span(asked, False, False, 0),) if asked else ()
    return (*first, Span(answer, True, False, len(answer.encode())))


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"{place}: {key!r} holds {kind_of_json(value)}, not a string: repair or remove the line."
        )
    refuse_half_pairs(value, key, place)
    return value


def _conversation(messages: Any, tools: Any, how: SampleFormat, place: str, key: str) -> tuple[Span, ...]:
    _check_messages(messages, how, place, key)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UsageError(
            f"{place}: no message of the role 'assistant', so there is nothing to learn: add the answer, or "
            "remove the line."
        )
    messages = messages[: answers[-1] + 1]
    if how.template is None:
        if tools is not None:
            raise UsageError(
                f"{place}: it names tools, and there is no chat template to write them with: give a "
                "tokenizer's folder that has one (data.tokenizer), a file (data.chat_template), or take them "
                "out."
            )
        return tuple(_plain_spans(messages))
    try:
        return tuple(_template_spans(messages, tools, answers, how.template))
    except LowriseError as error:
        raise UsageError(f"{place}: {error}") from error


def _check_messages(messages: Any, how: SampleFormat, place: str, key: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise UsageError(
            f"{place}: {key!r} is no list of messages: write "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
        )
    for number, message in enumerate(messages):
        at = f"{place}: {key}[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f"{at} is no object with a string 'role': repair or remove the line.")
        content = _text(message.get("content"), "content", at)
        if message["role"] == "assistant" and not content:
            raise UsageError(f"{at}: the assistant says nothing: fill in or remove the line.")
        if how.template is None and message["role"] not in PLAIN_ROLES:
            raise UsageError(
                f"{at} has the role {message['role']!r}, and the plain form of conversations knows "
                f"{', '.join(PLAIN_ROLES)}: use one of these, or a chat template (data.chat_template)."
            )
        quoted = [mark for mark in how.marks if mark in content]
        if quoted:
            raise UsageError(
                f"{at} quotes {quoted[0]!r}, a special token of the tokenizer, which the template's text "
                "would make a mark: spell it otherwise, or remove the line."
            )


def _plain_spans(messages: Sequence[Mapping[str, Any]]) -> Iterator[Span]:
    """Turns as the server writes them. The name of whoever follows an answer counts with it: it is what ends
    the answer there."""
    context, is_named = "", False
    for number, message in enumerate(messages):
        name, content = PLAIN_ROLES[message["role"]], message["content"]
        context += "" if is_named else f"{name}:"
        is_named = False
        if message["role"] != "assistant":
            context += f" {content}\n"
            continue
        if context:
            yield Span(context, False, False, 0)
        context, is_named = "", number + 1 < len(messages)
        following = f"\n{PLAIN_ROLES[messages[number + 1]['role']]}:" if is_named else ""
        yield Span(f" {content}{following}", True, False, len(content.encode()))


def _other_question(before: str, after: str, number: int) -> str:
    """What to say of a template that asks for an answer otherwise than it writes what stands before one."""
    pairs = zip(before, after, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    shown = slice(max(0, same - 30), same + 20)
    return (
        f"the chat template asks for messages[{number}] with {before[shown]!r}, and writes {after[shown]!r} "
        "once it is there, so what counts cannot be told apart, and the model would be asked otherwise than "
        "it learned: repair the template (spaces and line ends between its blocks are text too)."
    )


def _template_spans(
    messages: Sequence[Mapping[str, Any]], tools: Any, answers: Sequence[int], template: ChatTemplate
) -> Iterator[Span]:
    """What the template adds for an answer counts, its end mark with it."""
    done = ""
    for number in answers:
        before = template.rendered(messages[:number], answer_follows=True, tools=tools)
        after = template.rendered(messages[: number + 1], answer_follows=False, tools=tools)
        if not after.startswith(before):
            raise UsageError(_other_question(before, after, number))
        if not before.startswith(done):
            raise UsageError(
                f"the chat template writes the messages before messages[{number}] otherwise once it "
                "follows, so what counts cannot be told apart: give a line for each answer, with the answer "
                "as its last message."
            )
        if before != done:
            yield Span(before[len(done) :], False, True, 0)
        content = messages[number]["content"]
        yield Span(after[len(before) :], True, True, len(content.encode()))
        done = after
