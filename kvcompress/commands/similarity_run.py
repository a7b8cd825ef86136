"""The work of ``kvcompress similarity``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kvcompress.commands.lists import fractions, indices
from kvcompress.commands.result_files import claim, print_json, write_json
from kvcompress.commands.result_pictures import check_pictures, draw_pictures
from kvcompress.commands.studies import Source, Study, begin, layers_of

if TYPE_CHECKING:
    from kvcompress.analysis.factorisation.layer_states import LayerStates

SCHEMA = "kvcompress.similarity/1"
FILE = "similarity.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    sequence_length: int
    max_tokens: int
    thresholds: str
    layers: str | None
    output_dir: Path
    force: bool
    plots: bool
    as_json: bool


def run_similarity(source: Source, request: Request) -> dict[str, Any]:
    """Compares, writes ``similarity.json`` and tells what came of it.

    Returns:
        What was written.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        ValueError: a layer that is not there.
    """
    wanted = indices("--layers", request.layers)
    thresholds = fractions("--thresholds", request.thresholds, least=-1.0)
    (path,) = claim(request.output_dir, [FILE], force=request.force)
    if request.plots:
        check_pictures(request.output_dir, "similarity", force=request.force)
    study = begin(source, sequence_length=request.sequence_length, steps=0)
    content = similarity_results(study, layers_of(study, wanted), request.max_tokens, thresholds)
    write_json(path, content)
    written = [path, *(draw_pictures(request.output_dir, "similarity") if request.plots else [])]
    if request.as_json:
        print_json({**content, "written": [str(each) for each in written]})
    else:
        _show(content, written)
    return content


def similarity_results(
    study: Study, layers: Sequence[LayerStates], most_tokens: int, thresholds: Sequence[float]
) -> dict[str, Any]:
    """What ``similarity.json`` holds.

    Args:
        study: the model and the text.
        layers: the cache of the text.
        most_tokens: most tokens that matrices show.
        thresholds: cosines above which a token counts as redundant.
    """
    from kvcompress.analysis.similarity.cache_similarity import cache_similarity

    found = cache_similarity(layers, most_tokens=most_tokens, thresholds=thresholds)
    return {**study.head(SCHEMA), **found.to_json()}


def _show(content: dict[str, Any], written: list[Path]) -> None:
    console = Console(highlight=False)
    shown = len(content["token_positions"])
    console.print(
        f"{content['tokens']} tokens; the file's matrices show {shown} of them, evenly spaced. Mean cosine: of all "
        "pairs of tokens; > x: share of tokens whose nearest other one has a larger cosine",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    shares = [f"> {entry['threshold']:g}" for entry in content["layers"][0]["redundancy"]]
    for name in ("layer", "of", "mean cosine", *shares, "CKA of heads"):
        table.add_column(name, justify="left" if name == "of" else "right", no_wrap=True)
    for layer in content["layers"]:
        mean = layer["mean_token_cosine"]
        table.add_row(
            str(layer["layer"]) if layer["target"] == "keys" else "",
            layer["target"],
            "" if mean is None else f"{mean:.3f}",
            *(f"{entry['share']:.1%}" for entry in layer["redundancy"]),
            _mean_of_others(layer["head_cka"]),
        )
    console.print(table)
    for path in written:
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def _mean_of_others(matrix: list[list[float]]) -> str:
    """Mean off the diagonal, or nothing for a single head."""
    others = [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]
    return f"{sum(others) / len(others):.3f}" if others else ""
