"""The work of ``kvcompress analyze``, ``generation`` and ``samples``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from kvcompress.commands import analyze_tables
from kvcompress.commands.failures import CommandError

if TYPE_CHECKING:
    from kvcompress.analysis.summary.reader import Sample

FOCUSES: Final = tuple(analyze_tables.FOCUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked ``kvcompress analyze`` for."""

    folder: Path
    sample: str
    focus: str | None
    output_dir: Path | None
    force: bool
    as_json: bool


def run_analyze(request: Request) -> None:
    """Writes the reports of the chosen samples and tells what is in them.

    Raises:
        CommandError: an unknown focus or sample, a report that is there already, or a folder that cannot be written;
            of the first three nothing has been written.
        ValueError: a sample that cannot be analysed.
    """
    from kvcompress.analysis.metrics.capture_analysis import CaptureAnalysis

    if request.focus is not None and request.focus not in FOCUSES:
        raise CommandError(f"--focus must be one of {', '.join(FOCUSES)}; got {request.focus!r}")
    analysis = CaptureAnalysis(request.folder, request.output_dir)
    chosen = choose_samples(request.folder, request.sample)
    paths = [analysis.report_path(index) for index in chosen]
    there = [str(path) for path in paths if path.exists()]
    if there and not request.force:
        raise CommandError(f"{', '.join(there)} would be overwritten. Give --force, or another --output-dir.")
    reports = []
    for index, path in zip(chosen, paths, strict=True):
        try:
            reports.append(analysis.generate(index))
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}. Give another --output-dir.") from error
    if request.as_json:
        _print_json({"schema": "kvcompress.analyze/1", "written": [str(path) for path in paths], "reports": reports})
        return
    console = Console(highlight=False)
    for report, path in zip(reports, paths, strict=True):
        analyze_tables.show_report(report, request.focus, console)
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def run_generation(folder: Path, sample: str, *, as_json: bool) -> None:
    """Tells the stages of the chosen samples' generation.

    Raises:
        CommandError: an unknown sample.
        ValueError: a sample that cannot be analysed.
    """
    from kvcompress.analysis.metrics.json_values import to_json
    from kvcompress.analysis.metrics.of_sample import stages
    from kvcompress.analysis.metrics.of_sample.events import check_sample
    from kvcompress.analysis.summary.reader import read_sample

    found = []
    for index in choose_samples(folder, sample):
        opened = read_sample(folder, index)
        check_sample(opened)
        found.append({"sample": index, **to_json(stages.section(opened))})
    if as_json:
        _print_json({"schema": "kvcompress.generation/1", "samples": found})
        return
    console = Console(highlight=False)
    for content in found:
        analyze_tables.show_stages(content, console)


def run_samples(folder: Path, *, as_json: bool) -> None:
    """Lists the samples of a capture.

    Raises:
        ValueError: the folder holds none, or a sample is damaged.
    """
    from kvcompress.analysis.summary.reader import read_sample

    rows = [_sample_row(read_sample(folder, index)) for index in choose_samples(folder, "all")]
    if as_json:
        _print_json({"schema": "kvcompress.samples/1", "folder": str(folder), "samples": rows})
    else:
        analyze_tables.show_samples(rows, Console(highlight=False))


def choose_samples(folder: Path, choice: str) -> list[int]:
    """The samples that ``--sample`` names: one, or all that are complete.

    Raises:
        CommandError: neither a number nor "all".
        ValueError: the folder holds no sample, or not that one.
    """
    from kvcompress.analysis.summary.reader import list_samples, read_sample

    if choice != "all" and not (choice.isascii() and choice.isdigit()):
        raise CommandError(f"--sample must be a number from 0 on, or all; got {choice!r}")
    there = list_samples(folder)
    if choice == "all" and there:
        return there
    index = 0 if choice == "all" else int(choice)
    if index not in there:
        read_sample(folder, index)  # raises, and says what the folder has
    return [index]


def _sample_row(sample: Sample) -> dict[str, Any]:
    summary = sample.summary
    return {
        "sample": sample.index,
        "model": summary.model.name,
        "layers": summary.model.layers,
        "policy": summary.policy,
        "prompt_tokens": summary.prompt_tokens,
        "generated_tokens": sample.token_count - summary.prompt_tokens,
        "events": sample.events,
        "file_bytes": summary.data_bytes,
        "seconds": summary.seconds,
        "created_utc": summary.created_utc,
        "generated_text": summary.generated_text,
    }


def _print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
