"""What one layer's low-rank cache does to the next token: layer sensitivity, measured on the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.factorisation.ranks import Ranks
from kvcompress.analysis.factorisation.tucker import decompose
from kvcompress.analysis.pruning.consequences import consequences
from kvcompress.analysis.pruning.edited_cache import Edited, PromptStates


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """One layer's cache of the prompt replaced by its low-rank reconstruction, all others whole.

    Attributes:
        layer: index in the model.
        relative_error_keys: ``‖X − X̂‖ / ‖X‖`` of the keys, mean over windows.
        relative_error_values: the same of the values.
        kl: mean of KL(full || replaced) of the next token, in nats.
        top1: share of positions with the same likeliest token.
        perplexity: of the continuation with the replaced layer.
        full_perplexity: the same with the full cache.
    """

    layer: int
    relative_error_keys: float
    relative_error_values: float
    kl: float
    top1: float
    perplexity: float
    full_perplexity: float

    @property
    def relative_error(self) -> float:
        """The mean of the keys' and the values'."""
        return (self.relative_error_keys + self.relative_error_values) / 2

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as in ``tucker.json``; a number that is not finite becomes None."""
        names = ("layer", "relative_error", "relative_error_keys", "relative_error_values")
        measured = ("kl", "top1", "perplexity", "full_perplexity")
        values = {name: getattr(self, name) for name in (*names, *measured)}
        return {name: value if isfinite(value) else None for name, value in values.items()}


@dataclass(slots=True)
class _LowRank:
    """An edit that replaces one layer's keys and values, and notes their errors."""

    layer: int
    ranks: Ranks
    errors: dict[str, float] = field(default_factory=dict)

    def __call__(self, states: PromptStates) -> Edited:
        if states.layer != self.layer:
            return Edited(keys=states.keys, values=states.values)
        return Edited(keys=self._replaced("keys", states.keys), values=self._replaced("values", states.values))

    def _replaced(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The reconstruction of ``[1, kv_heads, tokens, head_dim]``, in its dtype and on its device."""
        found = decompose(tensor[0], self.ranks)
        self.errors[name] = found.relative_error
        return found.reconstruct().to(tensor)[None]


def layer_sensitivity(
    model: PreTrainedModel, windows: torch.Tensor, layer: int, ranks: Ranks, *, context: int
) -> LayerSensitivity:
    """Replaces one layer's cached keys and values of each prompt by Tucker reconstructions; measures the logits.

    Args:
        model: a decoder that the engine can compress, in evaluation mode.
        windows: int64 ``[windows, context + steps + 1]``.
        layer: index in the model.
        ranks: of both decompositions.
        context: tokens of each prompt.

    Raises:
        ValueError: no such compressed layer, or ranks that its keys cannot have.
        UnsupportedModelError: the model cannot be compressed.
    """
    edits = [_LowRank(layer, ranks) for _ in windows]
    found = consequences(model, windows, context=context, edits=edits)
    if not all(edit.errors for edit in edits):
        raise ValueError(f"layer must be one that the engine compresses; got {layer} for {type(model).__name__}")
    return LayerSensitivity(
        layer=layer,
        relative_error_keys=sum(edit.errors["keys"] for edit in edits) / len(edits),
        relative_error_values=sum(edit.errors["values"] for edit in edits) / len(edits),
        kl=found.kl,
        top1=found.top1,
        perplexity=found.perplexity,
        full_perplexity=found.full_perplexity,
    )


def sensitivities(
    model: PreTrainedModel, windows: torch.Tensor, layers: Sequence[int], ranks: Ranks, *, context: int
) -> list[LayerSensitivity]:
    """:func:`layer_sensitivity` of several layers."""
    return [layer_sensitivity(model, windows, layer, ranks, context=context) for layer in layers]
