"""Writes the measured tables into README and docs: `python -m kvcompress.bench.tables [--check]`.

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`, each on a line of its own; what is between them
is replaced. It comes from a JSON file alone, so it is the same whenever and wherever it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

import typer

from kvcompress.analysis.files import replace_text
from kvcompress.bench.comparison_tables import (
    peers_accuracy,
    peers_speed,
    policy_judgement,
    policy_judgement_gains,
    policy_judgement_losses,
    policy_search,
    throughput,
)
from kvcompress.bench.headline_tables import (
    decode_rule_differences,
    decode_rules,
    decode_rules_arriving,
    headline_agnostic,
    headline_aware,
    headline_by_task,
    headline_bytes,
    headline_goals,
)
from kvcompress.bench.model_support.tables import models_not_built, models_refused, models_that_work
from kvcompress.bench.results_file import PROJECT, RESULTS
from kvcompress.bench.table_format import Run, figure, markdown, origin, percent
from kvcompress.bench.testbed.location import EVALUATION_FILE
from kvcompress.bench.workloads.algorithm_distillation.tables import compression as ad_compression
from kvcompress.bench.workloads.algorithm_distillation.tables import learning as ad_learning
from kvcompress.bench.workloads.algorithm_distillation.tables import returns as ad_returns
from kvcompress.bench.workloads.diffusion_lm.tables import diffusion_caching, diffusion_training

_MARKED = re.compile(
    r"^(?P<open><!-- table:(?P<name>[a-z0-9_]+) -->)\n(?P<body>.*?)^(?P<close><!-- /table:(?P=name) -->)$",
    re.DOTALL | re.MULTILINE,
)
_OPENED = re.compile(r"^<!-- table:([a-z0-9_]+) -->$", re.MULTILINE)


def engine_speed(run: Run) -> str:
    """Times, ratios and memory of every contender."""
    rows = []
    for case in run["cases"]:
        peak = case["peak_memory_bytes"]
        rows.append(
            [
                case["case"],
                case["shape"],
                case["provider"],
                f"{figure(case['median'])} [{figure(case['q20'])}, {figure(case['q80'])}]",
                "1" if case["provider"] == case["ratio_to"] else figure(case["ratio"]),
                "" if peak is None else figure(peak / 2**20),
            ]
        )
    header = ["case", "shape", "provider", "ms, median [20 %, 80 %]", "times the yardstick", "peak MiB"]
    return markdown(header, rows, texts=3) + origin(run)


def policies_small_budgets(run: Run) -> str:
    """Exact match of each policy, a row per policy and cache size, a column per task."""
    tasks = list(dict.fromkeys(cell["task"] for cell in run["cases"]))
    cells = {(cell["policy"], cell["cache_size"], cell["task"]): cell for cell in run["cases"]}
    kinds = list(dict.fromkeys((cell["cache_size"], cell["policy"]) for cell in run["cases"]))
    rows = []
    for size, policy in kinds:
        found = [cells[policy, size, task] for task in tasks]
        held = f"{found[0]['num_bytes'] / 1024:.0f}"
        right = [percent(cell["exact_match"], cell["interval_95"]) for cell in found]
        rows.append([f"`{policy}`, {size or 'all'}", held, *right])
    samples = run["cases"][0]["samples"]
    note = f"\nExact match in % [95 %] of {samples} samples each, {run['cases'][0]['length']} tokens.\n"
    return markdown(["policy, cache size", "KiB", *tasks], rows) + note + origin(run)


def testbed(run: Run) -> str:
    """Exact match of the bundled model with its full cache, a row per task, a column per length."""
    lengths = sorted({cell["length"] for cell in run["cells"]})
    cells = {(cell["task"], cell["length"]): cell for cell in run["cells"]}
    rows = [
        [task, *(percent(cells[task, n]["exact_match"], cells[task, n]["interval_95"]) for n in lengths)]
        for task in dict.fromkeys(cell["task"] for cell in run["cells"])
    ]
    return markdown(["task", *map(str, lengths)], rows) + origin(run)


# name: (file, how it becomes a table)
TABLES: Final[Mapping[str, tuple[Path, Callable[[Run], str]]]] = MappingProxyType(
    {
        "engine_speed": (RESULTS / "engine_cpu.json", engine_speed),
        "capture_overhead": (RESULTS / "capture_overhead.json", engine_speed),
        "decode_rules": (RESULTS / "decode_rules.json", decode_rules),
        "decode_rule_differences": (RESULTS / "decode_rules.json", decode_rule_differences),
        "decode_rules_arriving": (RESULTS / "decode_rules.json", decode_rules_arriving),
        "headline_aware": (RESULTS / "headline.json", headline_aware),
        "headline_agnostic": (RESULTS / "headline.json", headline_agnostic),
        "headline_goals": (RESULTS / "headline.json", headline_goals),
        "headline_by_task": (RESULTS / "headline.json", headline_by_task),
        "headline_bytes": (RESULTS / "headline.json", headline_bytes),
        "headline_losses": (RESULTS / "headline.json", policy_judgement_losses),
        "policies_small_budgets": (RESULTS / "policies_small_budgets.json", policies_small_budgets),
        "policy_search": (RESULTS / "policy_search.json", policy_search),
        "policy_judgement": (RESULTS / "policy_judgement.json", policy_judgement),
        "policy_judgement_gains": (RESULTS / "policy_judgement.json", policy_judgement_gains),
        "policy_judgement_losses": (RESULTS / "policy_judgement.json", policy_judgement_losses),
        "testbed": (EVALUATION_FILE, testbed),
        "peers_accuracy": (RESULTS / "peers_kvpress.json", peers_accuracy),
        "peers_agnostic": (RESULTS / "peers_kvpress_agnostic.json", peers_accuracy),
        "peers_speed": (RESULTS / "peers_kvpress.json", peers_speed),
        "throughput": (RESULTS / "throughput_cpu.json", throughput),
        "models_that_work": (RESULTS / "model_support.json", models_that_work),
        "models_refused": (RESULTS / "model_support.json", models_refused),
        "models_not_built": (RESULTS / "model_support.json", models_not_built),
        "ad_learning": (RESULTS / "ad_training.json", ad_learning),
        "ad_compression": (RESULTS / "ad_compression.json", ad_compression),
        "ad_returns": (RESULTS / "ad_returns.json", ad_returns),
        "diffusion_training": (RESULTS / "diffusion_training.json", diffusion_training),
        "diffusion_caching": (RESULTS / "diffusion_caching.json", diffusion_caching),
    }
)


def render(name: str) -> str:
    """Returns a table's Markdown.

    Args:
        name: a key of :data:`TABLES`.

    Raises:
        ValueError: no such table.
        FileNotFoundError: its run has not been made.
    """
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}; got {name!r}")
    path, form = TABLES[name]
    if not path.is_file():
        raise FileNotFoundError(f"table {name!r} needs {path.name}, which is not there; run its benchmark first")
    return form(json.loads(path.read_text(encoding="utf-8")))


def fill(text: str, tables: Callable[[str], str] = render) -> str:
    """Replaces what stands between markers; filling twice changes nothing.

    Args:
        text: a Markdown file's content.
        tables: table by name.

    Raises:
        ValueError: a marker is not closed.
    """
    opened = _OPENED.findall(text)
    closed = [match["name"] for match in _MARKED.finditer(text)]
    if opened != closed:
        raise ValueError(
            f"every `<!-- table:NAME -->` needs its `<!-- /table:NAME -->` below; opened {opened}, closed {closed}"
        )
    return _MARKED.sub(lambda match: f"{match['open']}\n\n{tables(match['name'])}\n{match['close']}", text)


def documents(root: Path = PROJECT) -> Iterator[Path]:
    """README and the files of docs/ that hold a table."""
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if path.is_file() and _OPENED.search(path.read_text(encoding="utf-8")):
            yield path


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if a table is stale.")] = False,
) -> None:
    """Bring the tables of README and docs up to date."""
    stale = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale.append(path.relative_to(PROJECT))
            if not check:
                replace_text(path, filled)
    for path in stale:
        typer.echo(f"{'stale' if check else 'written'}: {path}")
    if check and stale:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
