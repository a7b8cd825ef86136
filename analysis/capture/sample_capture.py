"""One sample on its way: events in, tensors of docs/formats.md out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.analysis.capture.event_rows import EventRows
from kvcompress.analysis.capture.eviction_log import EvictionLog
from kvcompress.analysis.capture.key_values import KeyValueStatistics
from kvcompress.analysis.capture.observation import Attended, observed_places
from kvcompress.analysis.capture.raw import raw_attention
from kvcompress.analysis.capture.reduction import Frame, reduce_attention
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.capture.token_table import TokenTable
from kvcompress.analysis.summary.schema import DECODE, PREFILL, RAW_ATTENTION, RAW_KEYS, RAW_VALUES, Summary
from kvcompress.analysis.summary.writer import SampleWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class EventInfo:
    """An event as it begins.

    Attributes:
        kind: ``PREFILL``, ``DECODE`` or ``STEP`` of the schema.
        step: number that the user gave it, or its own.
        block: block that the user gave, or -1.
        first_query: position of its first token.
        token_ids: int64 ``[queries]``, -1 where unknown.
    """

    kind: int
    step: int
    block: int
    first_query: int
    token_ids: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens seen after it."""
        return self.first_query + self.token_ids.numel()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedState:
    """What a compressed cache says of one sequence.

    Attributes:
        policy: name and parameters.
        num_bytes: bytes held, this sequence's share.
        layers: for each layer of the model that is compressed: budget, preference, entropy, variance; NaN for none.
    """

    policy: dict[str, Any]
    num_bytes: int
    layers: Mapping[int, tuple[int, float, float, float]]


class _Layer:
    """What is kept of one layer."""

    def __init__(self, attended: Attended) -> None:
        heads, device = attended.keys.shape[0], attended.keys.device
        self.keys = KeyValueStatistics(heads, attended.new_keys.shape[-1], device)
        self.values = KeyValueStatistics(heads, attended.new_values.shape[-1], device)
        self.influence = TokenTable((), 0.0, torch.float64)
        self.evictions = EvictionLog(heads)


class SampleCapture:
    """Collects one sequence's events and writes them.

    Args:
        writer: where they go.
        settings: what is kept.
        prompt_tokens: tokens of the prompt; None: those of the events before the first decoded token.
    """

    def __init__(self, writer: SampleWriter, settings: RecorderSettings, prompt_tokens: int | None = None) -> None:
        self.writer, self.settings = writer, settings
        self.events, self.tokens, self.query_heads = 0, 0, 0
        self.state: CompressedState | None = None
        self.raw_left_out: list[int] = []
        self._prompt_tokens = prompt_tokens
        self._prompt_ended = prompt_tokens is not None
        self._decoded = 0
        self._layers: dict[int, _Layer] = {}
        self._ids = TokenTable((), -1, torch.int64)
        self._event: EventInfo | None = None
        self._rows = EventRows(writer)

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Layers, in the order in which the first event met them."""
        return tuple(self._layers)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as far as it is known."""
        return self.tokens if self._prompt_tokens is None else self._prompt_tokens

    def begin(self, event: EventInfo) -> None:
        """Begins an event; layers follow by :meth:`add`."""
        self._event = event
        self.tokens = max(self.tokens, event.tokens)
        if event.kind != DECODE and not self._prompt_ended:
            self._prompt_tokens = self.tokens
        else:
            self._prompt_ended = True
        self._ids.write(event.first_query, event.token_ids)
        if not self.events:
            self._rows.mass_every = self.settings.mass_every(self.prompt_tokens)

    def add(self, layer_idx: int, attended: Attended) -> None:
        """Adds a layer to the event.

        Raises:
            ValueError: a layer that the first event did not have, or one of another shape.
        """
        event = self._current()
        layer = self._layer(layer_idx, attended)
        places = observed_places(attended.queries, self.settings.max_queries, attended.query.device)
        frame = Frame(
            tokens=event.tokens,
            prompt_tokens=self.prompt_tokens,
            sink_tokens=self.settings.sink_tokens,
            recent_tokens=self.settings.recent_tokens,
        )
        reduced = reduce_attention(attended.observe(places), frame)
        self._rows.add(layer_idx, reduced)
        layer.keys.add(event.first_query, attended.new_keys)
        layer.values.add(event.first_query, attended.new_values)
        if event.kind == DECODE:
            layer.influence.add(reduced.token_mass_sum)
        self._store_raw(event, layer_idx, attended)

    def evictions(self, layer_idx: int) -> EvictionLog | None:
        """Where a layer's evictions are noted; None of a layer that has not been added."""
        layer = self._layers.get(layer_idx)
        return None if layer is None else layer.evictions

    def end(self, state: CompressedState | None) -> None:
        """Ends the event and writes its rows.

        Args:
            state: of the compressed cache, where there is one.

        Raises:
            ValueError: some of the first event's layers have not been added.
        """
        event = self._current()
        if not self._rows.layers:
            raise ValueError("an event must have at least one layer; no attention was heard in this pass of the model")
        if tuple(self._rows.layers) != self.layer_indices:
            raise ValueError(
                f"each event must have the layers of the first, {list(self.layer_indices)}; event {self.events} has "
                f"{list(self._rows.layers)}. Models that skip layers cannot be captured."
            )
        keep_mass = event.kind != DECODE or self._decoded % self._rows.mass_every == 0
        self._decoded += event.kind == DECODE
        observed = min(event.token_ids.numel(), self.settings.max_queries)
        self._rows.write(event, self.events, observed=observed, keep_mass=keep_mass)
        if state is not None:
            held = torch.stack([layer.evictions.held(event.tokens) for layer in self._layers.values()])
            self.writer.append("compression.held", held[None])
            self.writer.append("compression.bytes", torch.tensor([state.num_bytes]))
            self.state = state
        self.events, self._event = self.events + 1, None

    def drop_event(self) -> None:
        """Forgets an event that was begun."""
        self._event = None
        self._rows.clear()

    def finish(self, description: Mapping[str, Any]) -> Summary:
        """Writes what is left and makes the sample appear.

        Args:
            description: fields of the JSON that only the recorder knows.
        """
        if not self.events:
            raise ValueError("a sample must have at least one event; nothing was recorded")
        self._rows.finish()
        self._write_tokens()
        self._write_key_values()
        if self.state is not None:
            self._write_compression(self.state)
        known = {
            "layer_indices": self.layer_indices,
            "prompt_tokens": self.prompt_tokens,
            "policy": None if self.state is None else self.state.policy,
            "raw_left_out": tuple(self.raw_left_out),
        }
        return self.writer.finish({**known, **description})

    def token_ids(self) -> list[int]:
        """Token ids so far, -1 where unknown."""
        ids: list[int] = self._ids.upto(self.tokens).tolist()
        return ids

    @property
    def mass_every(self) -> int:
        """Decode steps from one stored mass per token to the next."""
        return self._rows.mass_every

    def _current(self) -> EventInfo:
        if self._event is None:
            raise RuntimeError("begin() comes before add() and end()")
        return self._event

    def _layer(self, layer_idx: int, attended: Attended) -> _Layer:
        layer = self._layers.get(layer_idx)
        if layer is None:
            if self.events:
                raise ValueError(
                    f"each event must have the layers of the first, {list(self.layer_indices)}; event {self.events} "
                    f"has layer {layer_idx} too. Models that skip layers cannot be captured."
                )
            layer = self._layers[layer_idx] = _Layer(attended)
            self.query_heads = attended.query.shape[0]
        first = next(iter(self._layers.values()))
        _check_same_shape(layer_idx, attended, first, self.query_heads)
        return layer

    def _store_raw(self, event: EventInfo, layer_idx: int, attended: Attended) -> None:
        raw = self.settings.raw
        if raw is not None and raw.wants(layer_idx):
            if event.tokens > raw.max_tokens:
                if self.events not in self.raw_left_out:
                    self.raw_left_out.append(self.events)
            else:
                everything = attended.observe(torch.arange(attended.queries, device=attended.query.device))
                name = f"{RAW_ATTENTION}.{self.events}.{layer_idx}"
                self.writer.append(name, raw_attention(everything, event.tokens, raw.heads))
        if self.settings.save_kv and not self.events and event.kind == PREFILL:
            self.writer.append(f"{RAW_KEYS}.{layer_idx}", attended.new_keys)
            self.writer.append(f"{RAW_VALUES}.{layer_idx}", attended.new_values)

    def _write_tokens(self) -> None:
        self.writer.append("token.ids", self._ids.upto(self.tokens))
        influence = [layer.influence.upto(self.tokens) for layer in self._layers.values()]
        self.writer.append("token.influence", torch.stack(influence).float())

    def _write_key_values(self) -> None:
        for what in ("key", "value"):
            results = [getattr(layer, f"{what}s").result(self.tokens) for layer in self._layers.values()]
            self._write_stacked(f"kv.{what}_", results)

    def _write_compression(self, state: CompressedState) -> None:
        self._write_stacked("compression.", [layer.evictions.result(self.tokens) for layer in self._layers.values()])
        nothing = (-1, float("nan"), float("nan"), float("nan"))
        rows = [state.layers.get(layer_idx, nothing) for layer_idx in self._layers]
        budgets, *statistics = zip(*rows, strict=True)
        self.writer.append("compression.budget", torch.tensor(budgets))
        for name, values in zip(("preference", "entropy", "variance"), statistics, strict=True):
            self.writer.append(f"compression.{name}", torch.tensor(values, dtype=torch.float32))

    def _write_stacked(self, prefix: str, results: Sequence[dict[str, torch.Tensor]]) -> None:
        for name in results[0]:
            for result in results:
                self.writer.append(prefix + name, result[name][None])


def _check_same_shape(layer_idx: int, attended: Attended, first: _Layer, query_heads: int) -> None:
    got = (attended.query.shape[0], *_shape(attended.new_keys), attended.new_values.shape[-1])
    wanted = (query_heads, first.keys.heads, first.keys.head_dim, first.values.head_dim)
    if got != wanted:
        raise ValueError(
            f"all captured layers must have the same heads; layer {layer_idx} has (query heads, kv heads, head_dim, "
            f"value_dim) = {got}, the first {wanted}. Choose layers of one kind with layers=[...]."
        )


def _shape(new_keys: torch.Tensor) -> tuple[int, int]:
    return new_keys.shape[0], new_keys.shape[-1]
