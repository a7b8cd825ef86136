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
from typing import Annotated, Any, Final

import typer

from kvcompress.bench.results_file import PROJECT, RESULTS, replace_text
from kvcompress.bench.testbed.location import EVALUATION_FILE

_MARKED = re.compile(
    r"^(?P<open><!-- table:(?P<name>[a-z0-9_]+) -->)\n(?P<body>.*?)^(?P<close><!-- /table:(?P=name) -->)$",
    re.DOTALL | re.MULTILINE,
)
_OPENED = re.compile(r"^<!-- table:([a-z0-9_]+) -->$", re.MULTILINE)

Run = Mapping[str, Any]


def markdown(header: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """A Markdown table; the first ``texts`` columns to the left, the others to the right."""
    align = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, align, *rows])


def origin(run: Run) -> str:
    """One line on where a run was made."""
    parts = [run.get("time_utc", "")[:10], str(run.get("cpu") or run.get("device", ""))]
    if run.get("commit"):
        parts.insert(0, f"commit {run['commit'][:7]}{' with changes' if run.get('dirty') else ''}")
    if "clock" in run:
        parts.append(f"{run['clock']}, {run['threads']} thread{'s' if run['threads'] > 1 else ''}")
    parts += [f"torch {run.get('torch')}", f"transformers {run.get('transformers')}"]
    return f"\nMeasured: {', '.join(parts)}.\n"


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
                f"{_figure(case['median'])} [{_figure(case['q20'])}, {_figure(case['q80'])}]",
                "1" if case["provider"] == case["ratio_to"] else _figure(case["ratio"]),
                "" if peak is None else _figure(peak / 2**20),
            ]
        )
    header = ["case", "shape", "provider", "ms, median [20 %, 80 %]", "times the yardstick", "peak MiB"]
    return markdown(header, rows, texts=3) + origin(run)


def decode_rules(run: Run) -> str:
    """Accuracy of each decode rule at equal bytes, with its difference to the yardstick."""
    rows = []
    for cell in run["cases"]:
        low, high = cell["difference_interval_95"]
        rows.append(
            [
                f"{cell['task']}, {cell['cache_size']}",
                f"`{cell['rule']}`",
                _percent(cell["accuracy"], cell["interval_95"]),
                f"{100 * cell['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{cell['bytes_per_document'] / 1024:.0f}",
            ]
        )
    header = ["task, cache size", "rule", "right, % [95 %]", "against `last_query`", "KiB"]
    return markdown(header, rows, texts=2) + origin(run)


def policies_small_budgets(run: Run) -> str:
    """Exact match of each policy, a row per policy and cache size, a column per task."""
    tasks = list(dict.fromkeys(cell["task"] for cell in run["cases"]))
    cells = {(cell["policy"], cell["cache_size"], cell["task"]): cell for cell in run["cases"]}
    kinds = list(dict.fromkeys((cell["cache_size"], cell["policy"]) for cell in run["cases"]))
    rows = []
    for size, policy in kinds:
        found = [cells[policy, size, task] for task in tasks]
        held = f"{found[0]['num_bytes'] / 1024:.0f}"
        right = [_percent(cell["exact_match"], cell["interval_95"]) for cell in found]
        rows.append([f"`{policy}`, {size or 'all'}", held, *right])
    samples = run["cases"][0]["samples"]
    note = f"\nExact match in % [95 %] of {samples} samples each, {run['cases'][0]['length']} tokens.\n"
    return markdown(["policy, cache size", "KiB", *tasks], rows) + note + origin(run)


def policy_search(run: Run) -> str:
    """The best places of each stage of the search."""
    axes = [name for name in run["cases"][0] if name not in ("stage", "places", "samples", "rank", "of_full")]
    rows = [
        [
            f"{case['stage']}: {case['places']} places, {case['samples']} samples",
            f"{100 * case['of_full']:.1f}",
            *(str(case[axis]) for axis in axes),
        ]
        for case in run["cases"]
        if case["rank"] <= 3
    ]
    return markdown(["stage", "% of full", *(f"`{axis}`" for axis in axes)], rows, texts=1) + origin(run)


def policy_judgement(run: Run) -> str:
    """Each policy's score relative to the full cache's, by mode and budget."""
    note = "\nScore in % of the full cache's [95 %]; tasks and samples: below the next table.\n"
    return _by_budget(run, "of_full", _percent) + note


def policy_judgement_gains(run: Run) -> str:
    """What kvc gains on each policy, by mode and budget."""
    counts = next(row["samples"] for row in run["cases"] if row["kind"] == "mean")
    cells = "; ".join(f"`{cell}` ({count})" for cell, count in zip(run["cells"], counts, strict=True))
    note = f"\nPoints [95 %]. Tasks, tokens and samples, the same for all policies: {cells}; cells weigh the same.\n"
    return _by_budget(run, "kvc_gains", _points) + note + origin(run)


def _by_budget(run: Run, name: str, form: Callable[[float, list[float]], str]) -> str:
    """A row per policy, a column per mode and budget."""
    means = [row for row in run["cases"] if row["kind"] == "mean"]
    columns = list(dict.fromkeys((row["mode"], row["keep"]) for row in means))
    found = {(row["policy"], row["mode"], row["keep"]): row for row in means}
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in means):
        mine = [found[policy, mode, keep] for mode, keep in columns]
        rows.append([policy, *(form(row[name], row[f"{name}_interval_95"]) for row in mine)])
    names = [f"{mode.removeprefix('query_')}, {100 * keep:g} %" for mode, keep in columns]
    return markdown(["policy", *names], rows)


def testbed(run: Run) -> str:
    """Exact match of the bundled model with its full cache, a row per task, a column per length."""
    lengths = sorted({cell["length"] for cell in run["cells"]})
    cells = {(cell["task"], cell["length"]): cell for cell in run["cells"]}
    rows = [
        [task, *(_percent(cells[task, n]["exact_match"], cells[task, n]["interval_95"]) for n in lengths)]
        for task in dict.fromkeys(cell["task"] for cell in run["cells"])
    ]
    return markdown(["task", *map(str, lengths)], rows) + origin(run)


def peers_accuracy(run: Run) -> str:
    """Exact match on both sides, a row per task and method, with how many kept sets agree."""
    rows = []
    for case in (case for case in run["cases"] if case["case"] == "accuracy"):
        sets = case.get("kept_sets")
        rows.append(
            [
                f"{case['task']}, {case['kept']} of {case['tokens']}",
                f"`{case['method']}`",
                *_peer_side(case.get("kvcompress")),
                *_peer_side(case.get("kvpress")),
                f"{case['same_answers']}" if "same_answers" in case else "",
                f"{sets['equal']}, {sets['explained']} of {sets['rows']}" if sets else "",
            ]
        )
    samples = next(case["kvcompress"]["samples"] for case in run["cases"] if case["case"] == "accuracy")
    peer = run["peer"]
    header = ["task, kept", "method", "ours, % [95 %]", "KiB", "kvpress, % [95 %]", "KiB", "same answers", "kept sets"]
    note = (
        f"\n{samples} prompts per task. Kept sets: equal, and equal but for ties and the last token, of all compared. "
        f"kvpress {peer['kvpress']} with transformers {peer['transformers']}.\n"
    )
    return markdown(header, rows, texts=2) + note + origin(run)


def _peer_side(side: Run | None) -> list[str]:
    if side is None:
        return ["", ""]
    return [_percent(side["exact_match"], side["interval_95"]), f"{side['num_bytes'] / 1024:.0f}"]


def peers_speed(run: Run) -> str:
    """Times of both sides, ours divided by theirs, and each divided by its own full cache."""
    rows = []
    for case in (case for case in run["cases"] if case["case"] == "speed"):
        to_full = [case.get(f"{side}_to_full") for side in ("kvcompress", "kvpress")]
        rows.append(
            [
                case["phase"],
                f"`{case['method']}`",
                *(_figure(case[side]["median"]) for side in ("kvcompress", "kvpress")),
                _spread(case["ratio"]),
                *("" if ratio is None else _figure(ratio["median"]) for ratio in to_full),
            ]
        )
    header = [
        "phase",
        "method",
        "ours, ms",
        "kvpress, ms",
        "ours / kvpress [20 %, 80 %]",
        "ours / full",
        "kvpress / full",
    ]
    shape = next((case["shape"] for case in run["cases"] if case["case"] == "speed"), "")
    return markdown(header, rows, texts=2) + f"\n{shape}; ratios are medians over rounds.\n" + origin(run)


def throughput(run: Run) -> str:
    """A row per cell and contender: times, ratios to the full cache, tokens per second and bytes."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for case in run["cases"]:
        cells.setdefault((case["shape"], case["provider"]), {})[case["case"]] = case
    rows = []
    for (shape, provider), found in cells.items():
        if "generate" in found:
            rows.append([shape, f"`{provider}`", found["generate"]["reason"], "", "", "", "", ""])
            continue
        prefill, first, step = (found[name] for name in ("prefill", "time_to_first_token", "decode_step"))
        rows.append(
            [
                shape,
                f"`{provider}`",
                _to_full(prefill),
                _figure(first["median"]),
                _to_full(step),
                _figure(step["tokens_per_second"]),
                *(f"{step[name] / 2**20:.1f}" for name in ("held_bytes", "peak_memory_bytes")),
            ]
        )
    times = ["prefill, ms (of full)", "first token, ms", "step, ms (of full)", "tokens/s"]
    return markdown(["cell", "cache", *times, "held MiB", "peak MiB"], rows, texts=2) + origin(run)


def _to_full(case: Run) -> str:
    ratio = f" ({_figure(case['ratio'])})" if "ratio" in case else ""
    return f"{_figure(case['median'])}{ratio}"


def _spread(values: Run) -> str:
    return f"{_figure(values['median'])} [{_figure(values['q20'])}, {_figure(values['q80'])}]"


# name: (file, how it becomes a table)
TABLES: Final[Mapping[str, tuple[Path, Callable[[Run], str]]]] = MappingProxyType(
    {
        "engine_speed": (RESULTS / "engine_cpu.json", engine_speed),
        "decode_rules": (RESULTS / "decode_rules.json", decode_rules),
        "policies_small_budgets": (RESULTS / "policies_small_budgets.json", policies_small_budgets),
        "policy_search": (RESULTS / "policy_search.json", policy_search),
        "policy_judgement": (RESULTS / "policy_judgement.json", policy_judgement),
        "policy_judgement_gains": (RESULTS / "policy_judgement.json", policy_judgement_gains),
        "testbed": (EVALUATION_FILE, testbed),
        "peers_accuracy": (RESULTS / "peers_kvpress.json", peers_accuracy),
        "peers_speed": (RESULTS / "peers_kvpress.json", peers_speed),
        "throughput": (RESULTS / "throughput_cpu.json", throughput),
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


def _figure(value: float) -> str:
    """Three digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(share: float, interval: list[float]) -> str:
    return f"{100 * share:.0f} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _points(gain: float, interval: list[float]) -> str:
    return f"{100 * gain:+.0f} [{100 * interval[0]:+.0f}, {100 * interval[1]:+.0f}]"


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
