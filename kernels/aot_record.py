"""What compiles have given before (``aot_record.json``), so that a run may leave out what would give the same.

A compile's key is made of what Triton's own cache goes by: the source of a kernel and of all that it calls, arguments,
options, target, Triton's files and the environment variables that it heeds. Equal keys give equal machine code, so a
result holds for as long as its key does; what has another key is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from hashlib import sha256
from pathlib import Path
from typing import Final

from kvcompress.kernels.aot_compile import Outcome, compile_all
from kvcompress.kernels.aot_job import Job, compile_key
from kvcompress.kernels.aot_resources import Resources

RECORD: Final[Path] = Path(__file__).with_name("aot_record.json")
CHECKED: Final = 16  # of so many recorded results one is compiled all the same
_KEY_LENGTH: Final = 24  # hexadecimal digits

Record = Mapping[str, Resources]


def keys_of(jobs: Sequence[Job]) -> list[str]:
    """A key for each job; an empty one where there is none, because the job's kernel cannot be read."""
    return [_key_of(job) for job in jobs]


def read_record(path: Path = RECORD) -> Record:
    """Reads a record; an empty one where the file is missing."""
    if not path.is_file():
        return {}
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    return {key: Resources(**dict(zip(_names(), figures, strict=True))) for key, figures in results.items()}


def write_record(record: Record, path: Path = RECORD) -> None:
    """Writes a record, one result a line."""
    results = ",\n".join(f"    {json.dumps(key)}: {json.dumps(astuple(record[key]))}" for key in sorted(record))
    text = f'{{\n  "figures": {json.dumps(_names())},\n  "results": {{\n{results}\n  }}\n}}\n'
    path.write_text(text, encoding="utf-8")


def recorded(outcomes: Sequence[Outcome], keys: Sequence[str]) -> Record:
    """The record of a run: what did not compile is left out."""
    found = zip(keys, outcomes, strict=True)
    return {key: outcome.resources for key, outcome in found if key and outcome.resources is not None}


def compile_the_rest(
    jobs: Sequence[Job], keys: Sequence[str], record: Record, processes: int, progress: Callable[[int, int], None]
) -> list[Outcome]:
    """Takes results from the record, and compiles what it does not have.

    Args:
        jobs: what to compile.
        keys: of the jobs.
        record: earlier results. Of each kernel, target and alignment it is checked in part: one recorded result in
            `CHECKED`, and at least one, is compiled all the same.
        processes: see `compile_all`.
        progress: called with the number of compiles done and that of all.

    Returns:
        One outcome per job, in the order of the jobs.
    """
    taken = _to_take_over(jobs, keys, record)
    compiled = iter(
        compile_all([job for job, key in zip(jobs, keys, strict=True) if key not in taken], processes, progress)
    )
    return [
        Outcome(job=job, resources=record[key], recorded=True) if key in taken else next(compiled)
        for job, key in zip(jobs, keys, strict=True)
    ]


def contradictions(outcomes: Sequence[Outcome], keys: Sequence[str], record: Record) -> Iterator[str]:
    """Yields a line for each outcome that differs from what the record has under its key."""
    for outcome, key in zip(outcomes, keys, strict=True):
        if outcome.resources is not None and outcome.resources != record.get(key, outcome.resources):
            yield f"{outcome.job.name}: compiles to {outcome.resources}, and is recorded as {record[key]}"


def _to_take_over(jobs: Sequence[Job], keys: Sequence[str], record: Record) -> set[str]:
    groups: dict[tuple[str, str], set[str]] = {}
    for job, key in zip(jobs, keys, strict=True):
        if key in record:
            groups.setdefault((job.kernel, job.specialisation), set()).add(key)
    return {key for group in groups.values() for place, key in enumerate(sorted(group)) if place % CHECKED}


def _key_of(job: Job) -> str:
    try:
        return sha256(compile_key(job).encode()).hexdigest()[:_KEY_LENGTH]
    except ImportError:  # a version of Triton that keeps its cache in another way: nothing could be recorded
        raise
    except Exception:  # compiling it fails as well, and says why
        return ""


def _names() -> list[str]:
    return [each.name for each in fields(Resources)]
