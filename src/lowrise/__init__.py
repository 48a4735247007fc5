"""lowrise: pretrain language models from scratch in low rank."""

__version__ = "0.1.0"
