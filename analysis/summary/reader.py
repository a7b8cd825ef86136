"""Reads the samples of a capture. Nothing is unpickled; what is damaged or foreign is refused with the reason."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.geometry import faults
from kvcompress.analysis.summary.paths import partial_indices, sample_indices, summary_name
from kvcompress.analysis.summary.schema import RAW_ATTENTION, SCHEMA, SCHEMA_VERSION, Summary

_MOST_JSON_BYTES = 256 << 20  # a million tokens take some 30 MB


class Sample:
    """A sample of a capture: its JSON, and its tensors, which are read when they are asked for.

    Args:
        folder: the capture's folder.
        summary: the sample's JSON.
        file: the open data file.

    Attributes:
        folder: the capture's folder.
        index: number of the sample.
        summary: the sample's JSON.
    """

    def __init__(self, folder: Path, summary: Summary, file: Any) -> None:
        self.folder, self.summary, self.index = folder, summary, summary.sample
        self._file = file

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(self.summary.tensors)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.summary.tensors

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, as docs/formats.md describes it.

        Raises:
            SummaryError: there is none of that name.
        """
        if not self.has(name):
            raise SummaryError(f"sample {self.index} of {self.folder} has no tensor {name!r}; see docs/formats.md")
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    @property
    def events(self) -> int:
        """Number of events."""
        return self.summary.tensors["event.kind"].shape[0]

    @property
    def token_count(self) -> int:
        """Number of tokens, prompt and generated."""
        return self.summary.tensors["token.ids"].shape[0]

    @property
    def compressed(self) -> bool:
        """Whether a policy evicted while it was captured."""
        return self.summary.policy is not None

    @cached_property
    def kinds(self) -> torch.Tensor:
        """int64 ``[E]``: 0 prefill, 1 decode, 2 step."""
        return self.tensor("event.kind")

    @cached_property
    def token_mass_events(self) -> list[int]:
        """Events whose mass per token is stored."""
        events: list[int] = self.tensor("token.mass_event").tolist()
        return events

    def token_mass(self, event: int) -> torch.Tensor:
        """Mass per token at an event, float32 ``[L, tokens]``.

        Raises:
            ValueError: it is not stored for that event.
        """
        if event not in self.token_mass_events:
            stored = ", ".join(map(str, self.token_mass_events[:8]))
            raise ValueError(
                f"event must be one whose mass per token is stored; got {event}; stored: {stored}"
                f"{', ...' if len(self.token_mass_events) > 8 else ''}. Capture with token_mass_every=1 to have all."
            )
        place = self.token_mass_events.index(event)
        begin, end = self._mass_offsets[place : place + 2]
        mass: torch.Tensor = self._file.get_slice("token.mass")[begin:end]
        return mass.view(self.summary.model.layers, -1)

    @cached_property
    def _mass_offsets(self) -> list[int]:
        offsets: list[int] = self.tensor("token.mass_offset").tolist()
        return offsets

    def held(self, event: int) -> torch.Tensor:
        """Which tokens each head holds after an event: bool ``[L, K, T]``.

        Raises:
            ValueError: there is no such event.
        """
        if not 0 <= event < self.events:
            raise ValueError(f"event must be between 0 and {self.events - 1}, got {event}")
        model = self.summary.model
        arrived = torch.arange(self.token_count) < self.tensor("event.tokens")[event]
        arrived = arrived.expand(model.layers, model.kv_heads, -1)
        if not self.compressed:
            return arrived
        evicted = self.tensor("compression.evicted_event")
        return arrived & ((evicted < 0) | (evicted > event))

    def raw_attention(self, event: int, layer: int) -> torch.Tensor:
        """Probabilities that were stored on request: float32 ``[heads, queries, keys]``, heads of ``raw_heads``.

        Raises:
            ValueError: they were not stored.
        """
        name = f"{RAW_ATTENTION}.{event}.{layer}"
        if not self.has(name):
            raise ValueError(
                f"the raw attention of event {event}, layer {layer} is not stored. Capture with --save-attention."
            )
        return self.tensor(name)


def list_samples(folder: str | Path) -> list[int]:
    """Numbers of the complete samples of a folder, ascending."""
    return sample_indices(Path(folder))


def read_sample(folder: str | Path, index: int = 0) -> Sample:
    """Opens a sample.

    Args:
        folder: the capture's folder.
        index: number of the sample.

    Raises:
        SummaryError: there is no such sample, or its files are damaged, foreign or newer.
    """
    folder = Path(folder)
    path = folder / summary_name(index)
    if not path.is_file():
        raise SummaryError(_nothing_there(folder, index))
    summary = _read_summary(path)
    if summary.sample != index:
        raise SummaryError(f"{path} must describe sample {index}; it says {summary.sample}. Give it its own name back.")
    return Sample(folder, summary, _open_data(folder, summary))


def _nothing_there(folder: Path, index: int) -> str:
    if not folder.is_dir():
        return (
            f"a capture must be a folder; {folder} is none. Make one with `kvcompress capture --output-dir {folder}`."
        )
    there = sample_indices(folder)
    if there:
        return f"{folder} has no sample {index}; it has {', '.join(map(str, there))}."
    begun = (
        " A capture into it was interrupted before its first sample was complete." if partial_indices(folder) else ""
    )
    return f"{folder} holds no complete sample.{begun} Run `kvcompress capture --output-dir {folder}`."


def _read_summary(path: Path) -> Summary:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise SummaryError(
                f"{path} must be at most {_MOST_JSON_BYTES >> 20} MiB; it has {path.stat().st_size} bytes"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SummaryError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SummaryError):
            raise
        raise SummaryError(f"{path} must be JSON; it is damaged ({error}). Capture again.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise SummaryError(f"{path} must be the JSON of a capture ({SCHEMA!r}); it is something else.")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SummaryError(
            f"{path} has schema version {version}; this kvcompress reads up to {SCHEMA_VERSION}. Update kvcompress."
        )
    try:
        return Summary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SummaryError(f"{path}: {place}: {first['msg']}. The file is damaged; capture again.") from error


def _open_data(folder: Path, summary: Summary) -> Any:
    if Path(summary.data_file).name != summary.data_file:
        raise SummaryError(f"data_file must be a name in {folder}, got {summary.data_file!r}")
    path = folder / summary.data_file
    if not path.is_file():
        raise SummaryError(f"{path} is missing; the JSON beside it needs it. Capture again.")
    if path.stat().st_size != summary.data_bytes:
        raise SummaryError(
            f"{path} must have {summary.data_bytes} bytes and has {path.stat().st_size}: it is truncated or foreign. "
            "Capture again."
        )
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SummaryError(f"{path} must be a safetensors file; it is damaged ({error}). Capture again.") from error
    wrong = faults(summary) + _disagreements(summary, file)
    if wrong:
        raise SummaryError(f"{path}: {'; '.join(wrong[:3])}. The files are damaged or foreign; capture again.")
    return file


def _disagreements(summary: Summary, file: Any) -> list[str]:
    """Where the data file's own header differs from what the JSON says of it."""
    there = set(file.keys())
    wrong = [f"{name} missing" for name in sorted(summary.tensors.keys() - there)]
    for name in sorted(summary.tensors.keys() & there):
        info, part = summary.tensors[name], file.get_slice(name)
        if (tuple(part.get_shape()), part.get_dtype()) != (info.shape, info.dtype):
            wrong.append(f"{name} is {part.get_dtype()} {part.get_shape()}, not {info.dtype} {list(info.shape)}")
    return wrong
