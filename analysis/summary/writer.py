"""Writes a sample while it runs: rows go to disk as they come, and the sample appears when it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kvcompress.analysis.files import replace_text, replacing
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.geometry import DTYPE_NAMES, faults
from kvcompress.analysis.summary.paths import data_name, partial_name, summary_name
from kvcompress.analysis.summary.schema import SCHEMA, SCHEMA_VERSION, Summary, TensorInfo

_ALIGNMENT = 8  # bytes; the safetensors header is padded to it, and the widest dtypes come first


class _Column:
    """One tensor on its way to disk: rows appended to a file of raw little-endian bytes."""

    def __init__(self, path: Path, dtype: torch.dtype, row_shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.row_shape = path, dtype, row_shape
        self.rows = 0
        self.file: BinaryIO = path.open("wb")

    def append(self, rows: torch.Tensor) -> None:
        """Writes rows ``[n, *row_shape]``."""
        data = rows.detach().to("cpu").contiguous()
        data.view(-1).view(torch.uint8).numpy().tofile(self.file)
        self.rows += rows.shape[0]

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(dtype=DTYPE_NAMES[self.dtype], shape=(self.rows, *self.row_shape))


class SampleWriter:
    """Collects the tensors of one sample on disk, in a folder beside where it will appear.

    Args:
        folder: the capture's folder; made if it is not there.
        index: number of the sample.

    Raises:
        SummaryError: the folder cannot be written.
    """

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        self.partial = folder / partial_name(index)
        self._columns: dict[str, _Column] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.partial, ignore_errors=True)  # of a capture that was interrupted
            self.partial.mkdir()
        except OSError as error:
            raise SummaryError(
                f"the capture's folder must be one that can be written; {folder}: {error.strerror}. Choose another."
            ) from error

    def append(self, name: str, rows: torch.Tensor) -> None:
        """Adds rows to a tensor.

        Args:
            name: of the tensor.
            rows: ``[n, ...]``; dtype and ``...`` must be those of the first call.

        Raises:
            ValueError: another dtype or shape than before.
        """
        column = self._columns.get(name)
        if column is None:
            path = self.partial / f"{len(self._columns)}.bin"
            column = self._columns[name] = _Column(path, rows.dtype, tuple(rows.shape[1:]))
        if (rows.dtype, tuple(rows.shape[1:])) != (column.dtype, column.row_shape):
            raise ValueError(
                f"rows of {name} must be {column.dtype} [n, {', '.join(map(str, column.row_shape))}] as before, got "
                f"{rows.dtype} {list(rows.shape)}"
            )
        column.append(rows)

    def finish(self, description: Mapping[str, Any]) -> Summary:
        """Makes the sample appear: the data file first, then the JSON.

        Args:
            description: the fields of :class:`~kvcompress.analysis.summary.schema.Summary` but those that follow from
                the tensors.

        Returns:
            What was written.

        Raises:
            ValueError: the tensors are not those of a sample.
            OSError: the disk is full or cannot be written.
        """
        for column in self._columns.values():
            column.file.close()
        data = self.folder / data_name(self.index)
        summary = self._summary(description, data)
        wrong = faults(summary)
        if wrong:
            raise ValueError("a sample must have the tensors of its schema: " + "; ".join(wrong))
        (self.folder / summary_name(self.index)).unlink(missing_ok=True)  # never an old JSON beside new data
        with replacing(data) as path:
            self._write_safetensors(path)
            summary = summary.model_copy(update={"data_bytes": path.stat().st_size})
        text = json.dumps(summary.model_dump(by_alias=True, mode="json"), indent=1, ensure_ascii=False)
        replace_text(self.folder / summary_name(self.index), text + "\n")
        self.discard()
        return summary

    def discard(self) -> None:
        """Removes what was collected."""
        for column in self._columns.values():
            column.file.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _summary(self, description: Mapping[str, Any], data: Path) -> Summary:
        return Summary.model_validate(
            {
                **description,
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "sample": self.index,
                "data_file": data.name,
                "data_bytes": 0,
                "tensors": {name: column.info for name, column in self._columns.items()},
            }
        )

    def _write_safetensors(self, path: Path) -> None:
        """Joins the raw files behind a header, as the format of safetensors wants it, without holding them."""
        ordered = sorted(self._columns.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        header: dict[str, Any] = {"__metadata__": {"schema": SCHEMA, "schema_version": str(SCHEMA_VERSION)}}
        offset = 0
        for name, column in ordered:
            size = column.path.stat().st_size
            info = column.info
            header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, column in ordered:
                with column.path.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
