"""The folder that a capture is written into: checked before a model is loaded, and left as it was after a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kvcompress.commands.failures import CommandError
from kvcompress.commands.folders import check_writable, nearest_there

_DATA_FILES = "attention_data_sample_*.safetensors"


class OutputFolder:
    """A folder that may not be there yet.

    Args:
        path: the folder.
        force: whether samples that it has may be overwritten.

    Raises:
        CommandError: it has samples and ``force`` is not set, or it cannot be written.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        self.path = path
        self._above = nearest_there(path)
        check_writable(path)
        self._data_before = {file.name for file in path.glob(_DATA_FILES)}
        self._samples_before = self._marks()
        there = list(self._samples_before)
        if (there or self._data_before) and not force:
            what = f"samples {', '.join(map(str, there))}" if there else min(self._data_before)
            raise CommandError(
                f"{path} has a capture already ({what}). Choose another --output-dir, or overwrite it with --force."
            )

    @property
    def free_bytes(self) -> int:
        """Free space of its disk."""
        return shutil.disk_usage(self._above).free

    def written(self) -> list[int]:
        """Numbers of the complete samples that were written since, as the disk has them."""
        return [index for index, mark in self._marks().items() if self._samples_before.get(index) != mark]

    def older(self) -> list[int]:
        """Numbers of the complete samples that were there before, and still are."""
        return [index for index, mark in self._marks().items() if self._samples_before.get(index) == mark]

    def clean_up(self) -> None:
        """Removes what a capture that failed has left beside its complete samples."""
        from kvcompress.analysis.summary.paths import data_name

        complete = {data_name(index) for index in self._marks()}
        for file in self.path.glob(_DATA_FILES):
            if file.name not in self._data_before | complete:
                file.unlink(missing_ok=True)  # stopped before its JSON came beside it
        self._remove_if_new_and_empty()

    def _marks(self) -> dict[int, tuple[int, int]]:
        """The complete samples, each with what tells its file from another of that name."""
        from kvcompress.analysis.summary.paths import sample_indices, summary_name

        marks = {}
        for index in sample_indices(self.path):
            stat = (self.path / summary_name(index)).stat()
            marks[index] = (stat.st_ino, stat.st_mtime_ns)
        return marks

    def _remove_if_new_and_empty(self) -> None:
        path = Path(os.path.abspath(self.path))
        while path != self._above and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
            path = path.parent
