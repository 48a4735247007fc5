"""The loop and what belongs to a run."""

from lowrise.train.loop import Interrupted, Trainer, train
from lowrise.train.plan import RunPlan, plan_run
from lowrise.train.run_directory import RunDirectory, open_run

__all__ = ["Interrupted", "RunDirectory", "RunPlan", "Trainer", "open_run", "plan_run", "train"]
