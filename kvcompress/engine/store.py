"""The slot store: one layer's compressed keys and values, as rows of any length in one array."""

from __future__ import annotations

from itertools import accumulate, groupby

import torch

from kvcompress.kernels.compact.reference import Slots
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
    """

    def __init__(self, slots: Slots, lengths: list[int], kv_heads: int, backend: str) -> None:
        """Takes the arrays as they are; the last slot of each row must be free."""
        self.kv_heads = kv_heads
        self.backend = backend
        self._adopt(slots, lengths)

    def _adopt(self, slots: Slots, lengths: list[int]) -> None:
        self.slots = slots
        self.lengths = lengths
        device = slots.keys.device
        self.row_offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int64, device=device)
        self.runs = _runs(lengths)
        self.next_slot = self.row_offsets[1:] - 1

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @property
    def batch(self) -> int:
        """Number of batch entries."""
        return self.rows // self.kv_heads

    @property
    def num_bytes(self) -> int:
        """Bytes of the storages that the store really holds, bookkeeping included."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the store."""
        return [*self.slots, self.row_offsets, self.next_slot]

    def trim(self, held: list[int], new_held: list[int]) -> None:
        """Drops all but the best ``new_held`` tokens of each row, keeping the rest of the row.

        Args:
            held: chosen tokens of each row now (they come first, best first).
            new_held: chosen tokens of each row afterwards, not more than ``held``.
        """
        lengths = [n - h + m for n, h, m in zip(self.lengths, held, new_held, strict=True)]
        row, place = row_and_place(lengths, self.row_offsets.device)
        keep = torch.tensor(new_held, device=row.device)[row]
        skip = torch.tensor(held, device=row.device)[row] - keep
        self._repack(self.row_offsets[row] + place + torch.where(place < keep, 0, skip), lengths)

    def grow(self, extra: list[int]) -> None:
        """Adds ``extra`` free slots to the end of each row; the next slot stays where it is."""
        lengths = [n + e for n, e in zip(self.lengths, extra, strict=True)]
        row, place = row_and_place(lengths, self.row_offsets.device)
        old = torch.tensor(self.lengths, device=row.device)[row]
        relative = self.next_slot - self.row_offsets[:-1]
        self._repack(torch.where(place < old, self.row_offsets[row] + place, -1), lengths)
        self.next_slot = self.row_offsets[:-1] + relative

    def select_batch(self, indices: torch.Tensor) -> None:
        """Makes batch entry ``i`` what entry ``indices[i]`` was (int64 ``[new_batch]``)."""
        entries = indices.tolist()
        rows = [entry * self.kv_heads + head for entry in entries for head in range(self.kv_heads)]
        lengths = [self.lengths[r] for r in rows]
        row, place = row_and_place(lengths, self.row_offsets.device)
        old_row = torch.tensor(rows, device=row.device)
        relative = (self.next_slot - self.row_offsets[:-1])[old_row]
        self._repack(self.row_offsets[old_row[row]] + place, lengths)
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
        longest = max(self.lengths)
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

    def _repack(self, source: torch.Tensor, lengths: list[int]) -> None:
        slots = operation("compact", self.backend)(*self.slots, source)
        self._adopt(slots, lengths)


def _runs(lengths: list[int]) -> tuple[Run, ...]:
    runs, row, offset = [], 0, 0
    for length, group in groupby(lengths):
        rows = len(list(group))
        runs.append(Run(row, rows, offset, length))
        row, offset = row + rows, offset + rows * length
    return tuple(runs)


def row_and_place(lengths: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For each slot its row and its place in the row, int64 ``[slots]`` each."""
    counts = torch.tensor(lengths, dtype=torch.int64, device=device)
    row = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts, output_size=sum(lengths))
    start = counts.cumsum(0) - counts
    return row, torch.arange(sum(lengths), device=device) - start[row]


def _like(index: torch.Tensor, array: torch.Tensor) -> torch.Tensor:
    return index[..., None].expand(*index.shape, array.shape[-1])
