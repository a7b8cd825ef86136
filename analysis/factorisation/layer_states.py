"""A model's cached keys and values of a text, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation

Target = Literal["keys", "values"]
TARGETS: tuple[Target, Target] = ("keys", "values")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerStates:
    """What one layer caches of a text.

    Attributes:
        layer: index in the model.
        keys: ``[kv_heads, tokens, head_dim]``, as cached (rotary embedding applied), the model's dtype and device.
        values: ``[kv_heads, tokens, value_dim]``.
    """

    layer: int
    keys: torch.Tensor
    values: torch.Tensor

    def of(self, target: Target) -> torch.Tensor:
        """The keys, or the values."""
        return self.keys if target == "keys" else self.values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedText:
    """A text's whole cache.

    Attributes:
        layers: the layers that keep every token, ascending.
        left_out: layers that do not: of a sliding window shorter than the text, of a state in place of keys.
    """

    layers: tuple[LayerStates, ...]
    left_out: tuple[int, ...]

    def pick(self, wanted: Sequence[int] | None) -> tuple[LayerStates, ...]:
        """Layers by index, all where None.

        Raises:
            ValueError: a layer that is not there.
        """
        if wanted is None:
            return self.layers
        known = {states.layer: states for states in self.layers}
        missing = sorted(set(wanted) - set(known))
        if missing:
            raise ValueError(
                f"layers must be among those that keep every token ({', '.join(map(str, known))}); got "
                f"{', '.join(map(str, missing))}"
            )
        return tuple(known[layer] for layer in sorted(set(wanted)))


def cached_text(model: PreTrainedModel, ids: Sequence[int]) -> CachedText:
    """Runs a text through a model and keeps what it caches.

    Args:
        model: a decoder, in evaluation mode.
        ids: the text's tokens, at least one.

    Raises:
        ValueError: no tokens, or a model of which no layer keeps every token.
    """
    cache = DynamicCache(config=model.config)
    Conversation(model, cache).feed([list(ids)])
    layers, left_out = [], []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != len(ids):
            left_out.append(index)
        else:
            layers.append(LayerStates(layer=index, keys=keys[0], values=values[0]))
    if not layers:
        raise ValueError(
            f"no layer of {type(model).__name__} keeps all {len(ids)} tokens of the text; give a text that is shorter "
            "than its sliding window"
        )
    return CachedText(layers=tuple(layers), left_out=tuple(left_out))
