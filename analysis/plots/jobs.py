"""Which files a request makes, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from kvcompress.analysis.plots.catalogue import VIEWS, Place, View
from kvcompress.analysis.plots.interactive_views import INTERACTIVE_VIEWS
from kvcompress.analysis.plots.problems import NothingToDrawError, checked_head, checked_step, layer_place
from kvcompress.analysis.plots.registry import registered_plots
from kvcompress.analysis.plots.result_views import RESULT_VIEWS, ResultView
from kvcompress.analysis.plots.results import Results, read_results, result_layers
from kvcompress.analysis.plots.stored import layer_numbers
from kvcompress.analysis.summary.reader import Sample

MOST_LAYERS: Final = 8  # that have pictures of their own, unless one is asked for
MOST_STEPS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        names: of pictures; None: all of the comprehensive report.
        layer: the one layer to draw where there is a picture per layer; None: up to eight, evenly spaced.
        step: the step to draw; None: the first, and up to five where there is a picture per step.
        head: query head; None: mean over heads.
    """

    names: Sequence[str] | None = None
    layer: int | None = None
    step: int | None = None
    head: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A file to make.

    Attributes:
        name: the picture's.
        path: the file.
        draw: makes the figure, of matplotlib for ``.png`` and of plotly for ``.html``.
        users: whether it is a user's own.
    """

    name: str
    path: Path
    draw: Callable[[], Any]
    users: bool = False


def all_names() -> list[str]:
    """Names of all pictures, the user's own among them."""
    return [*VIEWS, *INTERACTIVE_VIEWS, *RESULT_VIEWS, *registered_plots()]


def check_request(sample: Sample, request: Request) -> None:
    """Checks a request against a sample.

    Raises:
        ValueError: an unknown name, or no such layer, step or head.
    """
    unknown = [name for name in request.names or () if name not in all_names()]
    if unknown:
        raise ValueError(f"what must be of {', '.join(all_names())}; got {', '.join(map(repr, unknown))}")
    if request.layer is not None:
        layer_place(sample, request.layer)
    if request.step is not None:
        checked_step(sample, request.step)
    checked_head(sample, request.head)


def sample_jobs(sample: Sample, request: Request, folder: Path) -> Iterator[Job]:
    """The files of a sample that a request makes, those of results not among them."""
    chosen = {name: view for name, view in VIEWS.items() if _wanted(name, request, always=view.always)}
    for name, view in chosen.items():
        for place in _places(sample, view, request):
            path = _path(folder, view.file, sample.index, place)
            yield Job(name=name, path=path, draw=partial(view.draw, sample, place))
    for name, page in INTERACTIVE_VIEWS.items():
        if _wanted(name, request, always=page.always):
            for layer in chosen_layers(page.layers(sample), request):
                place = Place(layer=layer, step=request.step or 0, head=request.head)
                path = _path(folder, page.file, sample.index, place)
                yield Job(name=name, path=path, draw=partial(page.draw, sample, place))
    for name, plot in registered_plots().items():
        if _wanted(name, request, always=True):
            path = folder / "plots" / f"{name}_sample_{sample.index}.png"
            yield Job(name=name, path=path, draw=partial(plot, sample), users=True)


def result_jobs(results_folder: Path, request: Request, folder: Path, left_out: dict[str, str]) -> Iterator[Job]:
    """The files made of the results in a folder; what cannot be made is told in ``left_out``.

    Raises:
        ValueError: a results file is damaged.
    """
    for name, view in RESULT_VIEWS.items():
        if not _wanted(name, request, always=True):
            continue
        try:
            results = read_results(results_folder, view.results)
        except NothingToDrawError as reason:
            left_out[name] = str(reason)
            continue
        for layer in chosen_layers(result_layers(results), request) if view.by_layer else [0]:
            path = folder / view.file.format(layer=layer)
            yield Job(name=name, path=path, draw=partial(_draw_results, view, results, layer))


def _draw_results(view: ResultView, results: Results, layer: int) -> Figure:
    try:
        return view.draw(results, layer)
    except (KeyError, IndexError, TypeError) as error:  # the file is of the right schema and lacks something
        raise ValueError(
            f"{view.results}.json is damaged ({type(error).__name__}: {error}). Write it again."
        ) from error


def chosen_layers(layers: Sequence[int], request: Request) -> list[int]:
    """The layers that get pictures of their own."""
    return [request.layer] if request.layer is not None else _spread(layers, MOST_LAYERS)


def chosen_steps(sample: Sample, request: Request) -> list[int]:
    """The steps that get pictures of their own."""
    return [request.step] if request.step is not None else _spread(range(sample.events), MOST_STEPS)


def not_drawn(sample: Sample, request: Request) -> dict[str, str]:
    """Which layers and steps have no pictures of their own because there are many."""
    told = {}
    layers, steps = layer_numbers(sample), range(sample.events)
    if request.layer is None and len(layers) > MOST_LAYERS:
        told["layers"] = f"{MOST_LAYERS} of {len(layers)} layers have pictures of their own; ask for one by its number"
    if request.step is None and len(steps) > MOST_STEPS:
        told["steps"] = f"{MOST_STEPS} of {len(steps)} steps have pictures of their own; ask for one by its number"
    return told


def _wanted(name: str, request: Request, *, always: bool) -> bool:
    return always if request.names is None else name in request.names


def _places(sample: Sample, view: View, request: Request) -> list[Place]:
    layers, step = chosen_layers(layer_numbers(sample), request), request.step or 0
    if view.each == "layer":
        return [Place(layer=layer, step=step, head=request.head) for layer in layers]
    if view.each == "step":
        return [Place(layer=layers[0], step=at, head=request.head) for at in chosen_steps(sample, request)]
    return [Place(layer=layers[0], step=step, head=request.head)]


def _path(folder: Path, file: str, index: int, place: Place) -> Path:
    """Where a picture goes: names without a number are those of sample 0, other samples have folders of their own."""
    name = file.format(sample=index, layer=place.layer, step=place.step)
    return folder / name if index == 0 or "{sample}" in file else folder / f"sample_{index}" / name


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """All, or as many as ``most``, evenly spaced, the first and last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, most)]
