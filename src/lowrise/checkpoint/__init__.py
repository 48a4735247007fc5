"""Checkpoints: whole or absent, tensors only, saved on any number of ranks and read on any other, beside
training, found again when the newest is damaged."""

from lowrise.checkpoint.reader import Checkpoint
from lowrise.checkpoint.saver import Saver
from lowrise.checkpoint.store import CheckpointStore, consolidate

__all__ = ["Checkpoint", "CheckpointStore", "Saver", "consolidate"]
