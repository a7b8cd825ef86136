"""The work of ``kvcompress prune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from kvcompress.commands.counting import counting
from kvcompress.commands.lists import fractions, names
from kvcompress.commands.result_files import claim, print_json, write_json
from kvcompress.commands.result_pictures import check_pictures, draw_pictures
from kvcompress.commands.studies import Source, Study, begin
from kvcompress.engine.attach import text_config
from kvcompress.engine.head_shapes import head_shapes

if TYPE_CHECKING:
    from kvcompress.analysis.pruning.simulate import PruningSimulation

SCHEMA = "kvcompress.pruning/1"
FILE = "pruning.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    what: str
    ratios: str
    orders: str
    leave_one_out: bool
    seed: int
    sequence_length: int
    steps: int
    output_dir: Path
    force: bool
    plots: bool
    as_json: bool


def run_prune(source: Source, request: Request) -> dict[str, Any]:
    """Prunes, writes ``pruning.json`` and tells what came of it.

    Returns:
        What was written.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        UnsupportedModelError: the model cannot be compressed.
    """
    from kvcompress.analysis.pruning.importance import importance_json
    from kvcompress.analysis.pruning.order import ORDERS, Order
    from kvcompress.analysis.pruning.plan import WHATS, What

    whats = cast("list[What]", names("--what", request.what, WHATS))
    orders = cast("list[Order]", names("--orders", request.orders, ORDERS))
    ratios = fractions("--ratios", request.ratios)
    (path,) = claim(request.output_dir, [FILE], force=request.force)
    if request.plots:
        check_pictures(request.output_dir, "pruning", force=request.force)
    study = begin(source, sequence_length=request.sequence_length, steps=request.steps)
    simulation = _simulation(study, request)
    with counting("points", len(whats) * len(orders) * len(ratios)) as advance:
        points = simulation.curve(whats, ratios, orders, seed=request.seed, advance=advance)
    importance = simulation.importance[0]
    content = {
        **study.head(SCHEMA),
        "context": study.context,
        "steps": study.steps,
        "windows": 1,
        "layer_indices": [entry.layer for entry in importance],
        "points": [point.to_json() for point in points],
        "importance": {
            **importance_json(importance),
            "heads_unit": "KL without the head, nats" if request.leave_one_out else "attention × norm of the value",
        },
    }
    write_json(path, content)
    written = [path, *(draw_pictures(request.output_dir, "pruning") if request.plots else [])]
    if request.as_json:
        print_json({**content, "written": [str(each) for each in written]})
    else:
        _show(content, written)
    return content


def _simulation(study: Study, request: Request) -> PruningSimulation:
    """Scores the prompt, with a bar where every head is left out once."""
    from kvcompress.analysis.pruning.simulate import PruningSimulation

    heads = sum(shape.kv_heads for shape in head_shapes(text_config(study.loaded.model)))
    with counting("heads", heads if request.leave_one_out else 0) as advance:
        return PruningSimulation(
            study.loaded.model,
            study.windows,
            context=study.context,
            leave_one_out=request.leave_one_out,
            advance=advance,
        )


def _show(content: dict[str, Any], written: list[Path]) -> None:
    console = Console(highlight=False)
    console.print(
        f"prompt of {content['context']} tokens, {content['steps']} predictions after it; perplexity with the full "
        f"cache {_number(content['points'][0]['full_perplexity'], 2)}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("dropped", "order", "ratio", "units", "kept", "KL, nats", "top-1", "perplexity"):
        table.add_column(name, justify="left" if name in ("dropped", "order") else "right", no_wrap=True)
    for point in content["points"]:
        table.add_row(
            point["what"],
            point["order"],
            f"{point['ratio']:g}",
            f"{point['dropped']}/{point['units']}",
            f"{point['kv_bytes'] / point['full_bytes']:.1%}",
            _number(point["kl"], 4),
            f"{point['top1']:.1%}",
            _number(point["perplexity"], 2),
        )
    console.print(table)
    for path in written:
        console.print(f"written: {path}", markup=False, soft_wrap=True)


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"
