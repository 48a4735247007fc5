"""Checkpoints: whole or absent, tensors only, found again when the newest is damaged."""

from lowrise.checkpoint.store import Checkpoint, CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore"]
