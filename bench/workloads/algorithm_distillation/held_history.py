"""What an agent holds of its history: keys, values, and the attention that they got lately."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True, kw_only=True)
class HeldLayer:
    """One layer's tokens, in the order in which they came.

    Attributes:
        keys: [rooms, kv_heads, held, head_dim], rotary embedding applied.
        values: [rooms, kv_heads, held, head_dim].
        mass: float32 [rooms, kv_heads, held], attention that the queries since the last compression paid to each.
    """

    keys: Tensor
    values: Tensor
    mass: Tensor

    def add_mass(self, attention: Tensor) -> None:
        """Add what new queries attended to.

        Args:
            attention: [rooms, query_heads, new, held], probabilities.
        """
        kv_heads = self.mass.shape[1]
        summed = attention.float().unflatten(1, (kv_heads, -1)).sum(dim=(2, 3))
        self.mass = F.pad(self.mass, (0, summed.shape[-1] - self.mass.shape[-1])) + summed


@dataclass(slots=True, kw_only=True)
class HeldHistory:
    """All layers' tokens.

    Attributes:
        layers: the model's layers, all with the same number of tokens.
        merged: float32 [held], how many tokens of the history are in each that is held.
    """

    layers: list[HeldLayer]
    merged: Tensor

    @property
    def held(self) -> int:
        """Return the tokens held."""
        return self.merged.numel()


def take(layer: HeldLayer, places: Tensor) -> HeldLayer:
    """Return a layer with some of its tokens.

    Args:
        layer: what is held.
        places: int64 [rooms, kept], ascending, the same for all heads of a room.

    Returns:
        The tokens at these places; their attention mass begins anew.
    """
    index = places[:, None].expand(-1, layer.keys.shape[1], -1)
    rows = index[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
    return HeldLayer(
        keys=layer.keys.gather(2, rows),
        values=layer.values.gather(2, rows),
        mass=torch.zeros(index.shape),
    )
