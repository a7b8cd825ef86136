"""kvpress's side of a comparison: `python -m kvcompress.bench.peers.kvpress_side MODEL_FOLDER` in its environment.

Nothing of the engine is imported: the environment holds the transformers that kvpress asks for, which is older.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from kvcompress.bench.peers.answering import Kept, serve
from kvcompress.bench.testbed.location import load_testbed


class KvpressSide:
    """kvpress, used as its own pipeline does: a press is open while the prompt runs, and closed after it.

    Args:
        folder: the embedded model's folder.
    """

    cache_argument = "past_key_values"  # kvpress 0.5.5 finds the cache under no other name

    def __init__(self, folder: Path) -> None:
        self.kvpress: Any = import_module("kvpress")
        self.model: Any = load_testbed(folder=folder)[0]

    def begin(
        self, setup: Mapping[str, Any] | None, *, wants_kept: bool
    ) -> tuple[Cache, AbstractContextManager[object]]:
        """An empty cache, and the press that ``setup`` describes."""
        attention = "sdpa" if setup is None else setup.get("attention", "sdpa")
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)
        for module in self._attentions():
            module.masked_key_indices = None
        press = nullcontext() if setup is None else self._press(setup["press"])(self.model)
        return DynamicCache(), press

    def num_bytes(self, cache: Cache) -> int:
        """Bytes of all keys and values; what is only masked is held."""
        layers: list[Any] = cache.layers
        return sum(
            tensor.untyped_storage().nbytes() for layer in layers for tensor in (layer.keys, layer.values)
        )  # fmt: skip

    def kept_positions(self, cache: Cache, prompts: torch.Tensor) -> Kept:
        """Positions by the keys themselves: a rotated key is found at one position of the full cache alone."""
        modules = self._attentions()
        masks = [getattr(module, "masked_key_indices", None) for module in modules]
        full = DynamicCache()
        self.model(input_ids=prompts, past_key_values=full, use_cache=True, logits_to_keep=1)
        for module, mask in zip(modules, masks, strict=True):
            module.masked_key_indices = mask  # which the prefill above has forgotten, and decoding needs
        layers: list[tuple[Any, Any]] = list(zip(cache.layers, full.layers, strict=True))
        return [
            _matches(layer.keys, everything.keys) if mask is None else _unmasked(mask, everything.keys)
            for mask, (layer, everything) in zip(masks, layers, strict=True)
        ]

    def tied_positions(self, kept: Kept) -> None:
        """None: a press does not tell its scores."""

    def _press(self, description: Mapping[str, Any]) -> Any:
        """Makes a press; where an argument is itself a description, another press."""
        given = dict(description)
        kind = given.pop("kind")
        made = {name: self._press(value) if isinstance(value, Mapping) else value for name, value in given.items()}
        return getattr(self.kvpress, kind)(**made)

    def _attentions(self) -> list[Any]:
        return [layer.self_attn for layer in self.model.model.layers]


def _matches(kept: torch.Tensor, full: torch.Tensor) -> list[list[list[int]]]:
    """Where each kept key (``[batch, kv_heads, kept, head_dim]``) stands in the full cache; exact copies."""
    rows = []
    for sample in range(kept.shape[0]):
        heads = []
        for head in range(kept.shape[1]):
            place = {row.tobytes(): index for index, row in enumerate(full[sample, head].numpy())}
            if len(place) < full.shape[2]:
                raise RuntimeError("two positions of the full cache have the same key, so positions cannot be told")
            heads.append(sorted(place[row.tobytes()] for row in kept[sample, head].numpy()))
        rows.append(heads)
    return rows


def _unmasked(masked: tuple[torch.Tensor, ...], full: torch.Tensor) -> list[list[list[int]]]:
    """Positions that are left of a full cache when the masked places are taken out."""
    keeps = torch.ones(full.shape[:3], dtype=torch.bool)
    keeps[masked] = False
    batch, heads = full.shape[:2]
    left = {(b, h): keeps[b, h].nonzero().flatten().tolist() for b, h in product(range(batch), range(heads))}
    return [[left[b, h] for h in range(heads)] for b in range(batch)]


if __name__ == "__main__":
    serve(lambda: KvpressSide(Path(sys.argv[1])))
