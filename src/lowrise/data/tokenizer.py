"""Tokenizers: any `tokenizer.json`, or a byte-level BPE trained on the corpus.

The wrapper makes one promise that the library leaves open: text is text. Special tokens are never found
inside a document (a page that quotes "<|endoftext|>" does not end there), nothing is added, padded, cut or
left to chance (BPE dropout), whatever the file asks for. So for a byte-level tokenizer
`decode(encode(text)) == text`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from lowrise.data.pieces import WHOLE_CHARS, Cut
from lowrise.data.tokenizer_file import is_of_library, no_tokenizer, try_out
from lowrise.errors import UsageError
from lowrise.files import write_whole

SEPARATOR = "<|endoftext|>"
PADDING = "<|pad|>"
# Names of the end-of-document token in the tokenizers of published models, most specific first.
KNOWN_SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")


class Tokenizer:
    """A `tokenizer.json` held as the exact text of the file, so that its hash and its copies never change.

    Args:
        text: contents of a tokenizer.json.
        separator_token: the token that ends a document; None takes the first of `KNOWN_SEPARATORS` it has.
        name: what messages call it, usually the path.

    Raises:
        UsageError: not a tokenizer, or it has no such separator.
    """

    def __init__(self, text: str, *, separator_token: str | None = None, name: str = "tokenizer") -> None:
        try:
            self._encoder = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise no_tokenizer(name, error) from error
        _give_every_id_and_no_more(self._encoder)
        self._encoder.encode_special_tokens = True
        self._text = text
        self.name = name
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        ids = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = (
            max(ids.values()) + 1 if ids else 0
        )  # ids may have gaps; an embedding needs max + 1 rows
        self.separator_token, self.separator_id = self._find_separator(ids, separator_token)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        separator_token: str | None = None,
        is_known: Callable[[str], bool] = lambda sha256: False,
    ) -> Tokenizer:
        """Read a tokenizer.json, or the one in a directory.

        A file that is not known (by the hash of its content) is looked at, and loaded in a process of its own
        first, so that a damaged one ends in a message within seconds, whatever it does to the library.

        Raises:
            UsageError: there is none, or it is no tokenizer.
        """
        file = Path(path).expanduser()
        if file.is_dir():
            file = file / "tokenizer.json"
        try:
            content = file.read_bytes()
            text = content.decode("utf-8")
        except FileNotFoundError as error:
            raise UsageError(
                f"There is no tokenizer at {file}: give the path of a tokenizer.json, or leave "
                "data.tokenizer out to train one on the corpus."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"The tokenizer {file} cannot be read ({error}): give a tokenizer.json."
            ) from error
        if not is_known(hashlib.sha256(content).hexdigest()):
            try_out(text, str(file))
        return cls(text, separator_token=separator_token, name=str(file))

    def _find_separator(self, ids: dict[str, int], wanted: str | None) -> tuple[str, int]:
        candidates = KNOWN_SEPARATORS if wanted is None else (wanted,)
        for token in candidates:
            if token in ids:
                return token, ids[token]
        added = self._encoder.get_added_tokens_decoder().values()
        special = ", ".join(sorted(token.content for token in added)) or "none"
        looked_for = " or ".join(candidates)
        raise UsageError(
            f"{self.name} has no token {looked_for} to end a document with: set data.separator_token to one "
            f"of its tokens (special tokens it has: {special})."
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without separators.

        The library's threads work in parallel, free of the GIL. Raises `UsageError` for a text that the
        tokenizer cannot encode.
        """
        try:
            # Offsets are not needed: without them it takes a fifth less time.
            encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:  # say, for an unk_token that is no entry
            if not is_of_library(error):
                raise
            raise self._cannot_encode(texts[0], error) from error
        return [self._as_text(encoding.ids) for encoding in encodings]

    def _cannot_encode(self, text: str, error: BaseException) -> UsageError:
        return UsageError(
            f"{self.name} cannot encode the text that begins {text[:40]!r} ({error}): repair the tokenizer, "
            "or leave data.tokenizer out to train one on the corpus."
        )

    def _as_text(self, ids: list[int]) -> list[int]:
        """Special tokens that a text quotes, spelled out."""
        if self._found_in_text.keys().isdisjoint(ids):
            return ids
        spelled: list[int] = []
        for i in ids:
            spelling = self._found_in_text.get(i, [i])
            if not spelling:
                raise UsageError(
                    f"A text quotes {self.separator_token!r}, which ends documents, and {self.name} cannot "
                    "spell it: choose another data.separator_token, or remove it from the text."
                )
            spelled += spelling
        return spelled

    @cached_property
    def _found_in_text(self) -> dict[int, list[int]]:
        """The separator, and the special tokens that the model finds in plain text: what its own vocabulary
        holds (Unigram, WordLevel), whatever `encode_special_tokens` says. With the ids that spell each; none
        for a separator that cannot be spelled, while another such token stays as it is.
        """
        added = self._encoder.get_added_tokens_decoder()
        special = {i: t.content for i, t in added.items() if t.special and i != self.unknown_id}
        found = {i: text for i, text in special.items() if i in self._raw_ids(text)}
        spelled = {i: self._spelling(i, text) for i, text in found.items()}
        separator = {self.separator_id: self._spelling(self.separator_id, self.separator_token)}
        return {i: ids for i, ids in spelled.items() if ids} | separator

    def _raw_ids(self, text: str) -> list[int]:
        try:
            return list(self._encoder.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if not is_of_library(error):
                raise
            return []

    def _spelling(self, number: int, text: str) -> list[int]:
        """Entries of the characters, the unknown one where there is none; empty if that is not possible."""
        found = [self._encoder.token_to_id(character) for character in text]
        ids = [self.unknown_id if i is None else i for i in found]
        return [] if None in ids or number in ids else [i for i in ids if i is not None]

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary lacks; None if the tokenizer has none and drops it."""
        model = self._encoder.model
        token = getattr(model, "unk_token", None)
        if token is None:
            described = json.loads(self._text).get("model", {})
            number = described.get("unk_id")
            return None if number is None else int(number)
        return self._encoder.token_to_id(token)

    def lost_share(self, texts: Sequence[str]) -> tuple[float, str]:
        """Of the characters that are no white space, the share that decoding does not give back, and some of
        them. Case, accents and compatibility forms, which normalizing tokenizers change, do not count; vowel
        signs (of Hindi, Thai and the like) are letters and do.
        """
        kept: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            wanted.update(_folded(text))
            kept.update(_folded(self.decode(i for i in ids if i != self.unknown_id)))
        lost = wanted - kept
        return lost.total() / max(1, wanted.total()), "".join(c for c, _ in lost.most_common(12))

    def lost_spaces(self, texts: Sequence[str]) -> tuple[float, str]:
        """Of the white space within the texts, the share that decoding gives back as less or as another
        kind, and the kinds."""
        kept: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            wanted.update(filter(str.isspace, text.strip()))
            kept.update(filter(str.isspace, self.decode(ids)))
        lost = wanted - kept
        return lost.total() / max(1, wanted.total()), "".join(c for c, _ in lost.most_common(4))

    @cached_property
    def knows_every_character(self) -> bool:
        """Whether it gives characters from all over Unicode back, whose bytes in UTF-8 are all that there
        are: what has an entry for each byte does, and then no other text need be tried.
        """
        numbers = [
            *range(0x21, 0x7F),
            *range(0xA1, 0x800, 37),
            *range(0x800, 0xD800, 997),
            *range(0xE000, 0x110000, 4099),
        ]
        text = "".join(map(chr, numbers))
        return self.lost_share([text[i : i + 100] for i in range(0, len(text), 100)])[0] == 0

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without a separator."""
        return self.encode_batch([text])[0]

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are marks and are found by name, as chat templates
        write them. Nothing is added. Raises `UsageError` for a text that the tokenizer cannot encode."""
        try:
            return list(self._marking_encoder.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise self._cannot_encode(text, error) from error

    @cached_property
    def _marking_encoder(self) -> tokenizers.Tokenizer:
        encoder = tokenizers.Tokenizer.from_str(self._text)
        _give_every_id_and_no_more(encoder)
        encoder.encode_special_tokens = False
        return encoder

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the special tokens, in the order of their ids."""
        added = self._encoder.get_added_tokens_decoder()
        return tuple(added[i].content for i in sorted(added) if added[i].special)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens appear by name."""
        return str(self._encoder.decode([int(i) for i in ids], skip_special_tokens=False))

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The entries that stand for single bytes (byte fallback), which decode together with their
        neighbours; empty for byte-level tokenizers, which name bytes otherwise."""
        found = (self._encoder.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(i for i in found if i is not None)

    @cached_property
    def cut(self) -> Cut:
        """How a text may be cut so that its pieces give the ids of the whole; decided by trying.

        Byte-level BPE joins at lines; tokenizers that mark the start of a text (SentencePiece's) at spaces at
        best.
        """
        left, middle, right = "It is so.\n", "Then it was", " not, and ended."
        texts = [left + middle + right, left, middle, right, left + middle, right[1:]]
        whole, first, second, third, before, bare = self.encode_batch(texts)
        joined = {Cut.LINE: first + second + third, Cut.SPACE: before + third, Cut.AT_SPACE: before + bare}
        return next((cut for cut, ids in joined.items() if ids == whole), Cut.NONE)

    @property
    def text(self) -> str:
        """The tokenizer.json, byte for byte the one that was loaded or trained."""
        return self._text

    def id_of(self, token: str) -> int | None:
        """The id of an entry of the vocabulary; None where it has no such entry."""
        found = self._encoder.token_to_id(token)
        return None if found is None else int(found)

    def reads_text_by(self) -> list[object]:
        """What decides the ids of a text beside the file itself; nothing for byte-level BPE."""
        cut = [] if self.cut is Cut.LINE else [self.cut.name, WHOLE_CHARS]
        spelled = sorted(self._found_in_text.keys() - {self.separator_id})
        return [*cut, *([spelled] if spelled else [])]

    def write(self, path: str | Path) -> None:
        """Write the tokenizer.json, whole or not at all, byte for byte the one that was loaded or trained."""
        write_whole(Path(path), self._text.encode())

    def __repr__(self) -> str:
        return f"Tokenizer({self.name}, {self.vocab_size} entries, sha256 {self.sha256[:16]})"


def _give_every_id_and_no_more(encoder: tokenizers.Tokenizer) -> None:
    """Switch off what a file may ask for and training does not: cuts, padding, merges that chance leaves
    out."""
    encoder.no_truncation()
    encoder.no_padding()
    if getattr(encoder.model, "dropout", None):
        encoder.model.dropout = None


def _folded(text: str) -> str:
    """Characters that are no white space, without case, accents, compatibility forms and signs of control."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if not c.isspace() and not _is_beside_letters(c))


# Selectors of a form for the character before, and the joiner of graphemes: marks that write nothing.
_WRITES_NOTHING = re.compile("[\u034f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def _is_beside_letters(c: str) -> bool:
    """Whether this is a control or format sign, or a mark that tokenizers strip as an accent: of the marks
    those with a class of points (1 to 35, but 9, which takes a vowel away) or of a place (from 200 on).
    """
    category = unicodedata.category(c)
    if category[0] != "M":
        return category in ("Cc", "Cf", "Cs")
    place = unicodedata.combining(c)
    accent = (0 < place < 36 and place != 9) or place >= 200
    return category == "Me" or accent or _WRITES_NOTHING.match(c) is not None


WORD_CHARS = 2**10
# What GPT-2's splitting takes for one word, where it is long: letters, digits, white space, or the rest.
_LONG_WORD = re.compile(
    "|".join(f"{kind}{{{WORD_CHARS}}}" for kind in (r"[^\W\d_]", r"\d", r"\s", r"(?:[^\w\s]|_)"))
)


def _with_short_words(documents: Iterable[str]) -> Iterator[str]:
    """The documents, cut after each `WORD_CHARS` characters of a longer word."""
    for text in documents:
        start = 0
        if _may_have_a_long_word(text):
            for word in _LONG_WORD.finditer(text):
                yield text[start : word.end()]
                start = word.end()
        yield text[start:]


def _may_have_a_long_word(text: str) -> bool:
    """Whether all of some half a `WORD_CHARS` is white space, or none of it within: a long word covers one of
    these. Fast, as nearly all of them are told by their first word.
    """
    half = WORD_CHARS // 2
    for start in range(0, len(text) - half + 1, half):
        part = text[start : start + half]
        if len(part.split(None, 1)) < 2:
            return True
    return False


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (GPT-2 splitting) on all of `documents`; the caller bounds them.

    All 256 bytes are in the alphabet, so every text can be written and read back; pairs seen once are not
    merged, so a small sample gives fewer entries than asked for. `<|endoftext|>` is 0 and `<|pad|>` is 1.
    Time is linear in the text: a word of more than `WORD_CHARS` characters is cut, as each merge goes through
    all of a word.
    Deterministic: the same documents in the same order give the same file.

    Raises:
        UsageError: fewer than 258 entries asked for.
    """
    if vocab_size < 258:
        raise UsageError(
            f"A byte-level tokenizer needs at least 258 entries, not {vocab_size}: raise data.vocab_size."
        )
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[SEPARATOR, PADDING],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    encoder.train_from_iterator(_with_short_words(documents), trainer)
    return Tokenizer(
        encoder.to_str(pretty=True), name=f"byte-level BPE with {encoder.get_vocab_size()} entries"
    )
