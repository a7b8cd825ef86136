"""Tables of what stands side by side: the search for kvc and its judgement, kvpress, throughput."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvcompress.bench.table_format import Run, figure, markdown, origin, percent, points


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
    return _by_budget(run, "of_full", percent) + note


def policy_judgement_gains(run: Run) -> str:
    """What kvc gains on each policy, by mode and budget."""
    counts = next(row["samples"] for row in run["cases"] if row["kind"] == "mean")
    cells = "; ".join(f"`{cell}` ({count})" for cell, count in zip(run["cells"], counts, strict=True))
    note = f"\nPoints [95 %]. Tasks, tokens and samples, the same for all policies: {cells}; cells weigh the same.\n"
    return _by_budget(run, "kvc_gains", points) + note + origin(run)


def policy_judgement_losses(run: Run) -> str:
    """The cells in which a published policy does better than kvc, and by how much the best of them."""
    cells: dict[tuple[Any, ...], dict[str, Run]] = {}
    for row in run["cases"]:
        if row["kind"] == "cell":
            cells.setdefault((row["task"], row["length"], row["mode"], row["keep"]), {})[row["policy"]] = row
    rows = []
    for (task, length, mode, keep), found in cells.items():
        others = [row for name, row in found.items() if not name.startswith("kvc")]
        best = max(others, key=lambda row: float(row["score"]))
        if "kvc" in found and best["score"] > found["kvc"]["score"]:
            place = f"{task}, {length}, {mode.removeprefix('query_')}, {100 * keep:g} %"
            scores = [percent(row["score"], row["score_interval_95"]) for row in (found["kvc"], best)]
            rows.append([place, scores[0], f"{best['policy']}: {scores[1]}"])
    return markdown(["task, tokens, mode, kept", "kvc, % [95 %]", "the best other"], rows)


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


def peers_accuracy(run: Run) -> str:
    """Exact match on both sides, a row per task and method, with how many kept sets agree."""
    rows = []
    for case in (case for case in run["cases"] if case["case"] == "accuracy"):
        sets = case.get("kept_sets")
        rows.append(
            [
                f"{case['task']}, {min(case['kept'], case['tokens'])} of {case['tokens']}",
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
    return [percent(side["exact_match"], side["interval_95"]), f"{side['num_bytes'] / 1024:.0f}"]


def peers_speed(run: Run) -> str:
    """Times of both sides, ours divided by theirs, and each divided by its own full cache."""
    rows = []
    for case in (case for case in run["cases"] if case["case"] == "speed"):
        to_full = [case.get(f"{side}_to_full") for side in ("kvcompress", "kvpress")]
        rows.append(
            [
                case["phase"],
                f"`{case['method']}`",
                *(figure(case[side]["median"]) for side in ("kvcompress", "kvpress")),
                _spread(case["ratio"]),
                *("" if ratio is None else figure(ratio["median"]) for ratio in to_full),
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
                figure(first["median"]),
                _to_full(step),
                figure(step["tokens_per_second"]),
                *(f"{step[name] / 2**20:.1f}" for name in ("held_bytes", "peak_memory_bytes")),
            ]
        )
    times = ["prefill, ms (of full)", "first token, ms", "step, ms (of full)", "tokens/s"]
    return markdown(["cell", "cache", *times, "held MiB", "peak MiB"], rows, texts=2) + origin(run)


def _to_full(case: Run) -> str:
    ratio = f" ({figure(case['ratio'])})" if "ratio" in case else ""
    return f"{figure(case['median'])}{ratio}"


def _spread(values: Run) -> str:
    return f"{figure(values['median'])} [{figure(values['q20'])}, {figure(values['q80'])}]"
