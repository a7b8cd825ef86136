"""Hears models of transformers through the engine's attention function, with and without compression."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.capture.layer_call import DecodeCall, PlainCall, PrefillCall
from kvcompress.analysis.capture.sink import AttentionSink
from kvcompress.engine.attach import attach, detach, is_attached, text_config
from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.events import DecodeEvent, EvictEvent, Observer, PrefillEvent
from kvcompress.engine.listening import add_listener, remove_listener


class HuggingFaceSource(Observer):
    """Listens to one model's attention and to the observers' events of the compressed caches that it runs with.

    Args:
        model: the model.
        sink: where it goes.
        layers: indices of the layers that are captured; None: all.
    """

    def __init__(self, model: PreTrainedModel, sink: AttentionSink, layers: frozenset[int] | None) -> None:
        self.model, self.sink, self.layers = model, sink, layers
        self._modules = {id(module) for module in model.modules()}
        self._was_attached = True
        self._observed: list[CompressedCache] = []

    def start(self) -> None:
        """Begins to listen."""
        self._was_attached = is_attached(text_config(self.model))
        attach(self.model)
        add_listener(self)

    def stop(self) -> None:
        """Ends listening; the model's attention is what it was, unless a compressed cache needs it."""
        remove_listener(self)
        for cache in self._observed:
            cache.remove_observer(self)
        if not self._was_attached and not self._observed:
            detach(self.model)
        self._observed = []

    # ---- layers that are not compressed ------------------------------------------------------------------------------

    def on_attention(self, call: AttentionCall) -> None:
        """A layer has attended to all keys that it was given."""
        if id(call.module) not in self._modules or not self._wants(_layer_idx(call.module)):
            return
        sliding = call.options.get("sliding_window", getattr(call.module, "sliding_window", None))
        if call.options.get("position_bias") is not None:
            raise ValueError(
                f"{type(call.module).__name__} adds a position bias to its attention, which a recorder cannot see. "
                "Leave its layers out with layers=[...]."
            )
        plain = PlainCall(
            query=call.query,
            key=call.key,
            value=call.value,
            mask=call.mask,
            spec=call.spec(sliding),
            causal=self._is_causal(call),
            first_query=self.sink.seen,
        )
        self.sink.add_layer(_layer_idx(call.module), plain)

    def on_compressed(self, cache: CompressedCache, module: torch.nn.Module) -> None:
        """A compressed layer is about to attend: its cache is observed from now on."""
        if id(module) not in self._modules:
            return
        self.sink.hear_cache(cache)
        if not any(cache is observed for observed in self._observed):
            cache.add_observer(self)
            self._observed.append(cache)

    # ---- compressed layers -------------------------------------------------------------------------------------------

    def on_prefill(self, event: PrefillEvent) -> None:
        """A compressed layer has attended a block and scored it."""
        if not self._wants(event.layer_idx):
            return
        first = self.sink.seen
        self.sink.add_layer(event.layer_idx, PrefillCall(event, first))
        scored = event.scores.token_scores
        positions = event.positions[..., : scored.shape[-1]]
        self.sink.note_scores(event.layer_idx, positions, scored)
        self.sink.note_stored(event.layer_idx, event.positions, first)

    def on_decode(self, event: DecodeEvent) -> None:
        """A compressed layer has decoded a token."""
        if self._wants(event.layer_idx):
            self.sink.add_layer(event.layer_idx, DecodeCall(event))

    def on_evict(self, event: EvictEvent) -> None:
        """A compressed layer has evicted tokens."""
        if self._wants(event.layer_idx):
            self.sink.note_evicted(event.layer_idx, event.evicted, event.stage)

    def _wants(self, layer_idx: int) -> bool:
        return self.layers is None or layer_idx in self.layers

    def _is_causal(self, call: AttentionCall) -> bool:
        """Whether the layer is causal; a mask says what else is hidden."""
        causal: Any = call.options.get("is_causal")
        return bool(getattr(call.module, "is_causal", True) if causal is None else causal)


def _layer_idx(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ValueError(
            f"{type(module).__name__} does not say which layer it is (layer_idx), so it cannot be captured through "
            "transformers' attention. Use Recorder(..., source='sdpa')."
        )
    return index
