"""Every policy at equal bytes on the embedded model: `python -m kvcompress.bench.headline --trials FILE`.

The headline tables of docs/which-policy.md. Each prompt runs once and is compressed by every policy at every budget.
The search for `kvc` never saw the first group of tasks; the second has the search's tasks at another length. No sample
is one of the search's or of its first judgement's. An interrupted run goes on from its file of trials.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def parts_of(samples: int) -> Iterator[Part]:
    """All cells, unseen tasks first; of these a batch of samples of each before the next."""
    for tasks in (UNSEEN, *((task,) for task in SEEN)):
        for start in range(0, samples, _BATCH):
            for task in tasks:
                for mode in MODES:
                    count = min(_BATCH, samples - start)
                    yield Part(task=task, length=LENGTH, mode=mode, first=FIRST + start, count=count, keeps=KEEPS)


def main(
    trials: Annotated[Path, typer.Option(help="File of finished trials; an interrupted run goes on from it.")],
    samples: Annotated[int, typer.Option(help="Samples of each cell.", min=2)] = 200,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = RESULTS / "headline.json",
) -> None:
    """Measure every policy at equal bytes, with the question in the prompt and after compression."""
    one_thread()
    made_in = environment()
    bench = Bench(*load_testbed(), trials)
    found: list[Trial] = []
    parts = list(parts_of(samples))
    for number, part in enumerate(parts, start=1):
        found += bench.run(part, EVERY_POLICY)
        typer.echo(f"{number} of {len(parts)}: {part.task}, {part.length}, {part.mode}, from {part.first}")
    notes = {
        "length": LENGTH,
        "samples": f"those from {FIRST} on",
        "groups": {"unseen": UNSEEN, "all": (*UNSEEN, *SEEN)},
        "policies": {name: _described(make) for name, make in EVERY_POLICY.items()},
    }
    write_results(results(summarise(found), made_in=made_in, schema=SCHEMA, notes=notes), out)


def summarise(trials: list[Trial]) -> list[dict[str, Any]]:
    """Rows of the result: means over the unseen tasks, means over all, then each cell."""
    means = Means(trials, OURS)
    groups = {"unseen": UNSEEN, "all": (*UNSEEN, *SEEN)}
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
