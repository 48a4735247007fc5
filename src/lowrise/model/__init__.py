"""The Llama decoder, its published sizes, and its loss."""

from typing import TYPE_CHECKING

from lowrise.lazy import importer
from lowrise.model.config import PRESETS, LlamaConfig

if TYPE_CHECKING:
    from lowrise.model.build import build_model
    from lowrise.model.cache import KVCache
    from lowrise.model.llama import Llama
    from lowrise.model.loss import head_loss, next_token_loss

__all__ = ["PRESETS", "KVCache", "Llama", "LlamaConfig", "build_model", "head_loss", "next_token_loss"]

_HOMES = {
    "KVCache": "cache",
    "Llama": "llama",
    "build_model": "build",
    "head_loss": "loss",
    "next_token_loss": "loss",
}
__getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
