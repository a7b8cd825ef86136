"""Turns what a source hears into events of samples: passes of the model, layer by layer, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvcompress.analysis.capture.compressed_state import compressed_state
from kvcompress.analysis.capture.layer_call import LayerCall
from kvcompress.analysis.capture.model_pass import PassInputs
from kvcompress.analysis.capture.sample_capture import EventInfo, SampleCapture
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.schema import DECODE, PREFILL, STEP, Summary
from kvcompress.analysis.summary.writer import SampleWriter
from kvcompress.engine.cache import CompressedCache

# Fields of a sample's JSON that only the recorder knows, given the sample and the first layer's shapes.
Describe = Callable[[SampleCapture, "Shapes"], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Heads of the captured layers."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


@dataclass(slots=True)
class _Sequence:
    """One sequence of the batch in hand."""

    capture: SampleCapture
    padding: int
    started: bool = False  # whether the pass in hand has a token of it


class Session:
    """The samples in hand.

    Args:
        folder: the capture's folder.
        settings: what is kept.
        describe: fields of a sample's JSON that only the recorder knows.
        first_sample: number of the first sample.
    """

    def __init__(self, folder: Path, settings: RecorderSettings, describe: Describe, first_sample: int) -> None:
        self.folder, self.settings, self.describe = folder, settings, describe
        self.next_sample = first_sample
        self.finished: list[Summary] = []
        self.step: int | None = None
        self.block = -1
        self.prompt_tokens: int | None = None
        self._sequences: list[_Sequence] = []
        self._inputs: PassInputs | None = None
        self._begun = False  # the pass in hand has been heard
        self._passes = 0
        self._cache: CompressedCache | None = None
        self._shapes: Shapes | None = None

    # ---- passes ----------------------------------------------------------------------------------------------------

    def begin_pass(self, inputs: PassInputs) -> None:
        """The model has been called."""
        self._inputs, self._begun = inputs, False

    def end_pass(self) -> None:
        """The call has returned: its event is complete."""
        if self._begun:
            for row, sequence in enumerate(self._sequences):
                if sequence.started:
                    sequence.capture.end(self._state(row))
            self._passes += 1
        self._begun, self._inputs = False, None

    def drop_pass(self) -> None:
        """The call has failed: its event is forgotten."""
        for sequence in self._sequences:
            sequence.capture.drop_event()
        self._begun, self._inputs = False, None

    @property
    def seen(self) -> int:
        """Tokens that the cache had seen before the pass in hand."""
        return 0 if self._inputs is None else self._inputs.seen

    # ---- what happens in a pass ------------------------------------------------------------------------------------

    def hear_cache(self, cache: CompressedCache) -> None:
        """The pass runs with a compressed cache."""
        self._cache = cache

    def add_layer(self, layer_idx: int, call: LayerCall) -> None:
        """A layer has attended.

        Raises:
            ValueError: the batch has another size than before, the layer other heads than the first, or the model was
            not called as a whole.
        """
        if self._inputs is None:
            raise ValueError(
                "attention was heard outside of a forward of the model that the recorder was given. Give Recorder the "
                "module whose forward runs, e.g. the inner model."
            )
        if not self._begun:
            self._begin_event(self._inputs, call)
        for row, sequence in enumerate(self._sequences):
            if sequence.started:
                attended = call.sequence(row, sequence.padding)
                self._note_shapes(attended.query.shape[0], attended.new_keys, attended.new_values)
                sequence.capture.add(layer_idx, attended)

    def note_scores(self, layer_idx: int, positions: torch.Tensor, scores: torch.Tensor) -> None:
        """A compressed layer's block has been scored: int64 and float ``[batch, kv_heads, scored]``."""
        for row, sequence in enumerate(self._sequences):
            log = sequence.capture.evictions(layer_idx)
            if log is not None:
                log.note_scores(_own(positions[row], sequence.padding), scores[row], sequence.capture.tokens)

    def note_stored(self, layer_idx: int, positions: torch.Tensor, first: int) -> None:
        """A compressed layer has stored what its last query sees: int64 ``[batch, kv_heads, tokens]``."""
        for row, sequence in enumerate(self._sequences):
            capture, log = sequence.capture, sequence.capture.evictions(layer_idx)
            if log is not None:
                own = _own(positions[row], sequence.padding)
                begin = max(first - sequence.padding, 0)
                log.note_absent(own, begin, capture.events, capture.tokens)

    def note_evicted(self, layer_idx: int, positions: torch.Tensor, stage: str) -> None:
        """Tokens have been evicted: int64 ``[batch, kv_heads, n]``."""
        for row, sequence in enumerate(self._sequences):
            capture, log = sequence.capture, sequence.capture.evictions(layer_idx)
            if log is not None:
                log.note_evicted(_own(positions[row], sequence.padding), capture.events, stage, capture.tokens)

    # ---- samples ---------------------------------------------------------------------------------------------------

    def finish_samples(self) -> None:
        """Writes the samples in hand."""
        sequences, self._sequences = self._sequences, []
        try:
            for sequence in sequences:
                if sequence.capture.events and self._shapes is not None:
                    description = self.describe(sequence.capture, self._shapes)
                    self.finished.append(sequence.capture.finish(description))
        finally:
            for sequence in sequences:
                sequence.capture.writer.discard()
            self._passes, self._cache = 0, None

    def discard_samples(self) -> None:
        """Forgets the samples in hand."""
        for sequence in self._sequences:
            sequence.capture.writer.discard()
        self._sequences, self._begun, self._inputs = [], False, None

    def _begin_event(self, inputs: PassInputs, call: LayerCall) -> None:
        if self._sequences and self._passes and inputs.cached and inputs.seen == 0:
            self.finish_samples()  # a cache that has seen nothing: another text begins
        if not self._sequences:
            self._sequences = [self._new_sequence(padding) for padding in inputs.padding(call.batch)]
        if len(self._sequences) != call.batch:
            raise ValueError(
                f"a recording's batch must keep its size; it had {len(self._sequences)} sequences and now has "
                f"{call.batch}. Call recorder.new_sample() before another batch."
            )
        for row, sequence in enumerate(self._sequences):
            ids = inputs.ids_of(row, call.queries, self._refreshed(row, inputs, call))
            sequence.started = ids.numel() > 0
            if sequence.started:
                first = max(call.first_query - sequence.padding, 0)
                sequence.capture.begin(self._event(call, first, ids, sequence.capture.events))
        self._begun = True

    def _refreshed(self, row: int, inputs: PassInputs, call: LayerCall) -> int:
        """Padding before a sequence, which may be longer than the blocks so far."""
        sequence = self._sequences[row]
        if not sequence.capture.events:
            sequence.padding = inputs.padding(call.batch)[row]
        return sequence.padding

    def _event(self, call: LayerCall, first: int, ids: torch.Tensor, number: int) -> EventInfo:
        if not call.causal or (number and first == 0):
            kind = STEP  # bidirectional, or the whole sequence again
        else:
            kind = DECODE if call.queries == 1 and call.first_query > 0 else PREFILL
        step = number if self.step is None else self.step
        return EventInfo(kind=kind, step=step, block=self.block, first_query=first, token_ids=ids)

    def _new_sequence(self, padding: int) -> _Sequence:
        writer = SampleWriter(self.folder, self.next_sample)
        self.next_sample += 1
        return _Sequence(SampleCapture(writer, self.settings, self.prompt_tokens), padding)

    def _state(self, row: int) -> Any:
        return None if self._cache is None else compressed_state(self._cache, row, len(self._sequences))

    def _note_shapes(self, query_heads: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self._shapes is None:
            self._shapes = Shapes(
                query_heads=query_heads, kv_heads=keys.shape[0], head_dim=keys.shape[-1], value_dim=values.shape[-1]
            )


def _own(positions: torch.Tensor, padding: int) -> torch.Tensor:
    """Positions without a sequence's padding; below 0 for none."""
    return torch.where(positions >= 0, positions - padding, -1)
