"""The tables of a sample as CSV: an observation a row, a variable a column, nothing where a number does not apply."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import ATTENTION_SCALARS

Cell = int | float | str | None
Row = Sequence[Cell]
Table = Iterable[Row]  # the names of the columns first

_KINDS: Final = ("prefill", "decode", "step")
_STAGES: Final = ("held", "prefill", "cascade", "decode")
_EVENTS: Final = ("step", "block", "first_query", "queries", "observed_queries", "tokens")
_KEY_VALUES: Final = ("key_norm", "value_norm", "key_token_sparsity", "value_token_sparsity")
# A spreadsheet takes a cell that begins with one of these for a formula; within our texts that is never meant.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_table(path: Path, table: Table) -> None:
    """Writes a table as UTF-8 CSV (RFC 4180), row by row.

    Texts that a spreadsheet would run as a formula get an apostrophe before them; numbers are left as they are.

    Args:
        path: the file.
        table: its rows.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([_cell(value) for value in row] for row in table)


def events_table(sample: Sample) -> Iterator[Row]:
    """One row for each event: what it was, and, of a compressed sample, what the cache held after it."""
    compressed = ("held_per_head", "bytes") if sample.compressed else ()
    yield ("event", "kind", *_EVENTS, *compressed)
    kinds = _named(sample, "event.kind", _KINDS, sample.kinds)
    columns = [sample.tensor(f"event.{name}").tolist() for name in _EVENTS]
    if sample.compressed:
        columns.append(sample.tensor("compression.held").double().mean((1, 2)).tolist())
        columns.append(sample.tensor("compression.bytes").tolist())
    for event, values in enumerate(zip(kinds, *columns, strict=True)):
        yield (event, *values)


def attention_table(sample: Sample) -> Iterator[Row]:
    """One row for each event, layer and query head: the means over the observed queries."""
    percents = sample.summary.settings.coverage_percent
    yield ("event", "layer", "head", "keys", *ATTENTION_SCALARS, *(f"coverage_{percent}" for percent in percents))
    keys = sample.tensor("attention.keys")
    scalars = [sample.tensor(f"attention.{name}") for name in ATTENTION_SCALARS]
    coverage = sample.tensor("attention.coverage")
    for event in range(sample.events):
        block = torch.cat((torch.stack([scalar[event] for scalar in scalars], -1), coverage[event]), -1)
        for place, layer in enumerate(sample.summary.layer_indices):
            for head, values in enumerate(block[place].tolist()):
                yield (event, layer, head, float(keys[event, place]), *values)


def tokens_table(sample: Sample) -> Iterator[Row]:
    """One row for each token: its text, and means over layers and heads."""
    names = ("influence", *_KEY_VALUES)
    yield ("position", "id", "text", "part", *names)
    columns = [sample.tensor("token.influence").double().mean(0)]
    columns += [sample.tensor(f"kv.{name}").double().nanmean((0, 1)) for name in _KEY_VALUES]
    texts, prompt = sample.summary.tokens, sample.summary.prompt_tokens
    ids = sample.tensor("token.ids").tolist()
    for position, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        text = None if texts is None else texts[position]
        yield (position, ids[position], text, "prompt" if position < prompt else "generated", *values)


def evictions_table(sample: Sample) -> Iterator[Row]:
    """One row for each layer, kv head and token of a compressed sample: its score, and what became of it."""
    yield ("layer", "head", "position", "score", "fate", "evicted_event")
    names = ("score", "evicted_stage", "evicted_event")
    scores, stages, events = (sample.tensor(f"compression.{name}") for name in names)
    for place, layer in enumerate(sample.summary.layer_indices):
        for head in range(scores.shape[1]):
            fates = _named(sample, "compression.evicted_stage", _STAGES, stages[place, head])
            rows = zip(scores[place, head].tolist(), fates, events[place, head].tolist(), strict=True)
            for position, (score, fate, event) in enumerate(rows):
                yield (layer, head, position, score, fate, None if event < 0 else event)


CSV_TABLES: Final[Mapping[str, Callable[[Sample], Table]]] = {
    "events": events_table,
    "attention": attention_table,
    "tokens": tokens_table,
    "evictions": evictions_table,
}


def _named(sample: Sample, tensor: str, names: Sequence[str], values: torch.Tensor) -> list[str]:
    """The names of values that count from 0."""
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < len(names):
        raise SummaryError(
            f"{tensor} of sample {sample.index} of {sample.folder} must be below {len(names)}; it is not"
        )
    return [names[value] for value in values.tolist()]


def _cell(value: Cell) -> Cell:
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA_STARTS) else value
    return None if isinstance(value, float) and math.isnan(value) else value
