"""`data.max_tokens`: as much text as is wanted, of files, of mixtures and of datasets on the hub."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from lowrise.config import load
from lowrise.data import DataConfig, hub, limit, parts, prepare, prepare_held_out
from lowrise.data.log import log_path
from lowrise.errors import LowriseError, UsageError
from lowrise.runs.text import with_text_limit

DOCUMENTS = [
    f"document {i} says that the number {i} comes after {i - 1}, and so on. " * 4 for i in range(400)
]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    for i in range(4):
        write(tmp_path / f"{i}.jsonl", DOCUMENTS[100 * i : 100 * i + 100])
    write(tmp_path / "valid.jsonl", DOCUMENTS[-20:])
    return DataConfig(
        source=tuple(str(tmp_path / f"{i}.jsonl") for i in range(4)),
        valid=str(tmp_path / "valid.jsonl"),
        vocab_size=400,
        cache=str(tmp_path / "cache"),
    )


def limited(config: DataConfig, **changes: Any) -> DataConfig:
    return DataConfig(**{**config.__dict__, **changes})


def test_the_limit_is_the_beginning_of_the_whole_text(config, tmp_path):
    whole = prepare(config)
    whole.write_tokenizer(tmp_path / "tokenizer.json")
    same = limited(config, tokenizer=str(tmp_path / "tokenizer.json"))
    whole = prepare(same)
    for tokens in (1, 500, 4000):
        corpus = prepare(limited(same, max_tokens=tokens))
        longest = max(len(whole.tokenizer.encode(text)) for text in DOCUMENTS) + 1
        assert tokens <= corpus.train.tokens < tokens + longest
        assert (corpus.train.read(0, tokens) == whole.train.read(0, tokens)).all()
        assert (
            int(corpus.train.read(corpus.train.tokens - 1, corpus.train.tokens)[0])
            == whole.train.separator_id
        )
        assert corpus.valid.tokens == whole.valid.tokens
    assert prepare(limited(same, max_tokens=10**9)).train.tokens == whole.train.tokens
    assert prepare(limited(same, max_tokens=0)).fingerprint == whole.fingerprint


def test_no_limit_leaves_the_fingerprint_as_it_was(config):
    """No corpus that was prepared before is prepared anew, and no run is another one."""
    assert prepare(config).fingerprint == prepare(limited(config, max_tokens=0)).fingerprint
    assert prepare(limited(config, max_tokens=99)).fingerprint != prepare(config).fingerprint


def test_files_beyond_the_limit_are_not_even_opened(config, tmp_path):
    (tmp_path / "3.jsonl").write_bytes(b"\xff this is no text")
    size = (tmp_path / "0.jsonl").stat().st_size
    corpus = prepare(limited(config, max_tokens=size // limit.MOST_BYTES_PER_TOKEN + 1))
    assert [Path(entry["name"]).name for entry in corpus.index["sources"]] == [
        "0.jsonl",
        "1.jsonl",
        "valid.jsonl",
    ]


def test_a_mixture_is_limited_source_by_source(config):
    corpus = prepare(limited(config, weights=(4, 3, 2, 1), max_tokens=4000))
    wanted = [1600, 1200, 800, 400]
    for part, tokens in zip(corpus.train.parts, wanted, strict=True):
        assert tokens <= part.tokens < tokens + 200


def test_the_names_of_a_limited_mixture_mean_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed = limited(config, weights=(4, 3, 2, 1), max_tokens=4000)
    relative = limited(mixed, source=tuple(f"{i}.jsonl" for i in range(4)))
    assert prepare(relative).fingerprint == prepare(mixed).fingerprint


def test_one_long_document_is_cut_and_its_tail_held_out(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("\n".join(DOCUMENTS * 20))
    whole = DataConfig(source=str(path), vocab_size=400, cache=str(tmp_path / "cache"))
    corpus, everything = prepare(limited(whole, max_tokens=5000)), prepare(whole)
    assert 5000 <= corpus.train.tokens < everything.train.tokens
    assert corpus.valid.text_bytes == everything.valid.text_bytes


def test_a_killed_preparation_ends_in_the_same_bytes(config, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 2000)
    monkeypatch.setattr(parts, "BLOCK_PIECES", 5)
    whole = prepare(limited(config, max_tokens=4000))

    class Killed(Exception):
        pass

    def killed(done: int, total: int, what: str) -> None:
        if what == "tokenizing" and done > total // 8:
            raise Killed

    again = limited(config, max_tokens=4000, cache=str(tmp_path / "again"))
    with pytest.raises(Killed):
        prepare(again, progress=killed)
    corpus = prepare(again)
    assert corpus.fingerprint == whole.fingerprint
    for file in sorted(whole.directory.iterdir()):
        if file.name != "index.json":
            assert file.read_bytes() == (corpus.directory / file.name).read_bytes()
    lines = log_path(tmp_path / "again", corpus.fingerprint).read_text().splitlines()
    assert sum("prepares" in line for line in lines) == 2
    assert any("ended by Killed" in line for line in lines)
    assert lines[-1].endswith("finished")


def test_held_out_text_alone(config, tmp_path):
    corpus = prepare(config)
    corpus.write_tokenizer(tmp_path / "tokenizer.json")
    valid = [str(tmp_path / "valid.jsonl")]
    alone = prepare_held_out(valid, tmp_path / "tokenizer.json", DataConfig(cache=config.cache))
    assert alone.train.tokens == 0
    assert (alone.valid.read(0, len(alone.valid)) == corpus.valid.read(0, len(corpus.valid))).all()
    assert str(alone)
    with pytest.raises(UsageError, match="matches no file"):
        prepare_held_out(["absent"], tmp_path / "tokenizer.json", DataConfig(cache=config.cache))


# --- the hub ------------------------------------------------------------------------------------------------


class Stream:
    """Like `datasets.IterableDataset`: rows, and a place that can be kept."""

    read = 0

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.place = rows, 0

    def __iter__(self):
        for row in self.rows[self.place :]:
            self.place += 1
            Stream.read += 1
            yield row

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


@pytest.fixture
def published(monkeypatch) -> dict[str, list[dict[str, Any]]]:
    rows = {
        "hf:someone/text:en:train": [{"text": text, "url": "x"} for text in DOCUMENTS],
        "hf:someone/text:en:validation": [{"text": text} for text in DOCUMENTS[-20:]],
    }
    monkeypatch.setattr(hub, "open_stream", lambda spec: Stream(rows[spec]))
    monkeypatch.setattr(hub, "require_reachable", lambda spec: None)
    monkeypatch.setattr(hub, "PART_BYTES", 5000)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    Stream.read = 0
    return rows


def from_hub(tmp_path: Path, **changes: Any) -> DataConfig:
    train, valid = "hf:someone/text:en:train", "hf:someone/text:en:validation"
    return DataConfig(source=train, valid=valid, vocab_size=400, cache=str(tmp_path / "cache"), **changes)


def test_only_the_wanted_text_of_a_published_set_is_loaded(published, tmp_path):
    corpus = prepare(from_hub(tmp_path, max_tokens=1000))
    assert 1000 <= corpus.train.tokens < 1200
    assert Stream.read < 20 + 60
    assert corpus.valid.documents == 20
    read = Stream.read
    assert prepare(from_hub(tmp_path, max_tokens=1000)).fingerprint == corpus.fingerprint
    assert Stream.read == read, "a second start loads nothing"
    longer = prepare(from_hub(tmp_path, max_tokens=2000))
    assert longer.train.tokens >= 2000
    assert prepare(from_hub(tmp_path, max_tokens=1000)).fingerprint == corpus.fingerprint


def test_a_killed_loading_goes_on_where_it_was(published, tmp_path, monkeypatch):
    once = prepare(from_hub(tmp_path / "once", max_tokens=10**6))
    rows = published["hf:someone/text:en:train"]
    Stream.read = 0

    class Dying(Stream):
        def __iter__(self):
            for row in super().__iter__():
                if self.place > 150:
                    raise KeyboardInterrupt
                yield row

    opened = hub.open_stream
    monkeypatch.setattr(
        hub, "open_stream", lambda spec: Dying(rows) if spec.endswith("train") else opened(spec)
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(from_hub(tmp_path / "twice", max_tokens=10**6))
    monkeypatch.setattr(hub, "open_stream", opened)
    twice = prepare(from_hub(tmp_path / "twice", max_tokens=10**6))
    assert twice.fingerprint == once.fingerprint
    assert Stream.read < 400 + 20 + 30


def test_offline_what_was_kept_is_enough(published, tmp_path, monkeypatch):
    online = prepare(from_hub(tmp_path, max_tokens=1000))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert prepare(from_hub(tmp_path, max_tokens=1000)).fingerprint == online.fingerprint
    with pytest.raises(LowriseError, match="cannot be loaded"):  # the library's own cache has none either
        prepare(from_hub(tmp_path, max_tokens=10**6))


def test_a_field_that_is_not_there_is_named(published, tmp_path):
    with pytest.raises(UsageError, match=r"has no field 'body': it has 'text', 'url'"):
        prepare(from_hub(tmp_path, max_tokens=100, text_key="body"))


@pytest.mark.parametrize("tokens", [None, 1000])
def test_offline_the_right_advice_comes_within_seconds(tokens, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    constants = pytest.importorskip("huggingface_hub.constants")
    with socket.socket() as closed:  # a port that nobody listens on
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(LowriseError, match=r"does not answer.*--data\.source FILES.*HF_ENDPOINT"):
            prepare(from_hub(tmp_path, max_tokens=tokens))
        assert time.monotonic() - started < 10


# --- what a run needs ---------------------------------------------------------------------------------------


def test_a_run_takes_what_its_updates_need_of_the_hub_alone(tmp_path):
    settings = {"train.steps": 100, "train.global_batch_size": 10, "train.seq_len": 100}
    published = load(None, settings | {"data.source": "hf:allenai/c4:en:train"})
    assert with_text_limit(published).data.max_tokens == 105_000 + 100
    assert published.data.max_tokens is None
    for source in ("builtin", str(tmp_path), f"hf:{tmp_path}"):
        assert with_text_limit(load(None, settings | {"data.source": source})).data.max_tokens is None
    said = load(None, settings | {"data.source": "hf:allenai/c4:en:train", "data.max_tokens": 0})
    assert with_text_limit(said).data.max_tokens == 0
    (tmp_path / "config.toml").write_text(with_text_limit(published).to_toml())
    longer = load(None, settings | {"data.source": "hf:allenai/c4:en:train", "train.steps": 150})
    assert with_text_limit(longer, tmp_path).data.max_tokens == 105_100


def test_every_shipped_recipe_from_60m_up_is_limited():
    recipes = sorted((Path(__file__).parents[3] / "recipes").glob("*-60m.toml"))
    assert recipes
    for recipe in recipes:
        config = with_text_limit(load(recipe))
        tokens = config.train.steps * config.train.global_batch_size * config.train.seq_len
        assert tokens <= (config.data.max_tokens or 0) <= 1.06 * tokens


def test_the_real_library_streams_and_goes_on(tmp_path, monkeypatch):
    """With files of this machine in the place of the hub's."""
    datasets = pytest.importorskip("datasets")
    files = [str(write(tmp_path / f"{i}.jsonl", DOCUMENTS[100 * i : 100 * i + 100])) for i in range(4)]
    monkeypatch.setattr(hub, "require_reachable", lambda spec: None)
    monkeypatch.setattr(hub, "PART_BYTES", 5000)
    monkeypatch.setattr(
        hub,
        "open_stream",
        lambda spec: datasets.load_dataset(
            "json", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "hf")
        ),
    )

    def kept(root: Path, limit: int | None) -> list[str]:
        paths = hub.kept_text("hf:a/b", "text", limit, root, lambda done, total, what: None)
        assert paths is not None
        return [json.loads(line)["text"] for path in paths for line in path.read_text().splitlines()]

    assert kept(tmp_path / "one", None) == DOCUMENTS
    first = kept(tmp_path / "two", 30_000)
    assert first == DOCUMENTS[: len(first)]
    assert sum(len(text.encode()) for text in first) >= 30_000
    assert len(kept(tmp_path / "two", 60_000)) > len(first)
    assert kept(tmp_path / "two", None) == DOCUMENTS
    assert kept(tmp_path / "two", 30_000) == first
