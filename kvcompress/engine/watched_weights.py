"""Notices that a model's weights lie elsewhere than they did, so that no captured step reads what has gone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count
from operator import is_
from typing import Any

import torch
from transformers import PreTrainedModel

_versions = count(1)  # of all models together: no two states have one number
_PLAIN = (torch.nn.Parameter, torch.Tensor)  # subclasses may have no address of their own


@dataclass(frozen=True, slots=True)
class _Noted:
    """What a model consisted of.

    All is held: what is alive shares its identity and its address with nothing else.

    Attributes:
        tables: the modules' own tables of parameters, buffers and submodules, without those that were empty.
        entries: what stood in them, one after the other.
        tensors: those entries that have an address.
        addresses: theirs.
    """

    tables: list[dict[str, Any]]
    entries: list[Any]
    tensors: list[torch.Tensor]
    addresses: list[int]

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Noted:
        modules = model.modules()
        tables = [table for each in modules for table in (each._parameters, each._buffers, each._modules) if table]
        entries = _entries(tables)
        tensors = [entry for entry in entries if type(entry) in _PLAIN]
        return cls(tables, entries, tensors, _addresses(tensors))

    def still_true(self) -> bool:
        """Asked at every step; its loops are in C."""
        now = _entries(self.tables)
        same = len(now) == len(self.entries) and all(map(is_, now, self.entries))
        return same and _addresses(self.tensors) == self.addresses


class WatchedWeights:
    """Numbers the states of a model's weights.

    A new number is given when a parameter, buffer or module was replaced, added or taken away, and when the memory of a
    tensor is another one: after ``model.to``, ``param.data = ...``, an adapter put around a layer. Values changed in
    place keep it. Not noticed: the same memory seen in another shape or dtype, and what is no part of the modules, such
    as a number in the config or an adapter's switch.

    Belongs to the model, since it holds the model's parts.
    """

    def __init__(self) -> None:
        self._last: tuple[_Noted, int] | None = None  # in one piece: threads may ask at the same time

    def version(self, model: PreTrainedModel) -> int:
        """The number of the model's present state."""
        last = self._last
        if last is None or not last[0].still_true():
            last = self._last = (_Noted.of(model), next(_versions))
        return last[1]


def _entries(tables: list[dict[str, Any]]) -> list[Any]:
    return list(chain.from_iterable(map(dict.values, tables)))


def _addresses(tensors: list[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))
