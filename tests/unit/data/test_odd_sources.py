"""Sources that are not quite what their names say, and folders that are not quite trees."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lowrise.data import Corpus, DataConfig, corpora, prepare
from lowrise.data import walk as walking
from lowrise.data.walk import walk
from lowrise.errors import UsageError


def prepared(folder: Path, source: str | Path) -> Corpus:
    held = folder / "held-out" / "v.txt"
    held.parent.mkdir(exist_ok=True)
    held.write_text("held out text")
    return prepare(
        DataConfig(source=[str(source)], valid=[str(held)], vocab_size=300, cache=str(folder / "cache"))
    )


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_linked_folders_are_read_and_each_file_once(tmp_path: Path, pattern: str) -> None:
    real, corpus = tmp_path / "real", tmp_path / "corpus"
    real.mkdir()
    corpus.mkdir()
    (real / "a.txt").write_text("one text")
    (corpus / "b.txt").write_text("another")
    (corpus / "linked").symlink_to("../real")
    (corpus / "circle").symlink_to(".")
    (corpus / "twice.txt").symlink_to("b.txt")
    assert prepared(tmp_path, corpus / pattern).train.documents == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/x/*.txt", ["x/a.txt", "x/c.txt"]),  # the own path of a.txt does not fit
        ("x/*.txt", ["x/a.txt", "x/c.txt"]),
        ("**/linked/*.txt", ["linked/a.txt"]),
        ("*/*.txt", ["real/a.txt", "x/c.txt"]),
        ("**/*.txt", ["real/a.txt", "x/c.txt"]),
        ("**", ["real/a.txt", "x/c.txt"]),
        ("**/.hidden/*.txt", [".hidden/h.txt"]),
        ("r*l/[ab].txt", ["real/a.txt"]),
        ("**/*.md", []),
    ],
)
def test_a_pattern_matches_paths_and_then_counts_files(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    for name in ("real/a.txt", "x/c.txt", ".hidden/h.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    (tmp_path / "x" / "a.txt").symlink_to("../real/a.txt")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "gone").symlink_to("nothing.txt")
    if pattern == "**":
        (tmp_path / "gone").unlink()
    assert [p.relative_to(tmp_path).as_posix() for p in walk(tmp_path, Path(pattern).parts)] == expected


@pytest.mark.parametrize("pattern", [("**",), ("**", "*.txt")])
def test_folders_that_link_to_each_other_are_entered_once(
    tmp_path: Path, pattern: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, entered = 9, []
    for i in range(count):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "t.txt").write_text("text")
        for j in range(count):
            (tmp_path / str(i) / f"to-{j}").symlink_to(f"../{j}")
    entries = walking._entries
    monkeypatch.setattr(walking, "_entries", lambda folder: entered.append(folder) or entries(folder))
    assert walk(tmp_path, pattern) == [tmp_path / str(i) / "t.txt" for i in range(count)]
    assert len(entered) == count + 1


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "gone").symlink_to("nothing")
    with pytest.raises(UsageError, match="gone is a link that leads nowhere"):
        prepared(tmp_path, tmp_path / "corpus")


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who is no administrator; played, since tests may be run by one."""
    (tmp_path / "corpus" / "locked").mkdir(parents=True)
    (tmp_path / "corpus" / "a.txt").write_text("text")
    scandir = os.scandir

    def refused(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UsageError, match=r"folder .*locked cannot be read \(Permission denied\)"):
        prepared(tmp_path, tmp_path / "corpus" / pattern)


@pytest.mark.parametrize("name", ["D.JSONL", "d.jsonlines", "d.jl", "d.NdJson", "d.jsonl.GZ"])
def test_endings_count_in_any_case(tmp_path: Path, name: str) -> None:
    content = b"".join(json.dumps({"text": word}).encode() + b"\n" for word in ("one", "two"))
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    corpus = prepared(tmp_path, tmp_path / name)
    assert corpus.train.documents == 2
    assert corpus.train.text_bytes == 6


def tar_of_text() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"text"))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("texts.tar", tar_of_text(), "a tar archive"),
        ("texts.tar.gz", gzip.compress(tar_of_text()), "a tar archive"),
        ("texts.tar.zst", zstandard.compress(tar_of_text()), "a tar archive"),
        ("page.txt", b"%PDF-1.7 ...", "a PDF"),
        ("a.txt", b"text with a zero\0byte", "zero byte at 16"),
        ("a.txt", gzip.compress(b"text"), "gzip data"),
        ("a.txt", POINTER, "Git LFS pointer"),
        ("a.jsonl.gz", POINTER, "Git LFS pointer"),
        ("a.parquet", POINTER, "Git LFS pointer"),
        ("a.jsonl", b'{"id": ' + b"7" * 5000 + b', "text": "one"}\n', "line 1: not a JSON object"),
        ("a.json", b'[{"text": "one"}]', "array"),
        ("a.txt", b"/annex/objects/SHA256E-s5--00.txt\n", "git-annex pointer"),
        ("a.txt", b"%!PS-Adobe-3.0\n", "PostScript"),
        ("a.doc", b"{\\rtf1 text}", "rich text"),
        ("part-00000", b'{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n', "end in .jsonl"),
        ("a.jsonl.1", b'\xef\xbb\xbf{"text": "one"}\r\n', "end in .jsonl"),
        ("part-00001.gz", gzip.compress(b'{"text": "one"}'), "end in .jsonl"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # not the bytes, which hold a date
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        prepared(tmp_path, tmp_path / name)


@pytest.mark.parametrize("text", ['{"other": "key"}\n', '{"text": 1}\n', "{not JSON}\n", 'a {"text": "b"}\n'])
def test_text_with_braces_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert [chunk.text for file in found(tmp_path / "a.txt") for chunk in file.chunks("text")] == [text, ""]


def found(path: Path) -> list[corpora.SourceFile]:
    return corpora.find_sources(DataConfig(source=(str(path),)))


def test_hidden_names_and_caches_are_left_out_of_a_folder_and_told(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    left = (".git/HEAD", ".ipynb_checkpoints/a.txt", "deep/__pycache__/a.pyc", ".DS_Store")
    for name in ("a.py", "deep/b.py", *left):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_bytes(b"\xcb\r\r\n\0" if name in left else b"text")
    with pytest.warns(
        UserWarning, match=r"^4 hidden .* left out \(.DS_Store, .git, .ipynb_checkpoints and 1 more"
    ):
        assert prepared(tmp_path, corpus).train.documents == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glob says itself what it takes, and a prepared corpus was told
        assert prepared(tmp_path, corpus).train.documents == 2
        assert prepared(tmp_path, corpus / "**/*.py").train.documents == 2
    assert [file.paths[0].name for file in found(corpus / "deep/__pycache__/*")] == ["a.pyc"]


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"ok \xff\xfe")
    column = pyarrow.StringArray.from_buffers(1, offsets, data)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="not UTF-8"):
        prepared(tmp_path, tmp_path / "a.parquet")


def test_a_zstandard_window_of_published_dumps_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(stream.compress(b"some text " * 100) + stream.flush())
    assert prepared(tmp_path, tmp_path / "a.txt.zst").train.text_bytes == 1000
