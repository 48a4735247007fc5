"""How much text a run needs, where that is not said."""

from __future__ import annotations

import copy
import math
from pathlib import Path

from lowrise.config import RunConfig
from lowrise.data.hub import is_on_hub
from lowrise.runs.trust import recorded_values

MARGIN = 1.05
"""Text for so many times the updates asked for, so that a run can be made a little longer on fresh text."""


def with_text_limit(config: RunConfig, folder: Path | None = None) -> RunConfig:
    """The configuration with `data.max_tokens` set where it is unset and text comes from the hub: to what the
    run in `folder` has, if there is one, else to what the updates read in one pass, and a margin.

    Text of this machine is taken whole: it is there already, and no run changes.
    """
    data, train = config.data, config.train
    if data.max_tokens is not None or not any(map(is_on_hub, data.source)):
        return config
    config = copy.deepcopy(config)
    recorded = recorded_values(folder).get("data", {}) if folder is not None else {}
    if isinstance(recorded, dict) and isinstance(recorded.get("max_tokens"), int):
        config.data.max_tokens = recorded["max_tokens"]
    if config.data.max_tokens is None:
        needed = train.steps * train.global_batch_size * train.seq_len
        config.data.max_tokens = math.ceil(MARGIN * needed) + train.seq_len
    return config
