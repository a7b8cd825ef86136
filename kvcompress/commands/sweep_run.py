"""The work of ``kvcompress bench sweep``."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.loading import choose_place, load_model

if TYPE_CHECKING:
    from kvcompress.bench.sweep.grid import Grid
    from kvcompress.bench.sweep.row import Cell, Row
    from kvcompress.bench.sweep.runner import Runner

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for; texts are lists with commas, as on the command line."""

    policies: str
    shared: str | None
    cache_sizes: str | None
    ratios: str | None
    tasks: str
    lengths: str
    modes: str
    samples: int
    fidelity_samples: int
    seed: int
    model: str | None
    device: str
    dtype: str
    out: Path
    batch_size: int
    processes: int
    prompt_bytes: int
    ray: bool
    ray_actors: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Loads the model of a sweep, in whatever process it is called."""

    name: str | None
    device: str
    dtype: str

    def __call__(self) -> tuple[PreTrainedModel, Any]:
        """The model, on its device, and its tokenizer."""
        loaded = load_model(self.name, choose_place(self.device, self.dtype))
        return loaded.model, loaded.tokenizer


def run_sweep(request: Request) -> None:
    """Runs the cells that are not finished, each written down before the next.

    Raises:
        CommandError: the request cannot be run; nothing has been.
        ValueError: likewise, or a cell failed; the rows finished so far are in the file.
    """
    from kvcompress.bench.sweep.grid import cells_of
    from kvcompress.bench.sweep.rows_file import RowsFile
    from kvcompress.bench.sweep.runner import Runner

    grid = grid_of(request)
    if request.ray and request.processes > 1:
        raise CommandError("--ray and --processes are two ways of running a sweep; got both. Leave one out.")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory profiler tells of itself otherwise
    source = ModelSource(name=request.model, device=request.device, dtype=request.dtype)
    with RowsFile(request.out, warn) as file:
        runner = Runner(source, batch_size=request.batch_size, prompt_bytes=request.prompt_bytes)
        cells = cells_of(grid, _name(request.model), runner.model, runner.tokenizer)
        todo = [cell for cell in cells if cell not in file.rows]
        if len(todo) < len(cells):
            typer.echo(f"{len(cells) - len(todo)} of {len(cells)} cells are in {request.out} already", err=True)
        with _Watch(todo) as watch:
            try:
                for row in _rows(request, source, runner, todo, watch.advance):
                    file.append(row)
                    watch.finished(row)
            except KeyboardInterrupt:
                typer.echo(
                    f"stopped: {watch.done} of {len(todo)} cells are finished and in {request.out}; run the same "
                    "command again for the rest",
                    err=True,
                )
                raise
            except ImportError as error:  # an extra that is not installed; the message says which
                raise CommandError(str(error)) from error
    typer.echo(f"written: {request.out} ({len(todo)} new rows, {len(cells) - len(todo)} kept)")


def grid_of(request: Request) -> Grid:
    """The cells that a request asks for, before any model is loaded.

    Raises:
        CommandError: a list that cannot be read.
        ValueError: an unknown name, or a value out of range.
    """
    from kvcompress.bench.sweep.grid import Grid
    from kvcompress.bench.sweep.policy_text import parse_parameters, parse_policy

    parts = request.shared.split(":") if request.shared else []
    shared = parse_parameters(parts, request.shared or "")
    return Grid(
        policies=[parse_policy(text, shared=shared) for text in _texts(request.policies)],
        cache_sizes=_numbers("--cache-sizes", request.cache_sizes, int),
        ratios=_numbers("--ratios", request.ratios, float),
        tasks=_texts(request.tasks),
        lengths=_numbers("--lengths", request.lengths, int),
        modes=_texts(request.modes),
        samples=request.samples,
        fidelity_samples=request.fidelity_samples,
        seed=request.seed,
    )


def _rows(
    request: Request, source: ModelSource, runner: Runner, cells: Sequence[Cell], advance: Callable[[int], object]
) -> Iterator[Row]:
    from kvcompress.bench.sweep.ray_cluster import on_ray
    from kvcompress.bench.sweep.run import in_processes, in_this_process

    if not cells:
        return iter(())
    settings = {"batch_size": request.batch_size, "prompt_bytes": request.prompt_bytes}
    if request.ray:
        gpu = runner.model.device.type == "cuda"
        return on_ray(source, cells, **settings, actors=request.ray_actors, gpu=gpu)
    if request.processes > 1:
        count = min(request.processes, len(cells))
        return in_processes(source, cells, **settings, processes=count)
    return in_this_process(runner, cells, advance)


def _texts(listed: str) -> list[str]:
    return [text.strip() for text in listed.split(",") if text.strip()]


def _numbers(option: str, listed: str | None, kind: type[_Number]) -> list[_Number]:
    try:
        numbers = [kind(text) for text in _texts(listed or "")]
    except ValueError:
        raise CommandError(
            f"{option} must be numbers (of type {kind.__name__}) with commas between; got {listed!r}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise CommandError(f"{option} must be finite; got {listed!r}")
    return numbers


def _name(model: str | None) -> str:
    """What rows call the model: not where on this machine it lies."""
    return (
        "embedded" if model is None else Path(model).expanduser().name if Path(model).expanduser().is_dir() else model
    )


class _Watch:
    """Tells how far a sweep is: a bar with the time left on a terminal, a line per row everywhere."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = len(cells)
        self.done = 0
        self._work = float(sum(cell.n * cell.length for cell in cells))
        self._worked = 0.0
        self._of_this_cell = 0
        self._started = time.monotonic()
        columns = (
            BarColumn(),
            TextColumn("{task.fields[finished]} cells"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("", total=self._work, finished=f"0 of {self.cells}")

    def advance(self, tokens: int) -> None:
        """Some prompts of the running cell are through."""
        self._of_this_cell += tokens
        self._bar.update(self._task, completed=self._worked + self._of_this_cell)

    def finished(self, row: Row) -> None:
        """A cell is through and on disk."""
        self.done += 1
        self._worked += row.cell.n * row.cell.length
        self._of_this_cell = 0
        self._bar.update(self._task, completed=self._worked, finished=f"{self.done} of {self.cells}")
        spent = time.monotonic() - self._started
        left = spent / self._worked * (self._work - self._worked)
        interval = "" if row.ci95 is None else f" [{100 * row.ci95[0]:.0f}, {100 * row.ci95[1]:.0f}]"
        line = f"{self.done}/{self.cells} {row.cell}: {100 * row.score:.1f} %{interval}, {row.kv_bytes / 1024:.0f} KiB"
        if self._bar.disable:
            typer.echo(f"{line}, about {_duration(left)} left", err=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
