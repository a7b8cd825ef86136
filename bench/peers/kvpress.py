"""kvpress side by side with the engine: `python -m kvcompress.bench.peers.kvpress [--samples N] [--policies ...]`.

Both answer the same prompts with the same model, greedily, and keep as many tokens. kvpress runs in an environment of
its own, which the first run makes (`bench/peers/kvpress-requirements.txt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kvcompress.bench.peers.comparison import OURS, THEIRS, Asked, accuracy, speed
from kvcompress.bench.peers.methods import METHODS, Method, chosen_methods
from kvcompress.bench.peers.peer_environment import FOLDER, REQUIREMENTS
from kvcompress.bench.peers.side_process import start_kvpress, start_ours
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.tasks.sample import QUERY_AGNOSTIC, QUERY_AWARE
from kvcompress.bench.testbed.location import MODEL_DIR

SCHEMA: Final = "kvcompress.peers/1"
TASKS: Final = ("needle_8", "variables_2", "key_value")


def describe(row: dict[str, Any]) -> str:
    """One line on a row, for the terminal."""
    if row["case"] == "accuracy":
        parts = [f"{row['task']:12} {row['method']:20} {row['kept']:5} kept"]
        for side in (OURS, THEIRS):
            if side in row:
                low, high = row[side]["interval_95"]
                held = row[side]["num_bytes"] / 1024
                parts.append(f"{side} {100 * row[side]['exact_match']:5.1f} % [{100 * low:.0f}, {100 * high:.0f}]")
                parts.append(f"{held:.0f} KiB")
        sets = row.get("kept_sets")
        if sets is not None:
            parts.append(
                f"kept sets of {sets['rows']}: {sets['equal']} equal, {sets['explained']} but for ties and last"
            )
        return "  ".join(parts)
    ours, theirs, ratio = row[OURS]["median"], row[THEIRS]["median"], row["ratio"]
    return (
        f"{row['phase']:12} {row['method']:20} {ours:9.2f} ms, kvpress {theirs:9.2f} ms, ours / theirs "
        f"{ratio['median']:.3f} [{ratio['q20']:.3f}, {ratio['q80']:.3f}]"
    )


_MODES: Final = {
    QUERY_AWARE: "query-aware: the question ends the prompt; the first token comes from the uncompressed prefill",
    QUERY_AGNOSTIC: "query-agnostic: the context is compressed alone, the question comes after it as one block",
}


def _notes(versions: dict[str, Any], mode: str) -> dict[str, Any]:
    pinned = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.startswith("kvpress==")]
    return {
        "peer": {"kvpress": pinned[0].removeprefix("kvpress=="), **versions},
        "mode": _MODES[mode],
        "bytes": "num_bytes per prompt after prefill, final_bytes after the answer; ours include all bookkeeping",
        "clock": "processor time",
        "threads": 1,  # of each side
        "differences": {name: method.difference for name, method in METHODS.items() if method.difference},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared.

    Attributes:
        methods: by name.
        tasks: tasks of the testbed.
        samples: prompts of each task.
        length: tokens of each prompt.
        kept: tokens kept per layer and head on average.
        rounds: rounds of the timing; 0 leaves it out.
        speed_length: tokens of the prompt that is timed, of which as large a part is kept as of the others at the first
            size.
        new_tokens: tokens generated for the timing.
        mode: query-aware or query-agnostic; what is timed is the same in both.
    """

    methods: Mapping[str, Method]
    tasks: list[str]
    samples: int
    length: int
    kept: list[int]
    rounds: int
    speed_length: int
    new_tokens: int
    mode: str

    def __post_init__(self) -> None:
        """Checks the mode."""
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}; got {self.mode!r}")

    def rows(self, sides: Mapping[str, Asked]) -> Iterator[dict[str, Any]]:
        """Runs it, accuracy first."""
        yield from accuracy(
            sides,
            self.methods,
            tasks=self.tasks,
            length=self.length,
            kept=self.kept,
            samples=self.samples,
            mode=self.mode,
        )
        if self.rounds:
            yield from speed(
                sides,
                self.methods,
                task=self.tasks[0],
                length=self.speed_length,
                kept=round(self.kept[0] / self.length * self.speed_length),
                new_tokens=self.new_tokens,
                rounds=self.rounds,
            )


def main(
    model: Annotated[Path, typer.Option(help="Folder of the embedded model.")] = MODEL_DIR,
    policies: Annotated[str, typer.Option(help="Which methods, with commas.")] = ",".join(METHODS),
    tasks: Annotated[str, typer.Option(help="Tasks of the testbed, with commas.")] = ",".join(TASKS),
    samples: Annotated[int, typer.Option(min=1, help="Prompts of each task.")] = 50,
    length: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 512,
    kept: Annotated[str, typer.Option(help="Tokens kept per layer and head, with commas.")] = "64",
    mode: Annotated[
        str, typer.Option(help="query_aware, or query_agnostic: the question comes after the compression.")
    ] = QUERY_AWARE,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the timing; 0 leaves it out.")] = 7,
    speed_length: Annotated[int, typer.Option(help="Tokens of the prompt that is timed.")] = 2048,
    new_tokens: Annotated[int, typer.Option(help="Tokens generated for the timing.")] = 33,
    folder: Annotated[Path, typer.Option("--environment", help="Where kvpress's environment is made.")] = FOLDER,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "peers_kvpress.json",
) -> None:
    """Compare accuracy, kept tokens and time with kvpress."""
    made_in = environment()
    rows: list[dict[str, Any]] = []
    try:
        comparison = Comparison(
            methods=chosen_methods(policies.split(",")),
            tasks=tasks.split(","),
            samples=samples,
            length=length,
            kept=[int(size) for size in kept.split(",")],
            rounds=rounds,
            speed_length=speed_length,
            new_tokens=new_tokens,
            mode=mode,
        )
        with start_ours(model) as ours, start_kvpress(model, folder) as theirs:
            for row in comparison.rows({OURS: ours, THEIRS: theirs}):
                typer.echo(describe(row))
                rows.append(row)
    except (ValueError, RuntimeError) as error:  # SideError is one of the latter
        typer.echo(f"peers.kvpress: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error
    write_results(results(rows, made_in=made_in, schema=SCHEMA, notes=_notes(theirs.versions, mode)), out)
    typer.echo(f"written: {out}")


if __name__ == "__main__":
    typer.run(main)
