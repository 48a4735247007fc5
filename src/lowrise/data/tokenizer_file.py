"""A `tokenizer.json` before it is trusted: looked at, then loaded and used in a process of its own.

What the tokenizers library does with a damaged file is not bounded: it may raise, panic, end the process, ask
for memory without end or never come back, and it holds the interpreter's lock meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from lowrise.errors import UsageError
from lowrise.files import is_count

TRIAL_SECONDS = 20  # and one for each MB: the largest published tokenizers take some two seconds
LARGEST_VOCABULARY = 2**24
_TRIAL = """
import sys, tokenizers
text = sys.stdin.buffer.read().decode("utf-8")
try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.get_vocab(with_added_tokens=True)
except BaseException as error:
    print(error)
    sys.exit(3)
try:
    tokenizer.encode_batch_fast(["It is so.\\n", " 12  \\u00fc\\u4f60\\U0001f600"], add_special_tokens=False)
except BaseException:
    pass  # said, with the text, where a text is encoded
"""


def is_of_library(error: BaseException) -> bool:
    """Whether the library has raised this: bare `Exception` of every kind, or a panic, which is none."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def no_tokenizer(name: str, why: object) -> UsageError:
    """The message about a file that is no tokenizer."""
    return UsageError(
        f"{name} is not a tokenizer.json of the tokenizers library ({why}): give a file saved by "
        "`tokenizer.save(...)` or `save_pretrained(...)`, or leave data.tokenizer out."
    )


def try_out(text: str, name: str) -> None:
    """Raise `UsageError` unless the library can load and use this, within `TRIAL_SECONDS`."""
    try:
        _check(text)
    except (ValueError, RecursionError) as error:
        raise no_tokenizer(name, error) from error
    seconds = TRIAL_SECONDS + len(text) / 1e6
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL],
            input=text.encode(),
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no tokenizers.py of the working folder
        )
    except subprocess.TimeoutExpired:
        raise no_tokenizer(name, f"it does not load within {seconds:.0f} seconds") from None
    except OSError:
        return  # no process can be started here: the library itself is all there is
    if trial.returncode == 3:
        raise no_tokenizer(name, trial.stdout.decode(errors="replace").strip())
    if trial.returncode < 0:
        raise no_tokenizer(name, f"loading it ends the process by signal {-trial.returncode}")


def _check(text: str) -> None:
    """Raise `ValueError` for what no tokenizer.json has."""
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise ValueError("a Git LFS pointer: fetch the content with `git lfs pull`")
    content = json.loads(text)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError("it is not an object with a model")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        _require(all(map(_is_id, vocabulary.values())), "its vocabulary has an id that cannot be")
    else:
        _require(isinstance(vocabulary, list) and all(map(_is_scored, vocabulary)), "it has no vocabulary")
    added = content.get("added_tokens") or []
    _require(isinstance(added, list), "its added_tokens are no list")
    for token in added:
        right = isinstance(token, dict) and _is_id(token.get("id"))
        _require(right and isinstance(token.get("content"), str), "an added token has no id or content")


def _is_id(value: Any) -> bool:
    return is_count(value) and value < LARGEST_VOCABULARY


def _is_scored(entry: Any) -> bool:
    """An entry of a Unigram model: a string and its log probability."""
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
