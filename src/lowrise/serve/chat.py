"""Chat messages as the tokens of one prompt (the forms: `lowrise.data.chat`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrise.data import Tokenizer
from lowrise.data.chat import ChatTemplate, end_of_answer, find_template, plain_text
from lowrise.errors import UsageError

Message = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class ChatFormat:
    """How messages become a prompt."""

    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    """None: the plain form."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, besides the model's own end."""
        mark = end_of_answer(self.template, self.tokenizer.special_tokens)
        return () if mark is None else (mark,)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of the conversation up to where the answer begins, without the document separator."""
        if self.template is None:
            return self.tokenizer.encode(plain_text(messages, answer_follows=True))
        for number, message in enumerate(messages):
            quoted = [name for name in self.tokenizer.special_tokens if name in message["content"]]
            if quoted:
                raise UsageError(
                    f"messages[{number}].content quotes {quoted[0]!r}, which marks the turns of this model's "
                    "conversations: it would be read as a mark. Spell it otherwise."
                )
        ids = self.tokenizer.encode_marked(self.template.rendered(messages, answer_follows=True))
        return ids[1:] if ids[:1] == [self.tokenizer.separator_id] else ids


def chat_format(tokenizer: Tokenizer, folders: Sequence[Path]) -> ChatFormat:
    """The format of the first folder that has a template; the plain one if none has. Raises as
    `find_template`.
    """
    return ChatFormat(tokenizer, find_template(folders))
