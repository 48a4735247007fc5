"""Questions of tasks as conversations, for models that were fine-tuned on conversations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrise.data.chat import ChatTemplate, end_of_answer, find_template, plain_text


@dataclass(frozen=True)
class Conversation:
    """How messages become the context of an answer."""

    template: ChatTemplate | None = None
    """None: the plain form, in which a space stands before an answer."""

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Conversation:
        """That of the first folder with a template. Raises as `find_template`."""
        return cls(find_template(folders))

    @property
    def name(self) -> str:
        """What tells it from others: the template, or the plain form."""
        return "lowrise, plain form" if self.template is None else self.template.source

    def context(self, messages: Sequence[Mapping[str, Any]], *, answer_follows: bool) -> str:
        """The text that the answer follows; with a last message that is the beginning of the answer
        (`answer_follows=False`), the text up to its end."""
        if self.template is None:
            text = plain_text(messages, answer_follows=answer_follows)
        else:
            text = self.template.rendered(messages, answer_follows=answer_follows)
        if not answer_follows:
            begun = str(messages[-1]["content"]).strip()
            return text[: text.rindex(begun) + len(begun)]
        return text if self.template is not None else f"{text} "

    def asked(
        self, context: str, settings: Mapping[str, Any], marks: Collection[str] = ()
    ) -> tuple[str, dict[str, Any]]:
        """What a generated answer continues, and its settings with what ends an answer. `marks`: special
        tokens of the tokenizer."""
        end = end_of_answer(self.template, marks)
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        asked = context.removesuffix(" ") if self.template is None else context
        return asked, {**settings, "until": stops if end is None else [*stops, end]}

    def answer(self, text: str) -> str:
        """A generated answer without the space that the plain form puts before it."""
        return text if self.template is not None else text.removeprefix(" ")
