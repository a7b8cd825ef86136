"""Samples in other formats: npz and CSV, and the pickle of an earlier tool, which is only ever written."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from kvcompress.analysis.files import replacing
from kvcompress.analysis.summary.csv_tables import CSV_TABLES, write_table
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import RAW_ATTENTION, STEP

Format = Literal["npz", "csv", "pickle"]

SUMMARY_MEMBER: Final = "summary"  # the sample's JSON within an npz file
_PICKLE_PROTOCOL: Final = 4  # read since Python 3.4


def export_paths(sample: Sample, form: Format, folder: Path) -> list[Path]:
    """The files that :func:`export_sample` writes.

    Args:
        sample: the sample.
        form: ``"npz"``, ``"csv"`` or ``"pickle"``.
        folder: where they go.

    Raises:
        SummaryError: ``"pickle"`` of a sample without raw attention.
        ValueError: another format.
    """
    if form == "npz":
        return [folder / f"attention_data_sample_{sample.index}.npz"]
    if form == "csv":
        return [folder / f"{name}_sample_{sample.index}.csv" for name in _tables(sample)]
    if form == "pickle":
        _raw_layers(sample)
        return [folder / f"attention_data_sample_{sample.index}.pkl"]
    raise ValueError(f"form must be one of {', '.join(_WRITERS)}; got {form!r}")


def export_sample(sample: Sample, form: Format, folder: str | Path) -> list[Path]:
    """Writes a sample in another format; each file is whole or not there, and files that are there are replaced.

    Args:
        sample: the sample.
        form: ``"npz"``: all tensors under their names, and the JSON as the text ``summary``; bfloat16 becomes float32.
            ``"csv"``: tables, see :mod:`kvcompress.analysis.summary.csv_tables`. ``"pickle"``: ``{layer: {"shape",
            "tensor"}}`` with the raw attention ``[1, heads, queries, keys]`` of all passes, as an earlier tool stored
            it; nothing here reads it back.
        folder: where to; it is made if it is not there.

    Returns:
        The files.

    Raises:
        SummaryError: ``"pickle"`` of a sample without raw attention.
        ValueError: another format.
        OSError: a file cannot be written.
    """
    paths = export_paths(sample, form, Path(folder))
    _WRITERS[form](sample, paths)
    return paths


def _write_npz(sample: Sample, paths: list[Path]) -> None:
    """One tensor after the other, so that the largest of them is all that is held."""
    with replacing(paths[0]) as partial, zipfile.ZipFile(partial, "w") as archive:
        text = json.dumps(sample.summary.model_dump(by_alias=True, mode="json"))
        _add(archive, SUMMARY_MEMBER, np.array(text))
        for name in sample.names:
            _add(archive, name, _array(sample.tensor(name)))


def _add(archive: zipfile.ZipFile, name: str, array: Any) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_csv(sample: Sample, paths: list[Path]) -> None:
    for path, table in zip(paths, _tables(sample).values(), strict=True):
        with replacing(path) as partial:
            write_table(partial, table(sample))


def _write_pickle(sample: Sample, paths: list[Path]) -> None:
    found: dict[int, dict[str, Any]] = {}
    for layer in _raw_layers(sample):
        matrix = whole_attention(sample, layer)[None].numpy()
        found[layer] = {"shape": matrix.shape, "tensor": matrix}
    with replacing(paths[0]) as partial, partial.open("wb") as file:
        pickle.dump(found, file, protocol=_PICKLE_PROTOCOL)


_WRITERS: Final[Mapping[str, Callable[[Sample, list[Path]], None]]] = {
    "npz": _write_npz,
    "csv": _write_csv,
    "pickle": _write_pickle,
}


def whole_attention(sample: Sample, layer: int) -> torch.Tensor:
    """The raw attention of all passes that store it, as one matrix.

    Args:
        sample: a sample with raw attention.
        layer: index of the layer in the model.

    Returns:
        float32 ``[heads, tokens, tokens]``; the row of a token holds what it paid when it was last a query, 0 on keys
        that came later or were evicted.

    Raises:
        SummaryError: there is no raw attention of that layer.
    """
    events = [event for event in range(sample.events) if sample.has(f"{RAW_ATTENTION}.{event}.{layer}")]
    if not events:
        raise SummaryError(f"sample {sample.index} of {sample.folder} has no raw attention of layer {layer}")
    first = sample.tensor("event.first_query").tolist()
    parts = {event: _checked(sample, event, layer) for event in events}
    length = max(part.shape[2] for part in parts.values())
    whole = torch.zeros(parts[events[0]].shape[0], length, length)
    for event, part in parts.items():
        if sample.kinds[event] == STEP:
            whole[:, : part.shape[1]] = 0
        rows = slice(first[event], first[event] + part.shape[1])
        whole[:, rows, : part.shape[2]] = part
    return whole


def _checked(sample: Sample, event: int, layer: int) -> torch.Tensor:
    """The raw attention of an event, of the shape that the event must have."""
    part = sample.raw_attention(event, layer)
    first, queries, tokens = (
        int(sample.tensor(f"event.{name}")[event]) for name in ("first_query", "queries", "tokens")
    )
    heads = sample.summary.raw_heads or range(sample.summary.model.query_heads)
    wanted = (len(heads), queries, tokens)
    if tuple(part.shape) != wanted or first < 0 or first + queries > tokens:
        raise SummaryError(
            f"the raw attention of event {event}, layer {layer} of sample {sample.index} in {sample.folder} must be "
            f"{list(wanted)}, its queries from {first} on; it is {list(part.shape)}. The file is damaged."
        )
    return part


def _raw_layers(sample: Sample) -> list[int]:
    stored = {
        layer
        for layer in sample.summary.layer_indices
        if any(sample.has(f"{RAW_ATTENTION}.{event}.{layer}") for event in range(sample.events))
    }
    if not stored:
        raise SummaryError(
            f"sample {sample.index} of {sample.folder} has no raw attention, which a pickle is made of. Capture with "
            "--save-attention, or export npz or csv."
        )
    return sorted(stored)


def _tables(sample: Sample) -> dict[str, Callable[[Sample], Any]]:
    """The tables that a sample has data for."""
    return {name: table for name, table in CSV_TABLES.items() if name != "evictions" or sample.compressed}


def _array(tensor: torch.Tensor) -> Any:
    """A tensor as numpy has it, which knows no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
