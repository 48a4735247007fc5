"""Batch k is a pure function of (corpus, seed, k), and an epoch shows everything once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrise.data import TokenStream, batches
from lowrise.data.shards import ShardWriter, Split, dtype_for
from lowrise.errors import UsageError


def make_stream(
    directory: Path, tokens: int, shard_tokens: int = 1000, vocab_size: int = 65_536
) -> TokenStream:
    """A stream whose token t is t, in shards of `shard_tokens`, so that a token tells its place."""
    dtype = dtype_for(vocab_size)
    shards = []
    for number, first in enumerate(range(0, tokens, shard_tokens)):
        with ShardWriter(directory / f"train-{number:05d}.bin", dtype) as writer:
            writer.write(np.arange(first, min(first + shard_tokens, tokens)))
            shards.append(writer.close())
    return TokenStream(
        directory, "train", Split(1, tokens, tokens, tuple(shards)), dtype, separator_id=7, vocab_size=70_000
    )


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 3000), key=st.binary(max_size=64))
def test_permutation_is_a_bijection(size: int, key: bytes) -> None:
    assert sorted(batches.permute(np.arange(size), size, key).tolist()) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(2**33, 2**61), key=st.binary(max_size=8), first=st.integers(0, 2**32))
def test_permutation_of_a_large_set_stays_inside_without_collisions(
    size: int, key: bytes, first: int
) -> None:
    images = batches.permute(np.arange(first, first + 500), size, key)
    assert len(set(images.tolist())) == 500
    assert images.min() >= 0
    assert images.max() < size


def test_permutations_are_evenly_spread() -> None:
    """Every element lands everywhere about as often, for a size so small that Feistel networks are weak."""
    size, keys = 10, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), batches.permute(np.arange(size), size, b"%d" % key)] += 1
    # Each count is binomial(4000, 1/10): standard deviation 19. Five of them, over 100 counts.
    assert np.abs(counts - keys / size).max() < 95
    # Neighbours stay neighbours in order as often as chance: 9 of 90 ordered pairs.
    followers = sum(
        int((np.diff(batches.permute(np.arange(size), size, b"%d" % key)) == 1).sum()) for key in range(keys)
    )
    assert abs(followers / keys - 9 * 9 / 90) < 0.08  # standard error 0.015


@pytest.mark.parametrize(("tokens", "seq_len"), [(5000, 64), (4097, 64), (130, 64), (65, 64), (1001, 1000)])
def test_an_epoch_has_every_target_once_but_for_a_rest(tokens: int, seq_len: int, tmp_path: Path) -> None:
    stream = make_stream(tmp_path, tokens)
    windows = tokens // seq_len
    assert stream.epochs(1, sequences=windows, seq_len=seq_len) == 1.0
    for epoch in range(3):
        rows = stream.batch(epoch, sequences=windows, seq_len=seq_len, seed=3)
        assert rows.dtype == np.int64
        assert rows.shape == (windows, seq_len + 1)
        assert ((rows[:, 1:] - rows[:, :-1]) % tokens == 1).all(), "a row is a run of the ring"
        targets = Counter(rows[:, 1:].ravel().tolist())
        assert set(targets.values()) == {1}
        assert tokens - len(targets) < seq_len


def test_every_epoch_leaves_out_another_rest_and_has_another_order(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 1000)
    rests, orders = set(), set()
    for epoch in range(8):
        rows = stream.batch(
            epoch, sequences=7, seq_len=128, seed=0
        )  # 7 windows of 128: 104 tokens are left out
        rests.add(frozenset(range(1000)) - set(rows[:, 1:].ravel().tolist()))
        orders.add(tuple(np.argsort(np.argsort((rows[:, 0] - rows[:, 0].min()) % 1000)).tolist()))
    assert len(rests) == 8
    assert len(orders) > 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_row_depends_on_its_number_alone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = make_stream(tmp_path_factory.mktemp("stream"), 1777, shard_tokens=113)
    seq_len = data.draw(st.sampled_from([1, 16, 100, 500]))
    sequences = data.draw(st.integers(1, 50))
    k = data.draw(st.integers(0, 10_000))
    seed = data.draw(st.integers(-5, 2**70))
    rows = data.draw(st.slices(sequences))
    full = stream.batch(k, sequences=sequences, seq_len=seq_len, seed=seed)
    assert (stream.batch(k, sequences=sequences, seq_len=seq_len, seed=seed, rows=rows) == full[rows]).all()
    one_by_one = [
        stream.batch(k * sequences + i, sequences=1, seq_len=seq_len, seed=seed)[0] for i in range(sequences)
    ]
    assert (np.stack(one_by_one) == full).all()
    # Whatever was asked before, a fresh reader gives the same.
    fresh = make_stream(tmp_path_factory.mktemp("stream"), 1777, shard_tokens=500)
    assert (fresh.batch(k, sequences=sequences, seq_len=seq_len, seed=seed) == full).all()


def test_the_order_is_pinned(tmp_path: Path) -> None:
    """A change of these numbers changes what every resumed run sees next: it needs another number in the key
    of the order, and a word to those whose runs are under way."""
    stream = make_stream(tmp_path, 5000)
    starts = stream.batch(11, sequences=6, seq_len=64, seed=42)[:, 0]
    assert starts.tolist() == [778, 2506, 2122, 266, 1418, 4490]
    assert not (stream.batch(11, sequences=6, seq_len=64, seed=43)[:, 0] == starts).all()


@pytest.mark.parametrize("seq_len", [1, 10, 64, 5000])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 640, 641, 1500])
@pytest.mark.parametrize("batch", [1, 4])
def test_validation_windows_have_every_target_once(
    seq_len: int, tokens: int, batch: int, tmp_path: Path
) -> None:
    stream = make_stream(tmp_path, tokens, shard_tokens=100)
    inputs, targets = [], []
    for rows in stream.windows(seq_len, batch):
        assert rows.shape == (batch, seq_len + 1)
        assert rows.dtype == np.int64
        real = rows[:, 1:] >= 0
        assert (rows[:, :-1][real] >= 0).all(), "a real target has a real input"
        inputs += rows[:, :-1][real].tolist()
        targets += rows[:, 1:][real].tolist()
    assert targets == list(range(tokens))
    assert inputs == [7, *range(tokens - 1)], "the first token is predicted from the separator"
    assert len(list(stream.windows(seq_len, batch))) == -(-tokens // (seq_len * batch))


def test_validation_rows_of_ranks_make_up_the_whole(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 1500)
    whole = np.stack(list(stream.windows(64, 4)))
    parts = [np.stack(list(stream.windows(64, 4, rows=slice(rank, None, 2)))) for rank in range(2)]
    assert (whole[:, 0::2] == parts[0]).all()
    assert (whole[:, 1::2] == parts[1]).all()


def test_epochs_and_impossible_requests(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 1000)
    assert stream.epochs(5, sequences=10, seq_len=10) == 0.5
    with pytest.raises(UsageError, match=r"train split has 1,000 tokens, too few for one sequence of 1,000"):
        stream.batch(0, sequences=1, seq_len=1000, seed=0)
    with pytest.raises(UsageError, match="no batch -1"):
        stream.batch(-1, sequences=1, seq_len=10, seed=0)
    with pytest.raises(UsageError, match="sequence length is 0"):
        stream.batch(0, sequences=1, seq_len=0, seed=0)
    with pytest.raises(IndexError):
        stream.read(990, 1001)


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowrise.data.shards.OPEN_SHARDS", 2)
    stream = make_stream(tmp_path, 1000, shard_tokens=10)
    assert stream.read(3, 997).tolist() == list(range(3, 997))
    assert len(stream._reader._open) == 2


def test_large_ids_survive(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 70_000, shard_tokens=70_000, vocab_size=70_000)
    assert stream.read(69_990, 70_000).tolist() == list(range(69_990, 70_000))
    stream.verify()
