"""A compressed layer beside whose attention a linear one keeps states (Falcon-H1, Zamba 2)."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from kvcompress.engine.layer import CompressedLayer
from kvcompress.errors import CacheStateError


class StatefulCompressedLayer(CompressedLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """Compresses the keys and values of a layer, and keeps its states, which have a fixed size, as transformers does.

    Args:
        layer_idx: index of the layer in the model.
        static: see :class:`CompressedLayer`.
        number_of_states: states of each kind; None where this version of transformers has one.
    """

    def __init__(self, layer_idx: int, static: bool, number_of_states: int | None) -> None:
        self._states: dict[str, int] = {} if number_of_states is None else {"number_of_states": number_of_states}
        CompressedLayer.__init__(self, layer_idx, None, static)

    def _clear(self) -> None:
        LinearAttentionLayer.__init__(self, **self._states)
        super()._clear()

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Notes dtype and device of keys (given by position), or makes states (given by name)."""
        if args:
            CompressedLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the given sequences, in the given order (int64, or bool ``[batch]``)."""
        super().batch_select_indices(indices)
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        LinearAttentionLayer.reorder_cache(self, indices.long())  # type: ignore[arg-type]

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Never: a state of all tokens cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: a state of all tokens cannot be taken back."""
        raise CacheStateError(
            f"layer {self.layer_idx} keeps a linear-attention state of all tokens, which cannot be cropped (assisted "
            "decoding and prompt lookup crop). Generate without an assistant."
        )
