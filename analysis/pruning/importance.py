"""How much each layer, head, dimension and token of a prompt's cache seems to matter, from the prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.similarity.spacing import evenly_spaced
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.events import Observer, PrefillEvent
from kvcompress.policies.snapkv import SnapKV

_WINDOW = 16  # last tokens, which observe the others
_MOST_TOKENS = 512  # scores of tokens that are written


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerImportance:
    """One layer's scores, higher for what matters more. Scores are float64, all on the CPU.

    Attributes:
        layer: index in the model.
        positions: int64 ``[tokens]``, the tokens that the layer holds of the prompt, ascending.
        tokens: ``[kv_heads, tokens]``, mean attention of the last tokens; infinite for those themselves.
        heads: ``[kv_heads]``, mean over the observed tokens of attention times norm of the value.
        key_dimensions: ``[kv_heads, head_dim]``, mean square of the keys.
        value_dimensions: ``[kv_heads, value_dim]``, mean square of the values.
    """

    layer: int
    positions: torch.Tensor
    tokens: torch.Tensor
    heads: torch.Tensor
    key_dimensions: torch.Tensor
    value_dimensions: torch.Tensor

    @property
    def whole(self) -> float:
        """The layer's own score: the mean of its heads'."""
        return float(self.heads.mean())


Importance = tuple[LayerImportance, ...]


class _Listener(Observer):
    """Scores each layer as it comes in; keeps no keys or values."""

    def __init__(self) -> None:
        self.layers: list[LayerImportance] = []

    def on_prefill(self, event: PrefillEvent) -> None:
        """Takes a layer's block: one sequence without padding."""
        visible = event.positions[0, 0] >= 0  # a sliding window has left the others behind
        scored = event.scores.token_scores.shape[-1]
        scores = event.scores.token_scores[0][:, visible[:scored]].double().cpu()  # [K, T - W]
        keys, values = event.keys[0][:, visible].double(), event.values[0][:, visible].double()
        norms = torch.linalg.vector_norm(values, dim=-1).cpu()
        window = norms.shape[1] - scores.shape[1]
        unscored = torch.full((len(scores), window), torch.inf, dtype=torch.float64)
        self.layers.append(
            LayerImportance(
                layer=event.layer_idx,
                positions=event.positions[0, 0][visible].cpu(),
                tokens=torch.cat([scores, unscored], dim=1),
                heads=(scores * norms[:, : scores.shape[1]]).mean(1),
                key_dimensions=keys.square().mean(1).cpu(),
                value_dimensions=values.square().mean(1).cpu(),
            )
        )


def prompt_importance(model: PreTrainedModel, prompt: Sequence[int]) -> Importance:
    """Scores the cache of a prompt.

    Args:
        model: a decoder that the engine can compress, in evaluation mode.
        prompt: its tokens, at least 2.

    Returns:
        One entry per compressed layer, ascending.

    Raises:
        ValueError: a prompt of fewer tokens, or attention that is not finite.
        UnsupportedModelError: the model cannot be compressed.
    """
    if len(prompt) < 2:
        raise ValueError(f"prompt must have at least 2 tokens, so that one can observe another; got {len(prompt)}")
    window = min(_WINDOW, len(prompt) // 2)
    listener = _Listener()
    policy = SnapKV(cache_size=len(prompt) + window, window_size=window, pool_size=1)
    cache = CompressedCache(model, policy, compress_sliding=True)
    cache.add_observer(listener)
    Conversation(model, cache).feed([list(prompt)])
    for entry in listener.layers:
        if not bool(torch.isfinite(entry.heads).all()):
            raise ValueError(
                f"the attention or the values of layer {entry.layer} are not finite. Run the model in a wider dtype."
            )
    return tuple(listener.layers)


def importance_json(importance: Importance, most_tokens: int = _MOST_TOKENS) -> dict[str, Any]:
    """The scores as in ``pruning.json``; None for the last tokens, and those that a sliding window has left behind.

    Args:
        importance: of a prompt.
        most_tokens: of how many tokens at most, evenly spaced; their scores are means over heads.
    """
    total = 1 + max(int(entry.positions[-1]) for entry in importance)
    places = evenly_spaced(total, most_tokens)
    return {
        "layers": [entry.whole for entry in importance],
        "heads": [entry.heads.tolist() for entry in importance],
        "dimensions": {
            "keys": [entry.key_dimensions.tolist() for entry in importance],
            "values": [entry.value_dimensions.tolist() for entry in importance],
        },
        "tokens": [_token_scores(entry, total, places) for entry in importance],
        "token_positions": places.tolist(),
    }


def _token_scores(entry: LayerImportance, total: int, places: torch.Tensor) -> list[float | None]:
    """Mean over heads at each place; None where the layer has no score."""
    scores = torch.full((total,), torch.nan, dtype=torch.float64)
    scores[entry.positions] = entry.tokens.mean(0)
    return [value if isfinite(value) else None for value in scores[places].tolist()]
