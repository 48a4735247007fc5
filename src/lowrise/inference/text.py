"""New text from new tokens: decoded in a window, shown as soon as it is certain, cut at stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from lowrise.data import Tokenizer
from lowrise.errors import UsageError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW = 32
"""Tokens that a window has when it is moved on."""
_KEPT = 8
"""Fewest tokens that it is left with."""


class TextStream:
    """The text of tokens that come one by one, after a prompt.

    All pieces together are what `decode(prompt + tokens)` has beyond `decode(prompt)`: alone, new tokens
    would lose the space before their first word. Each push decodes a window of the last tokens, not the whole
    text, so a text of n tokens costs n windows. The window moves on only to a place from where the tokens
    decode to the very end of what they are in the larger window (but for a space at its start, which some
    tokenizers drop), so that what the decoder does with neighbours (bytes of one character, marks of word
    pieces) is kept. A text that ends within a character is held back until it is whole, or until `finish`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._bytes = tokenizer.byte_ids
        self._window = list(prompt)
        self._limit = _WINDOW
        self._shown = self._decode(self._window)
        if len(self._window) > self._limit:
            self._move_on()

    def push(self, token: int) -> str:
        """The text that is certain since the last push, perhaps empty."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):  # a character may need several tokens
            return ""
        new = beyond(self._shown, text)
        self._shown = text
        if len(self._window) > self._limit:
            self._move_on()
        return new

    def finish(self) -> str:
        """What was held back: an unfinished character, as replacement characters."""
        text = self._decode(self._window)
        new = beyond(self._shown, text)
        self._shown = text
        return new

    def _move_on(self) -> None:
        """Keep a tail of the window that decodes to a tail of its text; else try again at twice the size."""
        last = len(self._window) - _KEPT
        for start in range(last, max(0, last - _WINDOW), -1):
            if self._window[start] in self._bytes and self._window[start - 1] in self._bytes:
                continue  # these decode together: one that fits no character spoils them all
            tail = self._decode(self._window[start:])
            if tail and self._shown.endswith(tail) and _REPLACEMENT not in (tail[0], tail[-1]):
                self._window, self._shown, self._limit = self._window[start:], tail, _WINDOW
                return
        self._limit = 2 * len(self._window)


def beyond(shown: str, text: str) -> str:
    """What is new in a text after what is shown of it, also where new tokens have changed how earlier ones
    decode: half a character became a whole one (the replacement characters of its beginning are no text that
    was shown), or the decoder closed a gap ("it '" and "s" are "it's").
    """
    if text.startswith(shown):
        return text[len(shown) :]
    begun = shown.rstrip(_REPLACEMENT)
    if text.startswith(begun):
        return text[len(begun) :]
    left = len(shown) - sum(map(str.isspace, shown))  # characters to pass; decoders add and drop spaces alone
    place = 0
    while left and place < len(text):
        left -= not text[place].isspace()
        place += 1
    return text[place:]


class StopStrings:
    """Passes text on until one of `stops` is complete; what might begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UsageError(
                "A stop string is empty: it would end every text before it begins. Leave it out."
            )
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown now. Once `found`, nothing more comes."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max(
            (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held
