"""The Llama decoder, its published sizes, and its loss."""

from lowrise.model.build import build_model
from lowrise.model.cache import KVCache
from lowrise.model.config import PRESETS, LlamaConfig
from lowrise.model.llama import Llama
from lowrise.model.loss import head_loss, next_token_loss

__all__ = ["PRESETS", "KVCache", "Llama", "LlamaConfig", "build_model", "head_loss", "next_token_loss"]
