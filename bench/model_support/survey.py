"""Which of transformers' decoders work: `python -m kvcompress.bench.model_support.survey [--only NAMES]`.

Builds a tiny random model of each kind and generates with transformers' own cache and with compressed ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import torch
import transformers
import typer

from kvcompress.bench.model_support.probe import LARGE, LENGTHS, NEW_TOKENS, SMALL, probe
from kvcompress.bench.model_support.tiny import LAYERS, WINDOW, model_types
from kvcompress.bench.results_file import RESULTS, environment, results, write_results

SCHEMA: Final = "kvcompress.bench.model_support/1"
FILE: Final = RESULTS / "model_support.json"


def main(
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FILE,
    only: Annotated[str, typer.Option(help="Kinds of models, with commas between; without it all.")] = "",
) -> None:
    """Try every decoder of transformers with a compressed cache."""
    kinds = model_types()
    names = [name.strip() for name in only.split(",") if name.strip()] or list(kinds)
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise typer.BadParameter(f"transformers knows no decoder {', '.join(unknown)}", param_hint="--only")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny models run fastest on one
    made_in = environment()
    found = []
    for name in names:
        seen = probe(name, seeing=kinds[name])
        found.append(asdict(seen))
        typer.echo(f"{name:30} {seen.outcome:10} {seen.reason or ''}"[:160])
    notes = {
        "prompts": LENGTHS,
        "new_tokens": NEW_TOKENS,
        "cache_sizes": [LARGE, SMALL],
        "model_layers": LAYERS,
        "sliding_window": WINDOW,
    }
    write_results(results(found, made_in=made_in, schema=SCHEMA, notes=notes), out)
    counts = Counter(each["outcome"] for each in found)
    typer.echo(f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items())}; written: {out}")
    if counts["wrong"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
