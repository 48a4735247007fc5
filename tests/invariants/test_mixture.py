"""Sources mixed by weight: exact shares, whole epochs of every source, nothing that depends on the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrise.data import DataConfig, TokenStream, prepare
from lowrise.data.mixture import Part, assign
from lowrise.data.shards import ShardWriter, Split, dtype_for
from lowrise.errors import UsageError

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, first=st.integers(0, 2**40), count=st.integers(1, 300))
def test_shares_are_exact_and_every_source_counts_on_by_one(weights, first: int, count: int) -> None:
    numbers = np.arange(first, first + count)
    sources, within = assign(numbers, weights)
    for source, weight in enumerate(weights):
        mine = within[sources == source]
        assert (np.diff(mine) == 1).all(), "no sequence of a source is left out or read twice"
        if len(mine):
            # the docstring's bound, and 2^-32 of rounding a level for each of the sequences so far
            slack = source + 1 + len(weights) * (first + count) * 2.0**-31
            assert abs(mine[-1] + 1 - (first + count) * weight / sum(weights)) <= slack + (
                first + count - numbers[sources == source][-1]
            )


def test_first_sequences_of_all_sources_have_number_zero() -> None:
    sources, within = assign(range(60), [0.6, 0.3, 0.1])
    assert {int(s): int(within[sources == s].min()) for s in set(sources)} == {0: 0, 1: 0, 2: 0}
    assert Counter(sources.tolist()) == {0: 36, 1: 18, 2: 6}


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, cut=st.integers(1, 99))
def test_a_piece_of_the_batch_is_assigned_as_in_the_whole(weights, cut: int) -> None:
    whole = assign(range(500, 600), weights)
    pieces = assign(range(500, 500 + cut), weights), assign(range(500 + cut, 600), weights)
    for i in range(2):
        assert np.concatenate([piece[i] for piece in pieces]).tolist() == whole[i].tolist()


def mixed(directory: Path, sizes: list[int], weights: list[float]) -> TokenStream:
    """Token t is t; source i holds `sizes[i]` of them."""
    dtype = dtype_for(65_536)
    with ShardWriter(directory / "train-00000.bin", dtype) as writer:
        writer.write(np.arange(sum(sizes)))
        shard = writer.close()
    stream = TokenStream(
        directory, "train", Split(1, sum(sizes), sum(sizes), (shard,)), dtype, 7, vocab_size=70_000
    )
    firsts = np.cumsum([0, *sizes[:-1]])
    return stream.mixed(
        [Part(f"s{i}", int(f), n, w) for i, (f, n, w) in enumerate(zip(firsts, sizes, weights, strict=True))]
    )


def test_every_source_is_read_in_whole_epochs_within_its_own_borders(tmp_path: Path) -> None:
    sizes, seq_len = [1000, 480, 333], 16
    stream = mixed(tmp_path, sizes, [0.5, 0.25, 0.25])
    # so many sequences that source 1 has been read three times: 3 * 30 windows at a quarter of the sequences
    rows = stream.batch(0, sequences=360, seq_len=seq_len, seed=5)
    firsts = np.cumsum([0, *sizes])
    sources, _ = assign(range(360), [0.5, 0.25, 0.25])
    seen: Counter[int] = Counter()
    for row, source in zip(rows, sources, strict=True):
        low, n = firsts[source], sizes[source]
        assert ((row >= low) & (row < low + n)).all(), "a sequence never leaves its source"
        assert ((row[1:] - row[:-1]) % n == 1 % n).all()
        if source == 1:
            seen.update(row[1:].tolist())
    assert set(seen.values()) == {3}
    assert len(seen) == 480
    assert stream.epochs(1, sequences=360, seq_len=seq_len) == pytest.approx(90 / (333 // 16))


def test_batch_size_and_ranks_do_not_change_the_stream(tmp_path: Path) -> None:
    stream = mixed(tmp_path, [500, 300], [3, 1])
    whole = stream.batch(2, sequences=12, seq_len=8, seed=1)
    halves = [stream.batch(2, sequences=12, seq_len=8, seed=1, rows=slice(r * 6, r * 6 + 6)) for r in (0, 1)]
    assert np.array_equal(np.concatenate(halves), whole)
    smaller = [stream.batch(k, sequences=4, seq_len=8, seed=1) for k in (6, 7, 8)]
    assert np.array_equal(np.concatenate(smaller), whole)


def test_one_source_is_the_stream_without_weights(tmp_path: Path) -> None:
    stream = mixed(tmp_path, [700], [2.0])
    plain = stream.mixed([])
    for k in range(4):
        options = {"sequences": 10, "seq_len": 20, "seed": 3}
        assert np.array_equal(stream.batch(k, **options), plain.batch(k, **options))


@pytest.fixture
def two(tmp_path: Path) -> Callable[..., DataConfig]:
    """A directory of two files with the letter a, and a file with the letter b."""
    (tmp_path / "a").mkdir()
    for name, text in (("a/1.txt", "a a a " * 400), ("a/2.txt", "aa aa " * 300), ("b.txt", "b b bb " * 200)):
        (tmp_path / name).write_text(text)
    (tmp_path / "valid.txt").write_text("a b " * 50)

    def config(**changes: object) -> DataConfig:
        values = {
            "source": (str(tmp_path / "a"), str(tmp_path / "b.txt")),
            "valid": str(tmp_path / "valid.txt"),
            "vocab_size": 258,
            "cache": str(tmp_path / "cache"),
        }
        return DataConfig(**{**values, **changes})  # type: ignore[arg-type]

    return config


def test_a_prepared_mixture_reads_its_sources_by_weight(two: Callable[..., DataConfig]) -> None:
    corpus = prepare(two(weights=(1, 3)))
    rows = corpus.train.batch(0, sequences=40, seq_len=16, seed=0)
    texts = [corpus.tokenizer.decode(row.tolist()) for row in rows]
    assert all(("a" in text) != ("b" in text) for text in texts)
    assert sum("b" in text for text in texts) == 30
    info = corpus.info()["train"]["mixture"]
    assert [part["share"] for part in info.values()] == [0.25, 0.75]
    assert sum(part["tokens"] for part in info.values()) == corpus.train.tokens
    assert "75%" in str(corpus)


def test_weights_are_no_part_of_what_is_prepared(two: Callable[..., DataConfig]) -> None:
    first, second = prepare(two(weights=(1, 3))), prepare(two())
    assert first.directory == second.directory
    assert "mixture" not in second.info()["train"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": (1.0,)}, "1 numbers for 2 sources"),
        ({"weights": (1.0, 0.0)}, "above 0"),
        ({"weights": (1.0, float("nan"))}, "above 0"),
    ],
)
def test_weights_that_cannot_be_right(two, changes, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        two(**changes)


def test_a_source_too_short_for_a_sequence_is_named(two: Callable[..., DataConfig]) -> None:
    corpus = prepare(two(weights=(1, 1)))
    with pytest.raises(UsageError, match=r"b\.txt has"):
        corpus.train.batch(0, sequences=2, seq_len=2500, seed=0)
