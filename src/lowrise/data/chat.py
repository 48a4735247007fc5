"""Chat messages as text: by a template in jinja, as published tokenizers carry it, or else in a plain form.

The plain form, for tokenizers without a template (`content` as it is):

    System: content        (role "system" or "developer")
    User: content          (role "user")
    Assistant: content     (role "assistant")
    Assistant:             (the answer begins here; "\\nUser:" ends it)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrise.errors import LowriseError, UsageError
from lowrise.files import strict_json, write_whole

TEMPLATE = "chat_template.jinja"
PLAIN_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOP = "\nUser:"
PLAIN_ANSWER = "Assistant:"


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it may name."""

    source: str
    specials: Mapping[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token` and the like."""

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], *, answer_follows: bool, tools: Any = None
    ) -> str:
        """The conversation as text, up to where the answer begins if one follows.

        Raises `UsageError` where the template refuses the messages, `LowriseError` where it cannot be used
        or the package jinja2 is absent.
        """
        template = _compiled(self.source)
        from jinja2 import TemplateError

        # What `apply_chat_template` of transformers gives, so that "is defined" and "is none" mean the same.
        values = {"messages": list(messages), "add_generation_prompt": answer_follows}
        values |= {"tools": tools, "documents": None}
        try:
            return str(template.render(**self.specials, **values))
        except TemplateError as error:
            if "'strftime_now' is undefined" in str(error):
                raise LowriseError(
                    "The tokenizer's chat template writes the date of today (strftime_now), by which the "
                    "same samples would be others tomorrow: write a date into the template instead."
                ) from error
            raise LowriseError(f"The tokenizer's chat template cannot be used ({error}).") from error
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"The chat template fails on these messages ({type(error).__name__}: {error})."
            ) from error

    def end_of_answer(self, marks: Collection[str]) -> str | None:
        """What the template writes after an answer: the first of these special tokens, or without one all of
        it but white space. None where it writes nothing, or refuses a question and its answer.

        It ends an answer that the model writes too: what comes after it was not learned.
        """
        answer = "An answer."
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": answer}]
        try:
            _, said, rest = self.rendered(turns, answer_follows=False).rpartition(answer)
        except LowriseError:
            return None
        found = [(rest.index(mark), -len(mark), mark) for mark in marks if mark and mark in rest]
        if not said:
            return None
        return min(found)[2] if found else rest.strip() or None


def end_of_answer(template: ChatTemplate | None, marks: Collection[str]) -> str | None:
    """What ends an answer in a template's form, or in the plain one."""
    return PLAIN_STOP if template is None else template.end_of_answer(marks)


def plain_text(messages: Sequence[Mapping[str, Any]], *, answer_follows: bool) -> str:
    """The conversation in the plain form, up to where the answer begins if one follows."""
    lines = [f"{PLAIN_ROLES[m['role']]}: {m['content']}\n" for m in messages]
    return "".join(lines) + (PLAIN_ANSWER if answer_follows else "")


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    """The template, in a sandbox: it may come from anywhere. Raises `LowriseError` for one that is none."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise LowriseError("A chat template needs the package jinja2: pip install 'lowrise[hf]'.") from error

    def refuse(message: str) -> None:
        raise UsageError(f"The chat template refuses these messages: {message}")

    # Options that templates of published models are written for.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _answer_blocks()]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = _as_json
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise LowriseError(f"The tokenizer's chat template cannot be used ({error}).") from error


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` with the options that it has for chat templates; jinja's own escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _answer_blocks() -> Any:
    """`{% generation %} ... {% endgeneration %}`: templates mark with it what the assistant says. It writes
    nothing; what counts is found by comparing texts, for templates with the mark and without it."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class AnswerBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012  # jinja's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return AnswerBlocks


def find_template(folders: Sequence[Path]) -> ChatTemplate | None:
    """The template of the first folder whose `chat_template.jinja` or `tokenizer_config.json` has one, with
    the special tokens that the folders name. `LowriseError` for a file that cannot be read.
    """
    specials: dict[str, str] = {}
    found: str | None = None
    for folder in folders:
        settings = _settings(folder / "tokenizer_config.json")
        specials = _special_names(settings) | specials
        own = folder / TEMPLATE
        template = _text_of(own) if own.is_file() else settings.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if found is None and isinstance(template, str):
            found = template
    return None if found is None else ChatTemplate(found, specials)


def read_template(file: str | Path, folders: Sequence[Path] = ()) -> ChatTemplate:
    """A template in a file of its own, or in a tokenizer's folder; special tokens are those that it or the
    folders name. Raises `UsageError` where there is none.
    """
    place = Path(file).expanduser()
    if place.is_dir():
        found = find_template([place])
        if found is None:
            raise UsageError(
                f"data.chat_template = {place} has no chat template (neither {TEMPLATE} nor one in "
                "tokenizer_config.json): name a file in jinja."
            )
        return found
    if not place.is_file():
        raise UsageError(
            f"data.chat_template = {place} is not there: name a file in jinja, or a tokenizer's folder that "
            "has one."
        )
    specials: dict[str, str] = {}
    for folder in (place.parent, *folders):
        specials = _special_names(_settings(folder / "tokenizer_config.json")) | specials
    return ChatTemplate(_text_of(place), specials)


def write_template(folder: Path, template: ChatTemplate) -> None:
    """Write a template and the special tokens that it may name where `find_template` finds them."""
    write_whole(folder / TEMPLATE, template.source)
    write_whole(folder / "tokenizer_config.json", strict_json(dict(template.specials), indent=2) + "\n")


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LowriseError(f"{file} cannot be read ({error}): repair it, or move it away.") from error


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LowriseError(f"{file} cannot be read ({error}): repair it, or move it away.") from error
    return values if isinstance(values, dict) else {}


def _special_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Tokens such as `bos_token`, given as a string or as an object with `content`."""
    names = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            names[key] = content
    return names
