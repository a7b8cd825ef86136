"""The work of ``kvcompress run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console

from kvcompress.commands import capture_summary
from kvcompress.commands.capture_request import CaptureRequest
from kvcompress.commands.capture_work import Captured, capture_texts
from kvcompress.commands.failures import CommandError
from kvcompress.commands.folders import check_writable
from kvcompress.commands.result_files import print_json
from kvcompress.commands.run_analysis import Analysis
from kvcompress.commands.run_focus import FOCUSES
from kvcompress.commands.run_model import ModelInHand
from kvcompress.commands.run_outputs import of_earlier_run, refuse_existing
from kvcompress.commands.run_stages import Stages

SCHEMA: Final = "kvcompress.run/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What the user asked for.

    Attributes:
        capture: what is captured; None: the capture that is there is analysed.
        output_dir: folder of everything.
        analysis: whether anything follows the capture.
        focus: a key of :data:`kvcompress.commands.run_focus.FOCUSES`; None: everything.
        low_rank: whether the model's cache is decomposed and compared.
        recommend: whether strategies are tried.
        model: what was given to ``--model``.
        device: where a model runs.
        dtype: of its weights.
        force: overwrite what is there.
        as_json: print one JSON object instead of text.
    """

    capture: CaptureRequest | None
    output_dir: Path
    analysis: bool
    focus: str | None
    low_rank: bool
    recommend: bool
    model: str | None
    device: str
    dtype: str
    force: bool
    as_json: bool


def run_all(request: RunRequest) -> None:
    """Captures, analyses, and tells what was written.

    Raises:
        CommandError: something that was given cannot be used, or a file would be overwritten.
        ValueError: likewise, or a sample that cannot be analysed.
        KeyboardInterrupt: the user stopped it; finished stages stay on disk.
    """
    from kvcompress.analysis.summary.reader import read_sample

    _check(request)
    stages = Stages(silent=request.as_json)
    captured = None if request.capture is None else _capture(request.capture, stages, silent=request.as_json)
    samples = _samples(request.output_dir, captured)
    analysis = Analysis(
        request.output_dir,
        samples,
        stages,
        focus=None if request.focus is None else FOCUSES[request.focus],
        focus_name=request.focus,
        force=request.force,
    )
    if request.analysis:
        if captured is None and not request.force:
            refuse_existing(analysis.planned(recommend=request.recommend))
        first = read_sample(request.output_dir, samples[0])
        loaded = None if captured is None else captured.loaded
        model = ModelInHand(loaded, first, name=request.model, device=request.device, dtype=request.dtype)
        analysis.run(model, low_rank=request.low_rank, recommend=request.recommend)
    _tell(request, captured, analysis, stages)


def _check(request: RunRequest) -> None:
    """Finds out what can be found out before a model is loaded."""
    if request.focus is not None and request.focus not in FOCUSES:
        raise CommandError(f"--analysis-focus must be one of {', '.join(FOCUSES)}; got {request.focus!r}")
    if request.capture is None and not request.analysis:
        raise CommandError("--skip-collection and --skip-analysis leave nothing to do; give one of them at most")
    if request.recommend and not request.analysis:
        raise CommandError("--recommend is part of the analysis, which --skip-analysis leaves out; give one of them")
    check_writable(request.output_dir)
    if request.capture is not None and not request.force:
        refuse_existing(of_earlier_run(request.output_dir))


def _capture(request: CaptureRequest, stages: Stages, *, silent: bool) -> Captured:
    with stages.stage("capture") as told:
        captured = capture_texts(request)
        tokens = sum(sample.summary.tensors["token.ids"].shape[0] for sample in captured.samples)
        told += [f"{len(captured.samples)} samples", f"{tokens:,} tokens"][len(captured.samples) == 1 :]
    if not silent:
        capture_summary.show(captured, Console(highlight=False))
    return captured


def _samples(folder: Path, captured: Captured | None) -> list[int]:
    """Numbers of the samples to analyse: those just captured, or all that are there."""
    from kvcompress.analysis.summary.reader import list_samples, read_sample

    if captured is not None:
        return [sample.summary.sample for sample in captured.samples]
    found = list_samples(folder)
    if not found:
        read_sample(folder)  # raises, and says what is the matter with the folder
    return found


def _tell(request: RunRequest, captured: Captured | None, analysis: Analysis, stages: Stages) -> None:
    for name, reason in analysis.left_out.items():
        typer.echo(f"left out: {name}: {reason}", err=True)
    if request.as_json:
        print_json(_as_json(request, captured, analysis, stages))
    elif request.analysis:
        typer.echo(f"written: {len(analysis.written)} files; start with {analysis.page}")


def _as_json(request: RunRequest, captured: Captured | None, analysis: Analysis, stages: Stages) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "folder": str(request.output_dir),
        "focus": request.focus,
        "samples": analysis.samples,
        "captured": None if captured is None else capture_summary.as_json(captured),
        "stages": [{"stage": each.stage, "wall_s": each.wall, "processor_s": each.processor} for each in stages.times],
        "written": [str(path) for path in analysis.written],
        "left_out": analysis.left_out,
    }
