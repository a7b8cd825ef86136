"""The work of ``kvcompress similarity``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kvcompress.commands.lists import fractions, indices
from kvcompress.commands.result_files import claim, print_json, write_json
from kvcompress.commands.studies import Source, begin, layers_of

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
    as_json: bool


def run_similarity(source: Source, request: Request) -> dict[str, Any]:
    """Compares, writes ``similarity.json`` and tells what came of it.

    Returns:
        What was written.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        ValueError: a layer that is not there.
    """
    from kvcompress.analysis.similarity.cache_similarity import cache_similarity

    wanted = indices("--layers", request.layers)
    thresholds = fractions("--thresholds", request.thresholds, least=-1.0)
    (path,) = claim(request.output_dir, [FILE], force=request.force)
    study = begin(source, sequence_length=request.sequence_length, steps=0)
    found = cache_similarity(layers_of(study, wanted), most_tokens=request.max_tokens, thresholds=thresholds)
    content = {**study.head(SCHEMA), **found.to_json()}
    write_json(path, content)
    if request.as_json:
        print_json({**content, "written": [str(path)]})
    else:
        _show(content, path)
    return content


def _show(content: dict[str, Any], path: Path) -> None:
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
    console.print(f"written: {path}", markup=False, soft_wrap=True)


def _mean_of_others(matrix: list[list[float]]) -> str:
    """Mean off the diagonal, or nothing for a single head."""
    others = [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]
    return f"{sum(others) / len(others):.3f}" if others else ""
