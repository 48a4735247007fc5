"""Checkpoints: whole or absent, tensors only, saved on any number of ranks and read on any other, beside
training, found again when the newest is damaged."""

from lowrise.checkpoint.checkpoint import Checkpoint
from lowrise.checkpoint.consolidate import consolidate
from lowrise.checkpoint.saver import Saver
from lowrise.checkpoint.store import CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "Saver", "consolidate"]
