"""Chat messages as one prompt: by the template that comes with the tokenizer, or else a plain one.

The plain one, for models that were trained on text alone (`content` as it is):

    System: content        (role "system" or "developer")
    User: content          (role "user")
    Assistant: content     (role "assistant")
    Assistant:             (the answer begins here; "\\nUser:" ends it)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrise.data import Tokenizer
from lowrise.errors import LowriseError, UsageError

Message = dict[str, str]
"""`role` and `content`."""
PLAIN_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOP = "\nUser:"


@dataclass(frozen=True)
class ChatFormat:
    """How messages become a prompt."""

    tokenizer: Tokenizer
    template: str | None = None
    """Jinja template; None: the plain format."""
    specials: dict[str, str] | None = None
    """`bos_token`, `eos_token` and the like, which templates name."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, besides the model's own end."""
        return () if self.template is not None else (PLAIN_STOP,)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the conversation up to where the answer begins, without the document separator."""
        if self.template is None:
            lines = [f"{PLAIN_ROLES[m['role']]}: {m['content']}\n" for m in messages]
            return self.tokenizer.encode("".join(lines) + "Assistant:")
        for number, message in enumerate(messages):
            quoted = [name for name in self.tokenizer.special_tokens if name in message["content"]]
            if quoted:
                raise UsageError(
                    f"messages[{number}].content quotes {quoted[0]!r}, which marks the turns of this model's "
                    "conversations: it would be read as a mark. Spell it otherwise."
                )
        ids = self.tokenizer.encode_marked(self._rendered(messages))
        return ids[1:] if ids[:1] == [self.tokenizer.separator_id] else ids

    def _rendered(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise UsageError(f"The chat template refuses these messages: {message}")

        # Options that templates of published models are written for.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        values: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": True}
        try:
            return environment.from_string(self.template or "").render(**values, **(self.specials or {}))
        except TemplateError as error:
            raise LowriseError(f"The tokenizer's chat template cannot be used ({error}).") from error


def chat_format(tokenizer: Tokenizer, folders: Sequence[Path]) -> ChatFormat:
    """The format of the first folder whose `chat_template.jinja` or `tokenizer_config.json` has a template;
    the plain one if none has. `LowriseError` for a file that cannot be read.
    """
    for folder in folders:
        settings = _settings(folder / "tokenizer_config.json")
        own = folder / "chat_template.jinja"
        template = own.read_text(encoding="utf-8") if own.is_file() else settings.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return ChatFormat(tokenizer, template, _special_names(settings))
    return ChatFormat(tokenizer)


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LowriseError(f"{file} cannot be read ({error}): repair it, or move it away.") from error
    return values if isinstance(values, dict) else {}


def _special_names(settings: dict[str, Any]) -> dict[str, str]:
    """Tokens such as `bos_token`, given as a string or as an object with `content`."""
    names = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            names[key] = content
    return names
