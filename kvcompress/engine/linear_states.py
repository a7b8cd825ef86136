"""Layers of a cache that keep a state of fixed size instead of keys, or beside them."""

from __future__ import annotations

from typing import Any

import torch


def keeps_no_keys(layer: Any) -> bool:
    """Whether a layer keeps a linear-attention state of fixed size, or nothing at all (a feed-forward layer)."""
    is_linear = hasattr(layer, "update_recurrent_state") and not hasattr(layer, "update")
    return is_linear or type(layer).__name__ == "DummyLayer"  # which transformers 5.17 does not have


def linear_states(layer: Any) -> list[torch.Tensor]:
    """The tensors that linear attention keeps in a layer, convolution states first; none in other layers."""
    found: list[torch.Tensor] = []
    if not hasattr(layer, "conv_states"):  # asked of every layer at every replay of a captured step
        return found
    for states in (layer.conv_states, layer.recurrent_states):
        values = states.values() if isinstance(states, dict) else (states,)  # before transformers 5.17 a tensor
        found += [value for value in values if isinstance(value, torch.Tensor)]
    return found
