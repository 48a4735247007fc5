"""Keys and values of the tokens already seen, for generation token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrise.errors import UsageError


class KVCache:
    """Room for the keys and values of `max_tokens` tokens per sequence in every layer.

    Storage is allocated at the first use of a layer, in the keys' own dtype and device (so it is right under
    autocast). `length` counts the tokens whose keys are stored in all layers; `Llama.hidden` moves it.
    """

    def __init__(self, num_layers: int, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    def check_room(self, new_tokens: int) -> None:
        """Raise `UsageError` if so many more tokens do not fit."""
        if self.length + new_tokens > self.max_tokens:
            raise UsageError(
                f"The KV cache holds {self.max_tokens} tokens; {self.length} are used and {new_tokens} more "
                f"do not fit. Make it with a larger max_tokens."
            )

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B x kv_heads x L x head_dim each); return all of the layer's."""
        end = self.length + keys.shape[2]
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        if stored_keys is None or stored_values is None:
            batch, heads, _, head_dim = keys.shape
            shape = (batch, heads, self.max_tokens, head_dim)
            self._keys[layer] = stored_keys = torch.empty(shape, dtype=keys.dtype, device=keys.device)
            self._values[layer] = stored_values = torch.empty(shape, dtype=keys.dtype, device=keys.device)
        stored_keys[:, :, self.length : end] = keys
        stored_values[:, :, self.length : end] = values
        return stored_keys[:, :, :end], stored_values[:, :, :end]
