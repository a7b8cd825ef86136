"""LongBench (arXiv 2308.14508): real documents, for real models. Its English and code parts.

Prompts are in our own words. For figures beside published ones give the benchmark's own prompts (``prompts=``, its
file ``dataset2prompt.json``). Its Chinese parts need a word segmenter and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from kvcompress.bench.data_source import hub_rows, read_jsonl
from kvcompress.bench.tasks.sample import Sample, Turn, check_request, text_ids

REPOSITORY: Final = "THUDM/LongBench"


class Subset(NamedTuple):
    """A part of the benchmark.

    Attributes:
        prompt: ``{context}`` and ``{input}`` stand for the row's; what follows ``{context}`` is the question.
        max_new_tokens: most tokens of an answer, as the benchmark sets it.
        metric: how it is judged.
        first_line: whether only the first line is judged.
    """

    prompt: str
    max_new_tokens: int
    metric: str
    first_line: bool = False


_ASK = (
    "Read the text, then answer the question as briefly as you can, without an explanation.\n\nText:\n{context}\n\n"
    "Question: {input}\nAnswer:"
)
_SUMMARISE = "Read the text, then summarise it.\n\nText:\n{context}\n\nSummary:"
_LIKE_EXAMPLES = "The examples below show a task. Do the last one in the same way.\n\n{context}\n\n{input}"
_CODE = "Continue the code with its next line.\n"

SUBSETS: Final[Mapping[str, Subset]] = MappingProxyType(
    {
        "narrativeqa": Subset(_ASK, 128, "token_f1"),
        "qasper": Subset(_ASK, 128, "token_f1"),
        "multifieldqa_en": Subset(_ASK, 64, "token_f1"),
        "hotpotqa": Subset(_ASK, 32, "token_f1"),
        "2wikimqa": Subset(_ASK, 32, "token_f1"),
        "musique": Subset(_ASK, 32, "token_f1"),
        "gov_report": Subset(_SUMMARISE, 512, "rouge_l"),
        "qmsum": Subset(
            "Read the minutes of a meeting, then answer the question in some sentences.\n\nMinutes:\n{context}\n\n"
            "Question: {input}\nAnswer:",
            512,
            "rouge_l",
        ),
        "multi_news": Subset(_SUMMARISE, 512, "rouge_l"),
        "trec": Subset(_LIKE_EXAMPLES, 64, "classification", first_line=True),
        "triviaqa": Subset(_LIKE_EXAMPLES, 32, "token_f1", first_line=True),
        "samsum": Subset(_LIKE_EXAMPLES, 128, "rouge_l", first_line=True),
        "passage_count": Subset(
            "Some of the paragraphs below are repeated. Count the different ones.\n\n{context}\n\n"
            "Number of different paragraphs:",
            32,
            "numbers_named",
        ),
        "passage_retrieval_en": Subset(
            "Find the paragraph that an abstract was written for.\n\n{context}\n\nAbstract: {input}\n"
            "It was written for Paragraph",
            32,
            "numbers_named",
        ),
        "lcc": Subset(f"{_CODE}{{context}}Next line:\n", 64, "code_similarity"),
        "repobench-p": Subset(f"{_CODE}{{context}}{{input}}Next line:\n", 64, "code_similarity"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongBench:
    """One part of LongBench; a sample's seed is the number of its row.

    Attributes:
        subset: a key of :data:`SUBSETS`.
        source: the part's ``.jsonl`` file; None: the hub, through ``datasets``.
        prompts: JSON file of prompts by subset, in place of ours.
    """

    subset: str
    source: Path | None = None
    prompts: Path | None = None

    def __post_init__(self) -> None:
        """Checks the subset."""
        if self.subset not in SUBSETS:
            raise ValueError(f"subset must be one of {', '.join(SUBSETS)}; got {self.subset!r}")

    @property
    def name(self) -> str:
        """``longbench/`` and the subset."""
        return f"longbench/{self.subset}"

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the part; read once."""
        return _rows(self.subset, self.source)

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`; a text that is too long loses its middle."""
        check_request(length, seed)
        row, spec = row_of(self.rows(), seed, self.name), SUBSETS[self.subset]
        prompt = spec.prompt if self.prompts is None else _prompt(self.prompts, self.subset)
        before, after = prompt.split("{context}", 1)
        if "{input}" in before:
            raise ValueError(f"the prompt of {self.subset!r} must ask after {{context}}; it has {{input}} before it")
        context, question = before + row["context"], after.replace("{input}", row["input"])
        question_ids = text_ids(tokenizer, question, special=False)
        return Sample(
            task=self.name,
            seed=seed,
            context=context,
            context_ids=cut_middle(text_ids(tokenizer, context, special=True), length - len(question_ids), self.name),
            turns=(
                Turn(
                    question=question,
                    question_ids=question_ids,
                    answers=tuple(row["answers"]),
                    max_new_tokens=spec.max_new_tokens,
                ),
            ),
            metric=spec.metric,
            choices=tuple(row.get("all_classes") or ()),
            first_line=spec.first_line,
        )


def cut_middle(ids: tuple[int, ...], room: int, task: str) -> tuple[int, ...]:
    """The first and the last tokens, ``room`` of them together (LongBench, section 3.2: both ends matter most).

    Raises:
        ValueError: room for fewer than two tokens.
    """
    if room < 2:
        raise ValueError(f"length must leave room for the context of {task!r} beside its question; got {room} tokens")
    return ids if len(ids) <= room else ids[: room - room // 2] + ids[-(room // 2) :]


def row_of(rows: list[dict[str, Any]], seed: int, task: str) -> dict[str, Any]:
    """The row that a seed names.

    Raises:
        ValueError: there are fewer rows.
    """
    if seed >= len(rows):
        raise ValueError(f"seed must be below the {len(rows)} samples of {task!r}, got {seed}; ask for fewer samples")
    return rows[seed]


def check_columns(rows: list[dict[str, Any]], columns: Mapping[str, type], place: str) -> list[dict[str, Any]]:
    """Returns rows as they are.

    Raises:
        ValueError: a row lacks a column, or has another type in it; the message names row and column.
    """
    for number, row in enumerate(rows):
        for column, kind in columns.items():
            if not isinstance(row.get(column), kind):
                raise ValueError(
                    f"{place}, sample {number} must have a {kind.__name__} in {column!r}; got "
                    f"{type(row.get(column)).__name__}. Give a file in the benchmark's own schema."
                )
    return rows


@lru_cache(maxsize=4)
def _rows(subset: str, source: Path | None) -> list[dict[str, Any]]:
    rows = hub_rows(REPOSITORY, subset) if source is None else [row for _, row in read_jsonl(source)]
    columns = {"input": str, "context": str, "answers": list}
    return check_columns(rows, columns, REPOSITORY if source is None else str(source))


@lru_cache(maxsize=4)
def _prompt(path: Path, subset: str) -> str:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({error}). Give the benchmark's dataset2prompt.json."
        ) from error
    prompt = prompts.get(subset) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str) or "{context}" not in prompt:
        raise ValueError(f"{path} must have a prompt with {{context}} for {subset!r}; it has none")
    return prompt
