"""One compressed layer, as transformers sees it, and the host's bookkeeping of its rows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from kvcompress.engine.layer_statistics import LayerStatistics
from kvcompress.engine.store import SlotStore
from kvcompress.engine.update import StorageOrder
from kvcompress.errors import CacheStateError

_LEAST_GROWTH = 16  # slots that a growing row gains at least; more would cost small caches much of what they save


@dataclass(slots=True)
class Rows:
    """Host-side counts of a layer's rows; they make every decision of layout without asking the device.

    Attributes:
        held: scored tokens that each row keeps (best first in the store), window excluded.
        window: window tokens of each row.
        capacity: slots that each row may reach; None for no bound.
        steps: decode steps since the last change of layout.
    """

    held: list[int]
    window: list[int]
    capacity: list[int | None]
    steps: int = 0

    def filled(self, lengths: list[int]) -> list[int]:
        """Tokens in each row now: one slot always stays free."""
        return [min(h + w + self.steps, n - 1) for h, w, n in zip(self.held, self.window, lengths, strict=True)]

    def filled_at_prefill(self) -> list[int]:
        """Tokens in each row after prefill."""
        return [h + w for h, w in zip(self.held, self.window, strict=True)]

    def rebase(self, lengths: list[int], removed: int = 0) -> None:
        """Counts from now on: tokens decoded so far become held ones, less ``removed`` that were taken back."""
        filled = self.filled(lengths)
        self.held = [f - w - removed for f, w in zip(filled, self.window, strict=True)]
        self.steps = 0


class CompressedLayer(CacheLayerMixin):
    """A layer whose tokens live in a slot store once its first block has been attended.

    Args:
        layer_idx: index of the layer in the model.
        sliding_window: for a sliding-window layer, its width.
        static: fixed shapes and a position on the device while decoding, for ``torch.compile`` and CUDA graphs.
    """

    is_compileable = False

    def __init__(self, layer_idx: int, sliding_window: int | None, static: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer_idx = layer_idx
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.static = static
        self._clear()

    def _clear(self) -> None:
        self.seen: int | torch.Tensor = 0
        self.store: SlotStore | None = None
        self.rows: Rows | None = None
        self.row_start: torch.Tensor | None = None  # int64 [batch], position of each row's first token; None: zeros
        self.padding: torch.Tensor | None = None  # int64 [batch], positions so far that hold no token; None: zeros
        self.order: StorageOrder | None = None  # of CakeReference alone
        self.prompt_end = 0
        self.unstarted = False  # some row has had nothing but padding so far: its next token may be padding, too
        self.evicted = False
        self.pending = False
        self.statistics: LayerStatistics | None = None
        self.full = False  # each row has no free slot but the next one, so that a decode step needs no mask
        self._grow_at = self._evict_at = self._full_at = sys.maxsize
        self.keys = self.values = None
        self.is_initialized = self.is_compileable = False

    # ---- what transformers asks -----------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Notes dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self.values = key_states.new_empty(0)  # some models ask how many there are; the store has them
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Notes that a block is coming; the attention function stores it. Returns the block alone."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.store is not None and self.store.batch != key_states.shape[0]:
            raise CacheStateError(
                f"the cache holds {self.store.batch} sequences and was given a batch of {key_states.shape[0]}. Call "
                "cache.reset() or make a new cache for a new batch."
            )
        if isinstance(self.seen, torch.Tensor):
            self.seen.add_(key_states.shape[2])
        else:
            self.seen += key_states.shape[2]
        self.pending = True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens SEEN, evicted ones included: rotary positions stay absolute. A device tensor when static."""
        return self.seen  # type: ignore[return-value]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """``(length, offset)`` of the NEW block alone: what is older, the engine masks by itself."""
        queries = query_length if isinstance(query_length, int) else query_length.shape[0]
        if queries == 0:
            raise CacheStateError(
                f"there is no new token: the cache has seen {int(self.seen)} tokens, and the prompt does not go "
                "beyond them. Call cache.reset() or make a new cache for a new prompt."
            )
        if self.decodes(queries):
            return 1, 0  # one token sees itself: a mask of fixed shape that nobody reads
        return queries, int(self.seen)

    def decodes(self, queries: int) -> bool:
        """Whether a block of that many tokens is a decode step: one token, which exists in every row."""
        return queries == 1 and self.store is not None and not self.unstarted

    def get_max_length(self) -> int:
        """No maximum: any number of tokens may be seen."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    def reset(self) -> None:
        """Forgets everything."""
        self._clear()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Makes sequence ``i`` what sequence ``beam_idx[i]`` was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each sequence."""
        if self.store is not None:
            self.batch_select_indices(torch.arange(self.store.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the given sequences, in the given order (int64, or bool ``[batch]``)."""
        if self.store is None or self.rows is None:
            return
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        heads = self.store.kv_heads
        rows = [int(i) * heads + head for i in indices.tolist() for head in range(heads)]
        if self.order is not None:
            self.order = self.order.pick(rows)
        self.store.select_batch(indices)
        self.rows = replace(
            self.rows,
            held=[self.rows.held[r] for r in rows],
            window=[self.rows.window[r] for r in rows],
            capacity=[self.rows.capacity[r] for r in rows],
        )
        if self.row_start is not None and self.padding is not None:
            self.row_start = self.row_start[indices.to(self.row_start.device)]
            self.padding = self.padding[indices.to(self.padding.device)]
        if self.statistics is not None:
            self.statistics = self.statistics.select_batch(indices)

    @property
    def _irreversible(self) -> bool:
        return self.evicted or self.static or self.order is not None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether :meth:`crop` can put the layer back as it was: nothing has been evicted.

        Transformers asks once, after the prompt. On Apple's GPUs it then takes the last token of any generation back,
        so there a layer that may yet evict says no.
        """
        if self._irreversible:
            return False
        may_evict = self.rows is not None and any(capacity is not None for capacity in self.rows.capacity)
        return not (may_evict and self.device.type == "mps")

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last ``-tokens_to_remove`` tokens back, which is possible as long as nothing has been evicted.

        A positive number is the length that remains, as in transformers before 5.17.
        """
        if tokens_to_remove > 0:
            tokens_to_remove = min(tokens_to_remove - int(self.seen), 0)
        if tokens_to_remove == 0 or self.store is None or self.rows is None:
            return
        if self._irreversible:
            raise CacheStateError(
                "a compressed cache cannot be cropped once tokens have been evicted: they are gone (assisted "
                "decoding and prompt lookup crop). Generate without an assistant, or use DynamicCache for assisted "
                "decoding."
            )
        self.seen = int(self.seen) + tokens_to_remove
        self.store.free_from(self.seen)
        self.rows.rebase(self.store.lengths, removed=-tokens_to_remove)
        self.count_room()

    def offload(self) -> None:
        """Not supported."""
        raise CacheStateError(
            "a compressed cache cannot be offloaded: it is small because it is compressed. Use a smaller "
            "cache_size, or DynamicCache(offloading=True)."
        )

    prefetch = offload

    # ---- room for new tokens --------------------------------------------------------------------------------------

    def note_padding(self, real: torch.Tensor) -> None:
        """Notes which tokens of a new block exist: bool ``[batch, tokens]``. Not called where all of the first do."""
        batch, tokens = real.shape
        before = int(self.seen) - tokens
        if self.row_start is None or self.padding is None:
            self.row_start, self.padding = torch.zeros(2, batch, dtype=torch.int64, device=real.device).unbind()
        first = torch.where(real.any(1), real.to(torch.int8).argmax(1), tokens)
        # Padding may be longer than a block: the row starts with the first token that exists.
        self.row_start = torch.where(self.padding == before, before + first, self.row_start)
        self.padding = self.padding + (~real).sum(1)

    def start_rows(self, held: list[int], window: int) -> None:
        """Notes the rows that a prefill has just stored."""
        self.prompt_end, self.order = int(self.seen), None
        self.rows = Rows(held=held, window=[window] * len(held), capacity=[None] * len(held))

    def count_room(self) -> None:
        """Recounts, after a change of layout, at which step rows must grow, evict, and are all full."""
        if self.store is None or self.rows is None:
            return
        self._grow_at = self._evict_at = sys.maxsize
        self._full_at = 0
        lengths, steps = self.store.lengths, self.rows.steps
        for length, filled, capacity in zip(lengths, self.rows.filled(lengths), self.rows.capacity, strict=True):
            # A step takes one free slot and must leave another: it needs two.
            step = steps + length - filled - 1
            self._full_at = max(self._full_at, step)
            if capacity is None or length < capacity:
                self._grow_at = min(self._grow_at, step)
            else:
                self._evict_at = min(self._evict_at, step)
        if self._grow_at < sys.maxsize:
            self._full_at = sys.maxsize

    def make_room(self) -> None:
        """Before a decode step: grows rows that are full and may grow, and notes whether the step evicts."""
        if self.static or self.store is None or self.rows is None:
            return
        if self.rows.steps >= self._grow_at:
            self._grow(self.store, self.rows)
        if self.rows.steps >= self._evict_at:
            self.evicted = True
        # Where a mask was given, a window may have holes that these counts don't know.
        self.full = self.padding is None and self.rows.steps >= self._full_at
        self.rows.steps += 1

    def _grow(self, store: SlotStore, rows: Rows) -> None:
        rows.rebase(store.lengths)
        extra = []
        for length, capacity in zip(store.lengths, rows.capacity, strict=True):
            step = max(_LEAST_GROWTH, length // 8)
            extra.append(step if capacity is None else min(step, max(capacity - length, 0)))
        store.grow(extra)
        self.count_room()

    def settle(self, capacity: list[int | None], window: list[int]) -> None:
        """After the last layer of a prefill: sets how far rows may grow, and allocates it at once when static.

        Args:
            capacity: slots that each row may reach; None for no bound.
            window: window tokens that each row really has.
        """
        if self.store is None or self.rows is None:
            return
        self.rows.capacity, self.rows.window = capacity, window
        if self.static:
            self.store.grow([max(int(c or 0) - n, 0) for c, n in zip(capacity, self.store.lengths, strict=True)])
            self._make_static()
        self.count_room()

    def _make_static(self) -> None:
        if self.store is None:
            return
        self.seen = torch.tensor(int(self.seen), device=self.store.next_slot.device)
        self.is_compileable = True
        for tensor in (*self.store.slots, self.store.next_slot, self.seen):
            torch._dynamo.mark_static_address(tensor)
