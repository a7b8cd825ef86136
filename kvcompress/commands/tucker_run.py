"""The work of ``kvcompress tucker``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kvcompress.commands.counting import counting
from kvcompress.commands.lists import indices
from kvcompress.commands.result_files import claim, print_json, write_json
from kvcompress.commands.result_pictures import check_pictures, draw_pictures
from kvcompress.commands.studies import Source, Study, begin, layers_of

if TYPE_CHECKING:
    from kvcompress.analysis.factorisation.layer_states import LayerStates
    from kvcompress.analysis.factorisation.ranks import Ranks

SCHEMA = "kvcompress.tucker/1"
FILE = "tucker.json"
_BULKY = ("core", "factors", "token_rows", "embedding_rows")
_DEFAULT_FRACTION = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    sequence_length: int
    embedding_rank: int | None
    token_rank: int | None
    head_rank: int | None
    layers: str | None
    sensitivity: bool
    steps: int
    output_dir: Path
    force: bool
    plots: bool
    as_json: bool


def run_tucker(source: Source, request: Request) -> dict[str, Any]:
    """Decomposes, measures, writes ``tucker.json`` and tells what came of it.

    Returns:
        What was written.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        ValueError: ranks that the cache cannot have, or a layer that is not there.
        UnsupportedModelError: sensitivity was asked for, and the model cannot be compressed.
    """
    wanted = indices("--layers", request.layers)
    (path,) = claim(request.output_dir, [FILE], force=request.force)
    if request.plots:
        check_pictures(request.output_dir, "tucker", force=request.force)
    study = begin(source, sequence_length=request.sequence_length, steps=request.steps if request.sensitivity else 0)
    content = tucker_results(study, layers_of(study, wanted), request)
    write_json(path, content)
    written = [path, *(draw_pictures(request.output_dir, "tucker") if request.plots else [])]
    if request.as_json:
        layers = [{key: value for key, value in layer.items() if key not in _BULKY} for layer in content["layers"]]
        print_json({**content, "layers": layers, "written": [str(each) for each in written]})
    else:
        _show(content, written)
    return content


def ranks_for(shape: tuple[int, int, int], request: Request) -> Ranks:
    """The ranks that were given, and defaults for the others.

    Args:
        shape: ``(kv_heads, tokens, head_dim)`` of the tensors.
        request: what the user asked for.
    """
    from kvcompress.analysis.factorisation.ranks import Ranks, ranks_at

    default = ranks_at(shape, _DEFAULT_FRACTION, request.head_rank)
    embedding = request.embedding_rank or default.embedding
    heads = request.head_rank or shape[0]
    quarter = max(1, round(_DEFAULT_FRACTION * shape[1]))
    return Ranks(
        token=request.token_rank or min(quarter, heads * embedding), embedding=embedding, head=request.head_rank
    )


def tucker_results(study: Study, layers: Sequence[LayerStates], request: Request) -> dict[str, Any]:
    """What ``tucker.json`` holds.

    Args:
        study: the model and the text.
        layers: the cache of the text.
        request: ranks, and whether sensitivity is measured.

    Raises:
        ValueError: ranks that the cache cannot have.
        UnsupportedModelError: sensitivity was asked for, and the model cannot be compressed.
    """
    from kvcompress.analysis.factorisation.components import MOST_SHOWN, components
    from kvcompress.analysis.factorisation.layer_states import TARGETS
    from kvcompress.analysis.factorisation.rank_sweep import rank_sweep
    from kvcompress.analysis.factorisation.sensitivity import layer_sensitivity

    heads, tokens, head_dim = layers[0].keys.shape
    ranks = ranks_for((heads, tokens, head_dim), request)
    found: list[Any] = []
    sweep: list[Any] = []
    sensitivity: list[Any] = []
    with counting("layers", len(layers)) as advance:
        for states in layers:
            for target in TARGETS:
                found.append(components(states, target, ranks).to_json())
                sweep += [point.to_json() for point in rank_sweep(states, target, head_rank=request.head_rank)]
            if request.sensitivity:
                measured = layer_sensitivity(
                    study.loaded.model, study.windows, states.layer, ranks, context=study.context
                )
                sensitivity.append(measured.to_json())
            advance()
    setting = {"context": study.context, "steps": study.steps, "windows": 1}
    return {
        **study.head(SCHEMA),
        "ranks": ranks.to_json(),
        "most_shown": MOST_SHOWN,
        "layers": found,
        "rank_sweep": sweep,
        "sensitivity": sensitivity if request.sensitivity else None,
        "sensitivity_setting": setting if request.sensitivity else None,
    }


def _show(content: dict[str, Any], written: list[Path]) -> None:
    console = Console(highlight=False)
    ranks = content["ranks"]
    head = "" if ranks["head"] is None else f", head rank {ranks['head']}"
    console.print(
        f"{content['tokens']} tokens, token rank {ranks['token']}, embedding rank {ranks['embedding']}{head}",
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "of", "error", "SVD error", "removed", "eff. rank", "KL, nats", "top-1"):
        table.add_column(name, justify="left" if name == "of" else "right", no_wrap=True)
    costs = {entry["layer"]: entry for entry in content["sensitivity"] or []}
    for layer in content["layers"]:
        cost = costs.get(layer["layer"]) if layer["target"] == "keys" else None
        svd = layer["svd_relative_error"]
        table.add_row(
            str(layer["layer"]) if layer["target"] == "keys" else "",
            layer["target"],
            f"{layer['relative_error']:.3f}",
            "none fits" if svd is None else f"{svd:.3f}",
            f"{layer['compression_ratio']:.1%}",
            f"{layer['effective_rank']:.1f}",
            "" if cost is None or cost["kl"] is None else f"{cost['kl']:.4f}",
            "" if cost is None else f"{cost['top1']:.1%}",
        )
    console.print(table)
    if costs:
        setting = content["sensitivity_setting"]
        console.print(
            f"KL and top-1: of {setting['steps']} predictions after the text, that layer's cache alone of low rank",
            markup=False,
            soft_wrap=True,
        )
    for path in written:
        console.print(f"written: {path}", markup=False, soft_wrap=True)
