"""Text -> tokenizer -> token shards -> batch k."""

from lowrise.data.batches import TokenStream
from lowrise.data.config import DataConfig
from lowrise.data.corpus import Corpus, inspect, open_corpus
from lowrise.data.prepare import cache_root, prepare, prepare_held_out
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
