"""Text -> tokenizer -> token shards -> batch k."""

from typing import TYPE_CHECKING

from lowrise.data.config import DataConfig
from lowrise.lazy import importer

if TYPE_CHECKING:
    from lowrise.data.batches import TokenStream
    from lowrise.data.corpus import Corpus, inspect, open_corpus
    from lowrise.data.preparation import cache_root, prepare, prepare_held_out
    from lowrise.data.tokenizer import Tokenizer, train_bpe

__all__ = [
    "Corpus",
    "DataConfig",
    "TokenStream",
    "Tokenizer",
    "cache_root",
    "inspect",
    "open_corpus",
    "prepare",
    "prepare_held_out",
    "train_bpe",
]

_HOMES = {
    "Corpus": "corpus",
    "TokenStream": "batches",
    "Tokenizer": "tokenizer",
    "cache_root": "preparation",
    "inspect": "corpus",
    "open_corpus": "corpus",
    "prepare": "preparation",
    "prepare_held_out": "preparation",
    "train_bpe": "tokenizer",
}
__getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
