"""Writes the page of a capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kvcompress.analysis.files import replace_text
from kvcompress.analysis.report.data import sample_data
from kvcompress.analysis.report.documents import collect
from kvcompress.analysis.report.render import render
from kvcompress.analysis.report.thinning import Limits
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import list_samples, read_sample

FILE_NAME = "report.html"


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    samples: Sequence[int] | None = None,
    *,
    force: bool = False,
    embed_plots: bool = False,
    limits: Limits | None = None,
) -> Path:
    """Writes one HTML file about the samples of a capture, which needs no network to be read.

    Args:
        folder: the capture's folder.
        out: the file; None: ``report.html`` in the folder.
        samples: which samples; None: all.
        force: whether a file that is there already is replaced.
        embed_plots: whether pictures of the folder become part of the page; else they are linked.
        limits: bounds on what the page holds; None: the defaults.

    Returns:
        The file.

    Raises:
        FileExistsError: the file is there already, and ``force`` is not set.
        SummaryError: there is no such sample, or its files are damaged.
        OSError: the file cannot be written.
    """
    folder = Path(folder)
    path = folder / FILE_NAME if out is None else Path(out)
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already; give another name, or force=True (--force) to replace it")
    chosen = _chosen(folder, samples)
    limits = limits or Limits()
    data = [sample_data(read_sample(folder, index), limits, samples=len(chosen)) for index in chosen]
    documents = collect(folder, chosen, path, embed_pictures=embed_plots)
    replace_text(path, render(data, asdict(documents), title=f"{data[0]['model']['name']}: KV cache report"))
    return path


def _chosen(folder: Path, samples: Sequence[int] | None) -> list[int]:
    there = list_samples(folder)
    if samples is None and there:
        return there
    if not samples:
        read_sample(folder)  # says what is the matter with the folder
        raise SummaryError("samples must name at least one sample; leave it out for all")
    for index in samples:
        if index not in there:
            read_sample(folder, index)
    return list(dict.fromkeys(samples))
