"""Our side of a comparison, a process of its own: `python -m kvcompress.bench.peers.our_side MODEL_FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from kvcompress import CompressedCache, Observer, PrefillEvent, detach, make_policy
from kvcompress.bench.peers.answering import Kept, serve
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.report import layer_bytes

_TIE: Final = 1e-4  # of the score at the cut: what two computations of it in float32 may differ by


class _Scores(Observer):
    """Keeps the token scores of each layer."""

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        """Keeps a layer's scores."""
        self.layers.append(event.scores.token_scores.clone())


class OurSide:
    """The engine.

    Args:
        folder: the embedded model's folder.
    """

    cache_argument = next(iter(cache_argument(None)))

    def __init__(self, folder: Path) -> None:
        self.model: Any = load_testbed(folder=folder)[0]
        self.scores = _Scores()

    def begin(
        self, setup: Mapping[str, Any] | None, *, wants_kept: bool
    ) -> tuple[Cache, AbstractContextManager[object]]:
        """A cache of the policy that ``setup`` names; compression is part of the cache."""
        if setup is None:
            detach(self.model)
            return DynamicCache(config=self.model.config), nullcontext()
        cache = CompressedCache(self.model, make_policy(**setup))
        if wants_kept:
            self.scores = _Scores()
            cache.add_observer(self.scores)
        return cache, nullcontext()

    def num_bytes(self, cache: Cache) -> int:
        """Bytes of all storages, bookkeeping included."""
        return sum(layer_bytes(layer) for layer in cache.layers)

    def kept_positions(self, cache: CompressedCache, prompts: torch.Tensor) -> Kept:
        """What the cache itself says."""
        layers = [cache.kept_positions(layer) for layer in range(len(cache.layers))]
        return [[[[int(p) for p in row if p >= 0] for row in sample] for sample in layer] for layer in layers]

    def tied_positions(self, kept: Kept) -> Kept:
        """Positions whose score is that of the worst token kept, but for rounding."""
        return [
            [
                [tied(scores[head], kept_row) for head, kept_row in enumerate(rows)]
                for scores, rows in zip(layer, samples, strict=True)
            ]
            for layer, samples in zip(self.scores.layers, kept, strict=True)
        ]


def tied(scores: torch.Tensor, kept: list[int]) -> list[int]:
    """Positions at the cut.

    Args:
        scores: ``[scored]``, of the tokens before the window.
        kept: positions kept.
    """
    chosen = [position for position in kept if position < len(scores)]
    if not chosen:
        return []
    cut = scores[chosen].min()
    near = (scores - cut).abs() <= _TIE * cut.abs()
    positions: list[int] = near.nonzero().flatten().tolist()
    return positions


if __name__ == "__main__":
    serve(lambda: OurSide(Path(sys.argv[1])))
