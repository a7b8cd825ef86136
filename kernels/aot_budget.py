"""The limits that every compiled kernel keeps, and the budget of registers and shared memory beside them.

The limits are the hardware's and hold for every version of Triton. The budget (``aot_budget.json``) is what the kernels
needed when it was written: a change that costs more shows there, and is accepted by ``--update-budget``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvcompress.kernels.aot_compile import Outcome
from kvcompress.kernels.aot_job import Job
from kvcompress.kernels.aot_resources import Resources

BUDGET: Final[Path] = Path(__file__).with_name("aot_budget.json")
# Bytes of shared memory that one program may take: 163, 227, 227 and 64 KB.
SHARED_LIMIT: Final[dict[str, int]] = {"sm80": 166912, "sm90": 232448, "sm100": 232448, "gfx942": 65536}
# Bytes of stack of a thread. The first few hold what is put down before a loop and taken up after it, or once in an
# iteration of thousands of instructions. Where strides are no multiples of 16 and numbers are loaded one by one, which
# no cache of transformers does, there may be more of it: up to 288 in Triton 3.9.
STACK_LIMIT: Final[dict[bool, int]] = {True: 48, False: 288}  # by whether the arguments are aligned
REGISTER_SLACK: Final = 8  # over the budget: the assembler's step, and what a change of a comment's line may shift

Entries = dict[str, dict[str, dict[str, tuple[int, int]]]]  # kernel -> case -> specialisation -> (registers, shared)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What kernels needed when the budget was written.

    Attributes:
        triton: version of Triton it was written with; assemblers differ, so others are not held to it.
        entries: registers per thread and bytes of shared memory, by kernel, case and specialisation.
    """

    triton: str
    entries: Entries = field(default_factory=dict)

    def binds(self, version: str) -> bool:
        """Whether a version of Triton is the one of the budget."""
        return self.triton == version.partition("+")[0]


def read_budget(path: Path = BUDGET) -> Budget:
    """Reads a budget; an empty one where the file is missing."""
    if not path.is_file():
        return Budget(triton="")
    content = json.loads(path.read_text(encoding="utf-8"))
    entries: Entries = {
        kernel: {
            case: {name: (int(registers), int(shared)) for name, (registers, shared) in figures.items()}
            for case, figures in cases.items()
        }
        for kernel, cases in content["kernels"].items()
    }
    return Budget(triton=content["triton"], entries=entries)


def write_budget(budget: Budget, path: Path = BUDGET) -> None:
    """Writes a budget, one case per line, so that a change of it reads well."""
    lines = ["{", f'  "triton": {json.dumps(budget.triton)},', '  "figures": ["registers", "bytes of shared memory"],']
    lines.append('  "kernels": {')
    kernels = sorted(budget.entries)
    for kernel in kernels:
        lines.append(f"    {json.dumps(kernel)}: {{")
        cases = sorted(budget.entries[kernel])
        for case in cases:
            figures = json.dumps(budget.entries[kernel][case], sort_keys=True)
            lines.append(f"      {json.dumps(case)}: {figures}{',' if case != cases[-1] else ''}")
        lines.append(f"    }}{',' if kernel != kernels[-1] else ''}")
    lines += ["  }", "}", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def updated(budget: Budget, outcomes: Iterable[Outcome], version: str, *, whole: bool) -> Budget:
    """The budget with the figures of a run.

    Args:
        budget: the one there is.
        outcomes: of the run; what did not compile gets no entry.
        version: of Triton.
        whole: the run compiled everything, so entries that it has no figures for are dropped.

    Raises:
        ValueError: a part of the budget would come from another version of Triton.
    """
    if not whole and budget.entries and not budget.binds(version):
        raise ValueError(
            f"the budget is of Triton {budget.triton} and this is {version}: a part of it cannot be updated alone; "
            "run --update-budget without --target and --operation"
        )
    entries: Entries = {} if whole else {kernel: dict(cases) for kernel, cases in budget.entries.items()}
    for outcome in outcomes:
        if outcome.resources is None:
            continue
        cases = entries.setdefault(outcome.job.kernel, {})
        figures = cases[outcome.job.configuration.case] = dict(cases.get(outcome.job.configuration.case, {}))
        figures[outcome.job.specialisation] = (outcome.resources.registers, outcome.resources.shared)
    return Budget(triton=version.partition("+")[0], entries=entries)


def over_limits(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yields a line for each outcome that no version of Triton may have."""
    for outcome in outcomes:
        job, found = outcome.job, outcome.resources
        if found is None:
            yield f"{job.name}: does not compile: {outcome.error}"
            continue
        if needs_memory(job, found):
            used = f"{found.registers} registers, {found.stack} bytes of stack, {found.spills} spilled"
            yield f"{job.name}: registers do not suffice ({used})"
        limit = SHARED_LIMIT[job.target]
        if found.shared > limit:
            yield f"{job.name}: {found.shared} bytes of shared memory, and {job.target} has {limit}"


def needs_memory(job: Job, found: Resources) -> bool:
    """Whether registers do not suffice, and what they do not hold matters."""
    return found.spills > 0 or found.stack > STACK_LIMIT[job.aligned]


def over_budget(outcomes: Iterable[Outcome], budget: Budget) -> Iterator[str]:
    """Yields a line for each outcome that needs more than the budget says, or that the budget does not know."""
    for outcome in outcomes:
        if outcome.resources is None:
            continue
        job = outcome.job
        entry = budget.entries.get(job.kernel, {}).get(job.configuration.case, {}).get(job.specialisation)
        if entry is None:
            yield f"{job.name}: not in the budget; run: make aot ARGS=--update-budget"
        else:
            yield from (f"{job.name}: {excess}" for excess in _excesses(outcome.resources, *entry))


def stale_entries(outcomes: Iterable[Outcome], budget: Budget) -> list[str]:
    """Cases of the budget that a run over everything did not compile."""
    compiled = {(outcome.job.kernel, outcome.job.configuration.case) for outcome in outcomes}
    known = {(kernel, case) for kernel, cases in budget.entries.items() for case in cases}
    return [f"{kernel} [{case}]" for kernel, case in sorted(known - compiled)]


def _excesses(found: Resources, registers: int, shared: int) -> Iterator[str]:
    if found.registers > registers + REGISTER_SLACK:
        yield f"{found.registers} registers, and the budget is {registers} (+{REGISTER_SLACK} of slack)"
    if found.shared > shared:
        yield f"{found.shared} bytes of shared memory, and the budget is {shared}"
