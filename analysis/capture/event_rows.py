"""The rows that one event adds to the tensors of a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kvcompress.analysis.capture.reduction import Reduced
from kvcompress.analysis.summary.schema import POSITION_BINS
from kvcompress.analysis.summary.writer import SampleWriter

if TYPE_CHECKING:
    from kvcompress.analysis.capture.sample_capture import EventInfo


class EventRows:
    """Collects an event's layers and writes its rows.

    Args:
        writer: where they go.
    """

    def __init__(self, writer: SampleWriter) -> None:
        self.writer = writer
        self.mass_every = 1
        self.layers: dict[int, Reduced] = {}
        self._offset = self._heatmaps = self._masses = self._query_heads = self._layer_count = 0

    def add(self, layer_idx: int, reduced: Reduced) -> None:
        """Adds a layer."""
        self.layers[layer_idx] = reduced

    def clear(self) -> None:
        """Forgets the layers."""
        self.layers = {}

    def write(self, event: EventInfo, number: int, *, observed: int, keep_mass: bool) -> None:
        """Writes the event's rows.

        Args:
            event: the event.
            number: its number in the sample.
            observed: queries observed.
            keep_mass: whether its mass per token is stored.
        """
        self._write_event(event, observed)
        layers = list(self.layers.values())
        self._query_heads = layers[0].per_head["entropy"].shape[0]
        self.writer.append("attention.keys", torch.tensor([[layer.keys for layer in layers]]))
        for name in layers[0].per_head:
            rows = torch.stack([layer.per_head[name] for layer in layers])
            self.writer.append(f"attention.{name}", rows[None])
        heatmaps = [layer.heatmap for layer in layers if layer.heatmap is not None]
        if heatmaps:
            self.writer.append("heatmap.event", torch.tensor([number]))
            self.writer.append("heatmap.mass", torch.stack(heatmaps)[None])
            self._heatmaps += 1
        if keep_mass:
            self._write_mass(layers, number)
        self.clear()

    def finish(self) -> None:
        """Writes what closes a sample."""
        self.writer.append("token.mass_offset", torch.tensor([self._offset]))
        if not self._masses:
            self.writer.append("token.mass_event", torch.empty(0, dtype=torch.int64))
            self.writer.append("token.mass", torch.empty(0))
        if not self._heatmaps:
            self.writer.append("heatmap.event", torch.empty(0, dtype=torch.int64))
            shape = (0, self._layer_count, self._query_heads, POSITION_BINS, POSITION_BINS)
            self.writer.append("heatmap.mass", torch.empty(shape))

    def _write_event(self, event: EventInfo, observed: int) -> None:
        self._layer_count = len(self.layers)
        values = {
            "kind": event.kind,
            "step": event.step,
            "block": event.block,
            "first_query": event.first_query,
            "queries": event.token_ids.numel(),
            "observed_queries": observed,
            "tokens": event.tokens,
        }
        for name, value in values.items():
            self.writer.append(f"event.{name}", torch.tensor([value]))

    def _write_mass(self, layers: list[Reduced], number: int) -> None:
        mass = torch.stack([layer.token_mass for layer in layers]).flatten()
        self.writer.append("token.mass_event", torch.tensor([number]))
        self.writer.append("token.mass_offset", torch.tensor([self._offset]))
        self.writer.append("token.mass", mass)
        self._offset += mass.numel()
        self._masses += 1
