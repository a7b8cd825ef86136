"""Tables of the comparison of every policy at equal bytes, and of the decode rules."""

from __future__ import annotations

from typing import Any

from kvcompress.bench.table_format import Run, markdown, origin, percent, points

_OURS = "kvc"
_GOALS = {0.12: 0.99, 0.06: 0.95}  # of the full cache's score, with the question in the prompt


def headline_aware(run: Run) -> str:
    """Each policy's score relative to the full cache's, the question in the prompt."""
    return _scores(run, "query_aware")


def headline_agnostic(run: Run) -> str:
    """The same with the question after compression."""
    return _scores(run, "query_agnostic")


def _scores(run: Run, mode: str) -> str:
    group = list(run["groups"])[-1]
    means = [row for row in run["cases"] if row["kind"] == "mean" and (row["mode"], row["group"]) == (mode, group)]
    keeps = list(dict.fromkeys(row["keep"] for row in means))
    found = {(row["policy"], row["keep"]): row for row in means}
    rows = [
        [f"`{policy}`", *(_share(found[policy, keep], "of_full") for keep in keeps)]
        for policy in dict.fromkeys(row["policy"] for row in means)
    ]
    note = f"\nIn % of the full cache's score [95 %]: mean over {_tasks(run, group)}.\n"
    return markdown(["policy", *(f"{100 * keep:g} %" for keep in keeps)], rows) + note + origin(run)


def headline_goals(run: Run) -> str:
    """What was wanted of kvc, and what came of it, by group of tasks, mode and budget."""
    means = [row for row in run["cases"] if row["kind"] == "mean"]
    rows = []
    for group, mode, keep in dict.fromkeys((row["group"], row["mode"], row["keep"]) for row in means):
        here = {row["policy"]: row for row in means if (row["group"], row["mode"], row["keep"]) == (group, mode, keep)}
        others = [row for name, row in here.items() if not name.startswith(_OURS)]
        best = max(others, key=lambda row: float(row["of_full"]))
        gain, interval = best[f"{_OURS}_gains"], best[f"{_OURS}_gains_interval_95"]
        goal = _GOALS.get(keep) if mode == "query_aware" else None
        rows.append(
            [
                f"{group}, {mode.removeprefix('query_')}, {100 * keep:g} %",
                _share(here[_OURS], "of_full"),
                "" if goal is None else f"{100 * goal:g}: {'yes' if here[_OURS]['of_full'] >= goal else '**no**'}",
                f"`{best['policy']}` {_share(best, 'of_full')}",
                f"{points(gain, interval)}{'' if gain >= 0 else ' **no**'}",
            ]
        )
    header = ["tasks, mode, kept", "kvc, % of full", "at least", "the best other", "kvc gains"]
    return markdown(header, rows) + origin(run)


def headline_by_task(run: Run) -> str:
    """Where the means come from: each policy on each task, at the smallest budget with a goal."""
    keep = min(_GOALS)
    cells = [row for row in run["cases"] if row["kind"] == "cell" and row["keep"] in (keep, 1.0)]
    columns = list(dict.fromkeys((row["mode"], row["task"]) for row in sorted(cells, key=lambda row: str(row["mode"]))))
    columns.sort(key=lambda column: column[0] != "query_aware")
    found = {(row["policy"], row["mode"], row["task"]): row for row in cells}
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in cells):
        rows.append([f"`{policy}`", *(_share(found[(policy, *column)], "score") for column in columns)])
    names = [f"{task}, {mode.removeprefix('query_')}" for mode, task in columns]
    return markdown(["policy", *names], rows) + f"\n{100 * keep:g} % kept; score in % [95 %].\n"


def headline_bytes(run: Run) -> str:
    """What the policies hold: the same."""
    held: dict[float, list[int]] = {}
    for row in run["cases"]:
        if row["kind"] == "cell" and row["mode"] == "query_aware":
            held.setdefault(row["keep"], []).append(row["num_bytes"])
    rows = [
        [f"{100 * keep:g} %", f"{min(sizes) / 1024:.0f}", f"{max(sizes) / 1024:.0f}"]
        for keep, sizes in sorted(held.items(), reverse=True)
    ]
    return markdown(["kept", "least KiB of any policy and task", "most"], rows)


def decode_rules(run: Run) -> str:
    """A row per policy and rule, a column per task and size."""
    columns = list(dict.fromkeys((case["task"], case["cache_size"]) for case in run["cases"]))
    found = {(case["policy"], case["rule"], case["task"], case["cache_size"]): case for case in run["cases"]}
    rows = []
    for policy, rule in dict.fromkeys((case["policy"], case["rule"]) for case in run["cases"]):
        mine = [found[(policy, rule, *column)] for column in columns]
        rows.append([f"`{policy}`", f"`{rule}`", *(percent(case["accuracy"], case["interval_95"]) for case in mine)])
    documents, answers = (run["cases"][0][name] for name in ("documents", "answers"))
    note = f"\nAnswers that are right, % [95 %]; {documents} documents, of each up to {answers // documents} answers.\n"
    return markdown(["policy", "rule", *(f"{t}, {n}" for t, n in columns)], rows, texts=2) + note + origin(run)


def decode_rule_differences(run: Run) -> str:
    """What each rule gains on the default one, policy by policy."""
    cases = [case for case in run["cases"] if "difference" in case]
    columns = list(dict.fromkeys((case["task"], case["cache_size"]) for case in cases))
    found = {(case["policy"], case["rule"], case["task"], case["cache_size"]): case for case in cases}
    rows = []
    for policy, rule in dict.fromkeys((case["policy"], case["rule"]) for case in cases):
        mine = [found[(policy, rule, *column)] for column in columns]
        gains = [points(case["difference"], case["difference_interval_95"]) for case in mine]
        kib = "-".join(dict.fromkeys(f"{size / 1024:.0f}" for size in _ends([c["bytes_per_document"] for c in mine])))
        rows.append([f"`{policy}`", f"`{rule}`", *gains, kib])
    return markdown(["policy", "rule", *(f"{t}, {n}" for t, n in columns), "KiB"], rows, texts=2)


def decode_rules_arriving(run: Run) -> str:
    """What becomes of facts of the prompt, and of those that arrive while decoding."""
    cases = [case for case in run["cases"] if case["of_arrived"] is not None]
    columns = list(dict.fromkeys((case["task"], case["cache_size"]) for case in cases))
    found = {(case["policy"], case["rule"], case["task"], case["cache_size"]): case for case in cases}
    rows = []
    for policy, rule in dict.fromkeys((case["policy"], case["rule"]) for case in cases):
        mine = [found[(policy, rule, *column)] for column in columns]
        shares = [f"{100 * case[name]:.0f}" for case in mine for name in ("of_prompt", "of_arrived")]
        rows.append([f"`{policy}`", f"`{rule}`", *shares])
    names = [f"{task}, {size}: {which}" for task, size in columns for which in ("of the prompt", "arrived")]
    return markdown(["policy", "rule", *names], rows, texts=2) + "\nAnswers that are right, %.\n"


def _ends(values: list[int]) -> tuple[int, int]:
    return min(values), max(values)


def _share(row: dict[str, Any], name: str) -> str:
    return percent(row[name], row[f"{name}_interval_95"])


def _tasks(run: Run, group: str) -> str:
    tasks = ", ".join(f"`{task}`" for task in run["groups"][group])
    return f"{tasks} of {run['length']} tokens, {run['samples']} samples each"
