"""The work of ``kvcompress plot``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kvcompress.commands import lists
from kvcompress.commands.analyze_run import choose_samples
from kvcompress.commands.counting import counting
from kvcompress.commands.failures import CommandError
from kvcompress.commands.result_files import print_json

if TYPE_CHECKING:
    from kvcompress.analysis.plots.jobs import Request as Pictures
    from kvcompress.analysis.visualizer import AttentionVisualizer, WrittenPlots


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked ``kvcompress plot`` for."""

    folder: Path
    sample: str
    what: str | None
    layer: int | None
    step: int | None
    head: int | None
    output_dir: Path | None
    force: bool
    as_json: bool


def run_plot(request: Request) -> None:
    """Draws the chosen samples and tells which files were written, and what was left out.

    Raises:
        CommandError: an unknown picture or sample, a file that is there already, a folder that cannot be written, or
            pictures that were asked for by name and of which none could be drawn.
        ValueError: no such layer, step or head, or a sample that is damaged.
    """
    from kvcompress.analysis.plots.jobs import Request as Pictures
    from kvcompress.analysis.plots.jobs import all_names
    from kvcompress.analysis.visualizer import AttentionVisualizer

    names = None if request.what is None else lists.names("--what", request.what, all_names())
    pictures = Pictures(names=names, layer=request.layer, step=request.step, head=request.head)
    chosen = choose_samples(request.folder, request.sample)
    visualizer = AttentionVisualizer(request.folder, request.output_dir)
    planned = {index: visualizer.planned_files(pictures, index) for index in chosen}
    if not request.force:
        _refuse_existing([path for paths in planned.values() for path in paths])
    try:
        written = _draw(visualizer, pictures, planned)
    except OSError as error:
        raise CommandError(
            f"--output-dir must be a folder that can be written; got {visualizer.output_dir} ({error.strerror})"
        ) from error
    if names is not None and not any(written.values()):
        reasons = "; ".join(dict.fromkeys(text for plots in written.values() for text in plots.left_out.values()))
        raise CommandError(f"nothing could be drawn: {reasons}")
    _tell(written, as_json=request.as_json)


def _draw(
    visualizer: AttentionVisualizer, pictures: Pictures, planned: dict[int, list[Path]]
) -> dict[int, WrittenPlots]:
    with counting("drawing", sum(map(len, planned.values()))) as advance:
        return {
            index: visualizer.draw(pictures, index, force=True, advance=lambda *_: advance())  # checked above
            for index in planned
        }


def _refuse_existing(paths: list[Path]) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 1} more files" if len(there) > 1 else ""
        raise CommandError(f"{there[0]}{more} would be overwritten. Give --force, or another --output-dir.")


def _tell(written: dict[int, WrittenPlots], *, as_json: bool) -> None:
    if as_json:
        samples = [
            {"sample": index, "written": [str(path) for path in plots], "left_out": plots.left_out}
            for index, plots in written.items()
        ]
        print_json({"schema": "kvcompress.plot/1", "samples": samples})
        return
    for index, plots in written.items():
        for path in plots:
            typer.echo(f"written: {path}")
        for name, reason in plots.left_out.items():
            typer.echo(f"left out of sample {index}: {name}: {reason}", err=True)
