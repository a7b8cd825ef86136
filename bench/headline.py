"""Every policy at equal bytes on the embedded model: `python -m kvcompress.bench.headline --trials FILE`.

The tables of docs/which-policy.md. Each prompt runs once and is compressed by every policy at every budget.
The search for `kvc` never saw the first group of tasks; the second has the search's tasks at another length. No sample
is one of the search's or of its first judgement's. An interrupted run goes on from its file of trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.search.contenders import EVERY_POLICY, OURS
from kvcompress.bench.search.means import Means
from kvcompress.bench.search.trials import Bench, MakePolicy, Part, Trial, one_thread
from kvcompress.bench.tasks.sample import MODES
from kvcompress.bench.testbed.location import load_testbed

SCHEMA: Final = "kvcompress.headline/1"
KEEPS: Final = (0.5, 0.25, 0.12, 0.06, 0.03)
LENGTH: Final = 1024
UNSEEN: Final = ("variables_4", "multi_value", "needle_20")
SEEN: Final = ("variables_2", "key_value", "needle_8")
FIRST: Final = 10_000  # of the samples: the first judgement counts from 0, the search from 100,000
_BATCH: Final = 50


def parts_of(samples: int, tasks: Sequence[str] = (*UNSEEN, *SEEN)) -> Iterator[Part]:
    """All cells, unseen tasks first; of these a batch of samples of each before the next."""
    for group in (UNSEEN, *((task,) for task in SEEN)):
        for start in range(0, samples, _BATCH):
            for task, mode in product((task for task in group if task in tasks), MODES):
                count = min(_BATCH, samples - start)
                yield Part(task=task, length=LENGTH, mode=mode, first=FIRST + start, count=count, keeps=KEEPS)


def main(
    trials: Annotated[Path, typer.Option(help="File of finished trials; an interrupted run goes on from it.")],
    samples: Annotated[int, typer.Option(help="Samples of each cell.", min=2)] = 200,
    tasks: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join((*UNSEEN, *SEEN)),
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "headline.json",
) -> None:
    """Measure every policy at equal bytes, with the question in the prompt and after compression."""
    one_thread()
    made_in = environment()
    wanted = tasks.split(",")
    parts = list(parts_of(samples, wanted))
    if {part.task for part in parts} != set(wanted):
        typer.echo(f"headline: --tasks must be among {', '.join((*UNSEEN, *SEEN))}; got {tasks!r}", err=True)
        raise typer.Exit(2)
    bench = Bench(*load_testbed(), trials)
    found: list[Trial] = []
    for number, part in enumerate(parts, start=1):
        found += bench.run(part, EVERY_POLICY)
        typer.echo(f"{number} of {len(parts)}: {part.task}, {part.length}, {part.mode}, from {part.first}")
    notes = {
        "length": LENGTH,
        "samples": samples,
        "first_sample": FIRST,
        "groups": groups_of(wanted),
        "policies": {name: _described(make) for name, make in EVERY_POLICY.items()},
    }
    write_results(results(summarise(found), made_in=made_in, schema=SCHEMA, notes=notes), out)


def groups_of(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Tasks that means are taken over: those that the search never saw, and all, where these are more."""
    unseen, every = ([task for task in group if task in tasks] for group in (UNSEEN, (*UNSEEN, *SEEN)))
    found = {"unseen": unseen, "all": every} if every != unseen else {"unseen": unseen}
    return {name: group for name, group in found.items() if group}


def summarise(trials: list[Trial]) -> list[dict[str, Any]]:
    """Rows of the result: means over each group of tasks, then each cell."""
    means = Means(trials, OURS)
    groups = groups_of([trial.task for trial in trials])
    rows = [
        row
        for group, tasks in groups.items()
        for row in means.mean_rows([(task, LENGTH) for task in tasks], KEEPS, group=group)
    ]
    return rows + means.cell_rows()


def _described(make: MakePolicy) -> str:
    """A policy with all its parameters but the size."""
    return repr(make(64)).replace("cache_size=64, ", "")


if __name__ == "__main__":
    typer.run(main)
