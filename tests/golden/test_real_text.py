"""Real text: English Wikipedia with the tokenizer that was made for it."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from lowrise.data import DataConfig, prepare


def test_wikipedia_decodes_to_itself_at_the_published_density(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    corpus = prepare(
        DataConfig(
            source=(str(data / "wiki-test.jsonl.xz"),),
            valid=(str(data / "wiki-valid.jsonl.xz"),),
            tokenizer=str(data / "tokenizers" / "bpe-4096.json"),
            cache=str(tmp_path),
        )
    )
    with lzma.open(data / "wiki-valid.jsonl.xz", "rt", encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    end = corpus.tokenizer.separator_token
    assert corpus.tokenizer.decode(corpus.valid.read(0, corpus.valid.tokens)) == "".join(
        d + end for d in documents
    )
    # From the table of files in the README beside the text.
    assert (corpus.valid.documents, corpus.valid.text_bytes) == (245, 1_502_666)
    assert (corpus.train.documents, corpus.train.text_bytes) == (258, 1_524_246)
    # 3.274 bytes a token there, three decimals; it counts no separators.
    density = corpus.valid.text_bytes / (corpus.valid.tokens - corpus.valid.documents)
    assert abs(density - 3.274) <= 0.001
