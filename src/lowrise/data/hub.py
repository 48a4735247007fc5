"""Datasets of the Hugging Face hub, as much of them as is wanted: streamed once, kept in the cache.

`datasets.load_dataset` fetches and converts every file of a configuration before the first row is there: 305
GB for C4, also where a run reads a hundredth of it, or one split. Here rows are streamed in the dataset's
order until there is text enough, and kept:

    CACHE/hub/KEY/part-00000.jsonl   about `PART_BYTES` of text, whole or absent
                  index.json         how many parts there are, where the stream goes on, if it is finished

Afterwards they are JSON Lines as any other: hashed, tokenized, named by their content. A killed loading goes
on at its last part.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lowrise.errors import LowriseError, UsageError
from lowrise.files import write_whole

HUB = "hf:"
PART_BYTES = 2**26
BYTES_PER_TOKEN = 6  # more than text has for any tokenizer in use: 3.5 (4,096 entries) to 5.5 (256,000)
PATIENCE_SECONDS = 5.0

Report = Callable[[int, int, str], None]


def is_on_hub(spec: str) -> bool:
    """Whether a source is a dataset of the hub: no file, folder or saved dataset of this machine."""
    if not spec.startswith(HUB):
        return False
    return not Path(parsed(spec)[0]).expanduser().exists()


def parsed(spec: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of "hf:NAME[:config][:split]"; None where they are not said."""
    name, *rest = spec.removeprefix(HUB).split(":")
    config, split = [*rest, "", ""][:2]
    return name, config or None, split or None


def package(spec: str) -> Any:
    """The package datasets. Raises `LowriseError` where it is absent."""
    try:
        import datasets
    except ImportError as error:
        raise LowriseError(
            f"The source {spec!r} needs the package datasets: pip install 'lowrise[hf]'."
        ) from error
    return datasets


def is_offline() -> bool:
    """Whether the user has said that there is no network, and what is in the library's cache is meant."""
    return any(os.environ.get(name, "0").upper() in ("1", "TRUE", "YES", "ON") for name in _OFFLINE)


_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def require_reachable(spec: str) -> None:
    """Raise `LowriseError`, within seconds, if the hub does not answer: the library tries for minutes."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session
    except ImportError:  # an old or absent package: what loads the dataset says so
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
    except Exception as error:  # of the HTTP library, which depends on the version
        raise LowriseError(
            f"{constants.ENDPOINT} does not answer ({error}), and the source {spec!r} is a dataset there: "
            "train on text of this machine (--data.source FILES, --data.valid FILES), name a mirror in "
            "HF_ENDPOINT, or, where the whole dataset has been loaded before, set HF_HUB_OFFLINE=1."
        ) from error


def kept_text(
    spec: str, text_key: str, limit_bytes: int | None, root: Path, report: Report
) -> list[Path] | None:
    """The first `limit_bytes` of text of a dataset's split (None: all) as JSON Lines files in order; None
    where it is not there and the user is offline.

    Raises:
        UsageError: no such dataset, configuration, split or field.
        LowriseError: the hub is out of reach, or the package is absent.
    """
    key = hashlib.sha256(json.dumps([spec, text_key]).encode()).hexdigest()[:32]
    folder = root / "hub" / key
    folder.mkdir(parents=True, exist_ok=True)
    from lowrise.data.shards import locked  # with numpy, which a flag's help does without

    with locked(folder.with_suffix(".lock"), lambda: report(0, 0, "waiting for another process")):
        index = _read_index(folder)
        sizes = index["bytes"]
        if not _is_enough(index, limit_bytes):
            if is_offline():
                return None
            package(spec)
            require_reachable(spec)
            _load(spec, text_key, limit_bytes, folder, index, report)
        return [folder / _name(part) for part in range(_needed(sizes, limit_bytes))]


def _needed(sizes: list[int], limit: int | None) -> int:
    """How many parts have `limit` bytes: the same files for the same limit, however many are there."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if limit is not None and total >= limit:
            return number + 1
    return len(sizes)


def _is_enough(index: dict[str, Any], limit: int | None) -> bool:
    return index["finished"] or (limit is not None and sum(index["bytes"]) >= limit)


def _name(part: int) -> str:
    return f"part-{part:05d}.jsonl"


def _read_index(folder: Path) -> dict[str, Any]:
    """What an earlier loading has left, as far as its parts are whole."""
    empty: dict[str, Any] = {"bytes": [], "sizes": [], "state": None, "finished": False}
    try:
        index = json.loads((folder / "index.json").read_bytes())
        whole = [(folder / _name(i)).stat().st_size == size for i, size in enumerate(index["sizes"])]
        if not all(whole) or len(index["bytes"]) != len(whole) or "state" not in index:
            return empty
        return {**empty, **index}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return empty


def _load(
    spec: str, text_key: str, limit: int | None, folder: Path, index: dict[str, Any], report: Report
) -> None:
    """Add parts until there is enough, `index` with them."""
    stream = open_stream(spec)
    if index["state"] is not None:
        stream.load_state_dict(index["state"])
    rows = _texts(spec, stream, text_key)
    while not _is_enough(index, limit):
        lines: list[str] = []
        size = 0
        for text in rows:
            lines.append(json.dumps({text_key: text}) + "\n")
            size += len(text.encode())
            if size >= PART_BYTES:
                break
        else:
            index["finished"] = True
        if lines:
            content = "".join(lines).encode()
            write_whole(folder / _name(len(index["bytes"])), content)
            index["bytes"].append(size)
            index["sizes"].append(len(content))
        index["state"] = stream.state_dict()
        write_whole(folder / "index.json", json.dumps(index).encode())
        report(sum(index["bytes"]), limit or 0, f"loading {spec}")


def _texts(spec: str, stream: Any, text_key: str) -> Iterator[str]:
    for row in stream:
        if text_key not in row:
            raise UsageError(
                f"The dataset {spec!r} has no field {text_key!r}: it has {', '.join(map(repr, row))}; set "
                "data.text_key."
            )
        text = row[text_key]
        if not isinstance(text, str):
            raise UsageError(f"The field {text_key!r} of the dataset {spec!r} is no text but {text!r:.80}.")
        yield text


def open_stream(spec: str) -> Any:
    """The rows of a split, one after the other (`datasets.IterableDataset`)."""
    datasets = package(spec)
    if not hasattr(datasets.IterableDataset, "state_dict"):  # where to go on later
        raise LowriseError(
            f"The source {spec!r} is streamed, which needs datasets 2.20 or newer, not "
            f"{datasets.__version__}: pip install 'lowrise[hf]'."
        )
    name, config, split = parsed(spec)
    try:
        return datasets.load_dataset(name, config, split=split or "train", streaming=True)
    except Exception as error:  # the package raises a dozen kinds, from no network to an unknown name
        raise LowriseError(
            f"The dataset {spec!r} cannot be loaded ({type(error).__name__}: {error}): write hf:NAME, "
            "hf:NAME:config or hf:NAME:config:split."
        ) from error
