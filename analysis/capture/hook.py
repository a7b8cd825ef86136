"""Raw attention maps in memory, for short sequences: the interface that earlier tools had, without hooks on modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvcompress.analysis.capture.layer_call import LayerCall
from kvcompress.analysis.capture.listening import Listening, Source
from kvcompress.analysis.capture.model_pass import PassInputs
from kvcompress.analysis.capture.raw import raw_attention
from kvcompress.engine.cache import CompressedCache


class MapContext(NamedTuple):
    """Where a map comes from.

    Attributes:
        step: of ``set_generation_context``, else the number of the pass.
        block: of ``set_generation_context``, or -1.
    """

    step: int
    block: int


class AttentionHook:
    """Keeps the whole attention of each layer and pass, on the CPU.

    For what does not fit use :class:`~kvcompress.analysis.capture.recorder.Recorder`, which reduces it.

    Args:
        model: as for ``Recorder``.
        layers: indices of the layers that are kept; None: all.
        max_tokens: longest sequence that is kept whole.
        source: as for ``Recorder``.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        layers: Sequence[int] | None = None,
        max_tokens: int = 1024,
        source: Source = "auto",
    ) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self._maps = _Maps(max_tokens)
        self._listening = Listening(model, self._maps, layers, source)

    def register_hooks(self) -> None:
        """Begins to listen to the model."""
        self._listening.start()

    def remove_hooks(self) -> None:
        """Ends listening; the maps stay."""
        self._listening.stop()

    def set_generation_context(self, step: int | None = None, block: int | None = None) -> None:
        """Marks the passes that follow; see ``Recorder.set_generation_context``."""
        self._maps.step, self._maps.block = step, -1 if block is None else block

    def get_attention_maps(self) -> dict[str, list[torch.Tensor]]:
        """The maps so far, by layer: float32 ``[batch, query_heads, queries, tokens]`` for each pass.

        Keys are at their positions; a column of a token that is not held (or is padding) is 0.
        """
        return {f"layer_{layer_idx}": list(maps) for layer_idx, maps in sorted(self._maps.by_layer.items())}

    def get_contexts(self) -> list[MapContext]:
        """Step and block of each pass, in the order of the maps."""
        return list(self._maps.contexts)

    def clear(self) -> None:
        """Forgets the maps."""
        self._maps.by_layer.clear()
        self._maps.contexts.clear()

    def __enter__(self) -> AttentionHook:
        """Begins to listen."""
        self.register_hooks()
        return self

    def __exit__(self, *error: object) -> None:
        """Ends listening."""
        self.remove_hooks()


class _Maps:
    """Takes passes and keeps their maps."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.step: int | None = None
        self.block = -1
        self.by_layer: dict[int, list[torch.Tensor]] = {}
        self.contexts: list[MapContext] = []
        self._pass: dict[int, torch.Tensor] = {}
        self._inputs: PassInputs | None = None

    @property
    def seen(self) -> int:
        """Tokens seen before the pass in hand."""
        return 0 if self._inputs is None else self._inputs.seen

    def begin_pass(self, inputs: PassInputs) -> None:
        """The model has been called."""
        self._inputs, self._pass = inputs, {}

    def end_pass(self) -> None:
        """The call has returned."""
        if self._pass:
            self.contexts.append(MapContext(len(self.contexts) if self.step is None else self.step, self.block))
        for layer_idx, attention in self._pass.items():
            self.by_layer.setdefault(layer_idx, []).append(attention)
        self.drop_pass()

    def drop_pass(self) -> None:
        """The call has failed."""
        self._inputs, self._pass = None, {}

    def add_layer(self, layer_idx: int, call: LayerCall) -> None:
        """A layer has attended."""
        tokens = call.first_query + call.queries
        if tokens > self.max_tokens:
            raise ValueError(
                f"sequences of an AttentionHook must have at most max_tokens={self.max_tokens} tokens, got {tokens}: "
                "its maps grow with the square. Raise max_tokens, or use Recorder, which reduces what it hears."
            )
        padding = [0] * call.batch if self._inputs is None else self._inputs.padding(call.batch)
        maps = [_whole_map(call, row, pads, tokens) for row, pads in enumerate(padding)]
        self._pass[layer_idx] = torch.stack(maps).cpu()

    def hear_cache(self, cache: CompressedCache) -> None:
        """Nothing to do: the events carry what is needed."""

    def note_scores(self, layer_idx: int, positions: torch.Tensor, scores: torch.Tensor) -> None:
        """Not kept."""

    def note_stored(self, layer_idx: int, positions: torch.Tensor, first: int) -> None:
        """Not kept."""

    def note_evicted(self, layer_idx: int, positions: torch.Tensor, stage: str) -> None:
        """Not kept."""


def _whole_map(call: LayerCall, row: int, padding: int, tokens: int) -> torch.Tensor:
    """One sequence's map with its padding: ``[query_heads, queries, tokens]``."""
    attended = call.sequence(row, padding)
    places = torch.arange(attended.queries, device=attended.query.device)
    own = raw_attention(attended.observe(places), attended.tokens, None)
    missing_rows, missing_columns = call.queries - own.shape[1], tokens - own.shape[2]
    return torch.nn.functional.pad(own, (missing_columns, 0, missing_rows, 0))
