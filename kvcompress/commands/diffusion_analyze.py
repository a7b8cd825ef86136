"""The work of ``kvcompress diffusion analyze``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from kvcompress.commands.diffusion_outputs import draw, write_page
from kvcompress.commands.result_files import claim, print_json, write_json

if TYPE_CHECKING:
    from kvcompress.bench.workloads.diffusion_lm.history import History

RESULT: Final = "diffusion_analysis.json"
_MOST_TOKENS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeRequest:
    """The command's options as they were given; see there."""

    folder: Path
    max_layers: int | None
    prompt_length: int | None
    max_tokens: int | None
    verbose: bool
    output_dir: Path | None
    force: bool


def run_analyze(request: AnalyzeRequest, *, as_json: bool) -> None:
    """Analyses a history, writes JSON, pictures and page, and tells the essentials.

    Raises:
        CommandError: files are in the way, or cannot be written.
        ValueError: no history, a damaged one, or a number out of range.
    """
    from kvcompress.analysis.report.write import FILE_NAME as PAGE
    from kvcompress.analysis.summary.reader import list_samples
    from kvcompress.bench.workloads.diffusion_lm.history import read_history
    from kvcompress.bench.workloads.diffusion_lm.history_analysis import analysis_of, restrict
    from kvcompress.bench.workloads.diffusion_lm.pictures import PICTURES

    history = restrict(
        read_history(request.folder),
        max_layers=request.max_layers,
        max_tokens=request.max_tokens,
        prompt_length=request.prompt_length,
    )
    out = request.output_dir or request.folder
    captured = bool(list_samples(request.folder))
    analysis_folder = out / "analysis"  # apart from the pictures that `generate` drew of the whole history
    claim(analysis_folder, [RESULT, *(f"{name}.png" for name in PICTURES)], force=request.force)
    if captured and out != request.folder:
        claim(out, [PAGE], force=request.force)
    content = analysis_of(history)
    write_json(analysis_folder / RESULT, content)
    written = [analysis_folder / RESULT, *draw(history, analysis_folder)]
    if captured:
        written.append(write_page(request.folder, out, force=True))
    if as_json:
        print_json({**content, "written": [str(path) for path in written]})
        return
    _show(history, content, verbose=request.verbose)
    for path in written:
        typer.echo(f"written: {path}")


def _show(history: History, content: dict[str, Any], *, verbose: bool) -> None:
    console = Console(highlight=False)
    cross = content["token_influence"]["cross_mass"]
    console.print(
        f"{content['steps']} steps, {content['tokens']} tokens ({content['prompt_length']} of the prompt), "
        f"{len(content['layers'])} layers; maps of {content['maps_bytes'] / 2**20:.1f} MiB"
    )
    console.print(
        f"generated tokens pay {100 * cross['generated_to_prompt']:.0f} % of their attention to the prompt, the "
        f"prompt's pay {100 * cross['prompt_to_generated']:.0f} % to the generated ones"
    )
    if not verbose:
        return
    table = Table("layer", "entropy, nats", "moved per step", "keys that hold 90 %", "to the prompt", box=None)
    evolution = content["evolution"]
    for place, name in enumerate(content["layers"]):
        moved = evolution["moved_to_next"][place]
        table.add_row(
            name,
            f"{content['statistics']['layers'][name]['entropy']['mean']:.2f}",
            f"{sum(moved) / len(moved):.3f}" if moved else "-",
            " to ".join(f"{evolution['keys_holding_90_percent'][place][step]:.1f}" for step in (0, -1)),
            " to ".join(f"{evolution['generated_to_prompt'][place][step]:.2f}" for step in (0, -1)),
        )
    console.print(table)
    influence = content["token_influence"]["prompt_tokens"]
    most = sorted(influence, key=lambda token: -token["influence_on_generated"])[:_MOST_TOKENS]
    tokens = Table("token of the prompt", "position", "attention of the generated tokens", box=None)
    for token in most:
        text = history.tokens[token["position"]]
        tokens.add_row(
            repr(text), str(history.first_token + token["position"]), f"{token['influence_on_generated']:.4f}"
        )
    console.print(tokens, markup=False)
