"""The loop and what belongs to a run."""

from lowrise.runs.directory import RunDirectory, open_run
from lowrise.runs.plan import RunPlan, plan_run
from lowrise.train.loop import Interrupted, Trainer, train
from lowrise.train.trackers import Tracker

__all__ = ["Interrupted", "RunDirectory", "RunPlan", "Tracker", "Trainer", "open_run", "plan_run", "train"]
