"""RULER's own samples (arXiv 2404.06654), prepared by its scripts or on the hub, for figures beside published ones.

Two schemas: that of RULER's scripts (``input``, ``outputs``, perhaps ``answer_prefix``), whose last line is the
question; and that of the hub's copy (``context``, ``question``, ``answer_prefix``, ``answer``, ``task``), which has
them apart. Length is what the files were made for; a longer sample than asked for is an error, never cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kvcompress.bench.data_source import hub_rows, read_jsonl
from kvcompress.bench.tasks.longbench import check_columns, row_of
from kvcompress.bench.tasks.sample import Sample, Turn, check_request, text_ids

REPOSITORY: Final = "simonjegou/ruler"

# Most tokens of an answer for each kind, by the beginning of the task's name.
KINDS: Final[Mapping[str, int]] = MappingProxyType({"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32})

RULER_TASKS: Final = (
    *(f"niah_{kind}_{number}" for kind in ("single", "multikey") for number in (1, 2, 3)),
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruler:
    """One task of RULER; a sample's seed is the number of its row.

    Attributes:
        task: RULER's name of it, one of :data:`RULER_TASKS`.
        source: a ``.jsonl`` file of it; None: the hub, through ``datasets``.
        made_for: tokens that the hub's samples were made for.
    """

    task: str
    source: Path | None = None
    made_for: int = 4096

    def __post_init__(self) -> None:
        """Checks the task."""
        if self.task not in RULER_TASKS:
            raise ValueError(f"task must be one of {', '.join(RULER_TASKS)}; got {self.task!r}")

    @property
    def name(self) -> str:
        """``ruler/`` and the task."""
        return f"ruler/{self.task}"

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the task; read once."""
        return _rows(self.task, self.source, self.made_for)

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        check_request(length, seed)
        row = row_of(self.rows(), seed, self.name)
        context, question, answers = _parts(row)
        kind = self.task.split("_")[0]
        sample = Sample(
            task=self.name,
            seed=seed,
            context=context,
            context_ids=text_ids(tokenizer, context, special=True),
            turns=(
                Turn(
                    question=question,
                    question_ids=text_ids(tokenizer, question, special=False),
                    answers=answers,
                    max_new_tokens=KINDS[kind],
                ),
            ),
            metric="string_match_part" if kind == "qa" else "string_match_all",
        )
        if sample.prompt_tokens > length:
            raise ValueError(
                f"length must be at least {sample.prompt_tokens} tokens for sample {seed} of {self.name!r}, got "
                f"{length}; RULER's samples are made for a length and not cut. Give a file made for it."
            )
        return sample


def _parts(row: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Context, question with the beginning of its answer, and answers."""
    prefix = row.get("answer_prefix") or ""
    if "context" in row:
        return row["context"], f"\n{row['question']}\n{prefix}", tuple(row["answer"])
    cut = row["input"].rstrip().rfind("\n")
    return row["input"][:cut], row["input"][cut:] + prefix, tuple(row["outputs"])


@lru_cache(maxsize=4)
def _rows(task: str, source: Path | None, made_for: int) -> list[dict[str, Any]]:
    rows = hub_rows(REPOSITORY, str(made_for)) if source is None else [row for _, row in read_jsonl(source)]
    place = REPOSITORY if source is None else str(source)
    apart = "context" in rows[0]
    columns = {"context": str, "question": str, "answer": list} if apart else {"input": str, "outputs": list}
    check_columns(rows, columns, place)
    rows = [row for row in rows if row.get("task", task) == task]
    if not rows:
        raise ValueError(f"{place} must hold samples of {task!r}; it holds none. Give the file of that task.")
    if not apart and any("\n" not in str(row["input"]).strip() for row in rows):
        raise ValueError(f"{place} must have the question on the last line of 'input'; one sample has a single line")
    return rows
