"""Tables of an ahead-of-time check: for the terminal, for documents and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from kvcompress.kernels.aot_budget import needs_memory
from kvcompress.kernels.aot_compile import Outcome


def grouped(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """Outcomes by kernel and target, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.job.kernel, outcome.job.target), []).append(outcome)
    return groups


def worst(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """The largest figure of each resource; 0 where nothing compiled."""
    found = [asdict(outcome.resources) for outcome in outcomes if outcome.resources is not None]
    return {name: max((each[name] for each in found), default=0) for name in ("registers", "shared", "stack", "spills")}


def text_table(outcomes: Sequence[Outcome]) -> str:
    """One line per kernel and target; times are those of one process and add up over the processes."""
    layout = "{:42} {:7} {:>8} {:>9} {:>9} {:>6} {:>6} {:>8}  {}"
    head = ("kernel", "target", "variants", "registers", "shared KB", "stack", "spills", "seconds", "most registers in")
    lines = [layout.format(*head)]
    for (kernel, target), group in sorted(grouped(outcomes).items()):
        most = worst(group)
        seconds = sum(outcome.seconds for outcome in group)
        lines.append(
            layout.format(
                *(kernel, target, len(group), most["registers"], f"{most['shared'] / 1024:.1f}"),
                *(most["stack"], most["spills"], f"{seconds:.1f}", _hungriest(group)),
            )
        )
    return "\n".join(lines)


def markdown_table(outcomes: Sequence[Outcome], version: str, problems: int) -> str:
    """Registers and KB of shared memory, the worst of all variants: a row per kernel, a column per target."""
    groups = grouped(outcomes)
    kernels = sorted({kernel for kernel, _ in groups})
    targets = list(dict.fromkeys(target for _, target in groups))
    broken = sum(outcome.resources is None for outcome in outcomes)
    lines = [
        f"Triton {version}: {len(outcomes)} variants in {_compiles(outcomes)} compiles; {broken} do not compile, "
        f"{sum(map(_spills, outcomes))} spill, {problems} problems. Registers per thread / KB of shared memory, each "
        "the worst of all variants.",
        "",
        f"| kernel | variants | {' | '.join(targets)} |",
        "| --- | ---: |" + " ---: |" * len(targets),
    ]
    for kernel in kernels:
        cells = []
        for target in targets:
            most = worst(groups.get((kernel, target), []))
            cells.append(f"{most['registers']} / {most['shared'] / 1024:.0f}")
        variants = sum(len(group) for (name, _), group in groups.items() if name == kernel)
        lines.append(f"| `{kernel.partition('/')[2]}` | {variants} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def folded(problems: Sequence[str]) -> list[str]:
    """Problems to show: what more than three variants of a kernel have in common takes one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        name, _, reason = problem.partition(": ")
        groups.setdefault((name.partition(" [")[0], reason), []).append(problem)
    lines: list[str] = []
    for (kernel, reason), group in groups.items():
        if len(group) <= 3:
            lines += group
        else:
            first = group[0].partition(": ")[0].removeprefix(kernel).strip()
            lines.append(f"{kernel}: {reason} ({len(group)} variants, the first is {first})")
    return lines


def json_report(outcomes: Sequence[Outcome], version: str, problems: Sequence[str]) -> str:
    """Every figure of a run."""
    rows = [
        {
            "kernel": outcome.job.kernel,
            "case": outcome.job.configuration.case,
            "target": outcome.job.target,
            "aligned": outcome.job.aligned,
            "resources": None if outcome.resources is None else asdict(outcome.resources),
            "error": outcome.error,
            "recorded": outcome.recorded,
            "seconds": round(outcome.seconds, 3),
        }
        for outcome in outcomes
    ]
    return json.dumps({"schema": 1, "triton": version, "problems": list(problems), "outcomes": rows}, indent=1) + "\n"


def _hungriest(group: Sequence[Outcome]) -> str:
    found = [outcome for outcome in group if outcome.resources is not None]
    if not found:
        return "none compiled"
    most = max(found, key=lambda outcome: outcome.resources.registers if outcome.resources else 0)
    return f"{most.job.configuration.case} {most.job.specialisation.partition('/')[2]}"


def _spills(outcome: Outcome) -> bool:
    found = outcome.resources
    return found is not None and needs_memory(outcome.job, found)


def _compiles(outcomes: Sequence[Outcome]) -> int:
    return len({outcome.job.identity for outcome in outcomes if not outcome.recorded})
