"""Options that are gone: saved groups may have them with the value that holds for good, and with no other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.names import REMOVED_OPTIONS
from lowrise.optim import LORO


@pytest.mark.parametrize("option", REMOVED_OPTIONS)
def test_a_saved_group_with_a_removed_option(option: str) -> None:
    def build() -> LORO:
        torch.manual_seed(0)
        pair = [nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(5, 2))]
        return LORO([{"params": pair, "role": "factors"}], hidden_size=6)

    saved = build().state_dict()
    saved["param_groups"][0][option] = REMOVED_OPTIONS[option]
    build().load_state_dict(copy.deepcopy(saved))
    saved["param_groups"][0][option] = "another"
    with pytest.raises(UsageError, match=f"0 was saved with {option} = 'another', which is gone"):
        build().load_state_dict(saved)
