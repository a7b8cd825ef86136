"""The slot store: one layer's compressed keys and values, as rows of any length in one array."""

from __future__ import annotations

from itertools import accumulate, groupby

import torch

from kvcompress.kernels.compact.reference import Packed, RowPlan
from kvcompress.kernels.decode_attend.reference import Run
from kvcompress.kernels.dispatch import operation


class SlotStore:
    """Rows of slots; a row is one (batch entry, kv head).

    A row holds the chosen tokens by descending score, then the window, then free slots; while decoding, the order of
    slots means nothing (keys carry their rotary position). At least one slot of each row is free between steps.

    Attributes:
        slots: the parallel arrays ``keys``, ``values``, ``positions``, ``scores`` over all slots.
        lengths: slots of each row; ``row_offsets`` is their running sum (CSR).
        kv_heads: rows per batch entry.
        next_slot: int64 ``[rows]``, the free slot that the next token takes.
        runs: the rows grouped by equal length, for views without padding.
        longest: slots of the longest row.
    """

    def __init__(self, packed: Packed, lengths: list[int], kv_heads: int, backend: str) -> None:
        """Takes the arrays as they are; the last slot of each row must be free."""
        self.kv_heads = kv_heads
        self.backend = backend
        self._adopt(packed, lengths)

    def _adopt(self, packed: Packed, lengths: list[int]) -> None:
        self.slots, self.row_offsets = packed
        self.lengths = lengths
        self.longest = max(lengths)
        self.runs = _runs(lengths)
        self.next_slot = self.row_offsets[1:] - 1
        self._arrivals: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def batch(self) -> int:
        """Number of batch entries."""
        return self.rows // self.kv_heads

    @property
    def arrivals(self) -> torch.Tensor:
        """Scratch of the decode kernel's one-launch variant: int32 zeros ``[rows]``, made when first asked for."""
        if self._arrivals is None:
            self._arrivals = torch.zeros(self.rows, dtype=torch.int32, device=self.row_offsets.device)
        return self._arrivals

    @property
    def num_bytes(self) -> int:
        """Bytes of the storages that the store really holds, bookkeeping included."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the store."""
        scratch = [] if self._arrivals is None else [self._arrivals]
        return [*self.slots, self.row_offsets, self.next_slot, *scratch]

    def trim(self, held: list[int], new_held: list[int]) -> None:
        """Drops all but the best ``new_held`` tokens of each row, keeping the rest of the row.

        Args:
            held: chosen tokens of each row now (they come first, best first).
            new_held: chosen tokens of each row afterwards, not more than ``held``.
        """
        rest = [n - h for n, h in zip(self.lengths, held, strict=True)]
        lengths = [m + r for m, r in zip(new_held, rest, strict=True)]
        self._repack(RowPlan(lengths, self._starts(), new_held, held, rest))

    def grow(self, extra: list[int]) -> None:
        """Adds ``extra`` free slots to the end of each row; the next slot stays where it is."""
        if not any(extra):
            return
        lengths = [n + e for n, e in zip(self.lengths, extra, strict=True)]
        none = [0] * self.rows
        relative = self.next_slot - self.row_offsets[:-1]
        self._repack(RowPlan(lengths, self._starts(), self.lengths, none, none))
        self.next_slot = self.row_offsets[:-1] + relative

    def select_batch(self, indices: torch.Tensor) -> None:
        """Makes batch entry ``i`` what entry ``indices[i]`` was (int64 ``[new_batch]``)."""
        rows = [entry * self.kv_heads + head for entry in indices.tolist() for head in range(self.kv_heads)]
        lengths, starts = [self.lengths[r] for r in rows], self._starts()
        none = [0] * len(rows)
        relative = (self.next_slot - self.row_offsets[:-1])[torch.tensor(rows, device=self.next_slot.device)]
        self._repack(RowPlan(lengths, [starts[r] for r in rows], lengths, none, none))
        self.next_slot = self.row_offsets[:-1] + relative

    def free_from(self, position: int) -> None:
        """Frees the slots of tokens at or after an absolute position; the first free slot of each row comes next."""
        self.slots.positions.masked_fill_(self.slots.positions >= position, -1)
        free = (self.dense(self.slots.positions, 0) < 0).to(torch.int8).argmax(-1).flatten()
        self.next_slot = self.row_offsets[:-1] + free

    def dense(self, array: torch.Tensor, empty: float) -> torch.Tensor:
        """Rows side by side, padded at the end: ``[batch, kv_heads, longest, ...]``.

        Args:
            array: one of the slot arrays.
            empty: value of the padding.
        """
        longest = self.longest
        if len(self.runs) == 1:
            return array.view(self.batch, self.kv_heads, longest, *array.shape[1:])
        padded = array.new_full((self.rows, longest, *array.shape[1:]), empty)
        for run in self.runs:
            part = array.narrow(0, run.offset, run.rows * run.length)
            padded[run.first_row : run.first_row + run.rows, : run.length] = part.view(
                run.rows, run.length, *array.shape[1:]
            )
        return padded.view(self.batch, self.kv_heads, longest, *array.shape[1:])

    def chronological(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All tokens by ascending position, free places first (position -1).

        Returns:
            ``(keys [batch, kv_heads, longest, head_dim], values, positions [batch, kv_heads, longest])``, new tensors.
        """
        positions, order = self.dense(self.slots.positions, -1).sort(dim=-1, stable=True)
        keys = self.dense(self.slots.keys, 0).gather(2, _like(order, self.slots.keys))
        values = self.dense(self.slots.values, 0).gather(2, _like(order, self.slots.values))
        return keys, values, positions

    def _starts(self) -> list[int]:
        """First slot of each row, on the host."""
        return [0, *accumulate(self.lengths)][:-1]

    def _repack(self, plan: RowPlan) -> None:
        self._adopt(operation("compact", self.backend)(*self.slots, plan), plan.lengths)


def _runs(lengths: list[int]) -> tuple[Run, ...]:
    runs, row, offset = [], 0, 0
    for length, group in groupby(lengths):
        rows = len(list(group))
        runs.append(Run(row, rows, offset, length))
        row, offset = row + rows, offset + rows * length
    return tuple(runs)


def _like(index: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
    return index[..., None].expand(*index.shape, array.shape[-1])
