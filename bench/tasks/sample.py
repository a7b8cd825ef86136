"""What a task gives: a context, questions on it, and how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from kvcompress.bench.metrics.registry import get_metric

QUERY_AWARE: Final = "query_aware"
QUERY_AGNOSTIC: Final = "query_agnostic"
MODES: Final = (QUERY_AWARE, QUERY_AGNOSTIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answers.

    Attributes:
        question: its text.
        question_ids: its tokens, which follow the context, or the answer to the question before.
        answers: what is right; the sample's metric says whether any or all of them are wanted.
        max_new_tokens: most tokens of the answer.
    """

    question: str
    question_ids: tuple[int, ...]
    answers: tuple[str, ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Checks that there is something to ask and to judge."""
        if not self.question_ids or not self.answers:
            raise ValueError(
                f"a turn must have a question and an answer; got {len(self.question_ids)} tokens and "
                f"{len(self.answers)} answers. Leave the turn out, or give both."
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}; give the answer room")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One context with its questions.

    Context and questions are turned into tokens one by one, so that both modes give the model the same tokens.

    Attributes:
        task: name of the task.
        seed: which sample of it.
        context: its text.
        context_ids: its tokens, with what the tokenizer puts in front.
        turns: the questions, in the order in which they are asked; most tasks have one.
        metric: a key of :data:`~kvcompress.bench.metrics.registry.METRICS`.
        choices: classes to choose from, for the metric.
        fixed_length: whether the model is known to answer in exactly ``max_new_tokens`` tokens: none ends an answer.
        first_line: whether only the answer's first line is judged.
    """

    task: str
    seed: int
    context: str
    context_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    metric: str
    choices: tuple[str, ...] = ()
    fixed_length: bool = False
    first_line: bool = False

    def __post_init__(self) -> None:
        """Checks that there is a question and a metric."""
        get_metric(self.metric)
        if not self.turns or not self.context_ids:
            raise ValueError(
                f"a sample must have a context and a question; got {len(self.context_ids)} tokens and "
                f"{len(self.turns)} questions. Give both."
            )

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the context and the first question: the length that a task is asked for."""
        return len(self.context_ids) + len(self.turns[0].question_ids)

    def judge(self, turn: int, prediction: str) -> float:
        """Scores an answer to a turn, in [0, 1]."""
        if self.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        return get_metric(self.metric)(prediction, self.turns[turn].answers, self.choices)


@runtime_checkable
class Task(Protocol):
    """Makes samples. A sample is fixed by (task, tokenizer, length, seed), in whatever order they are made."""

    @property
    def name(self) -> str:
        """Its name, part of what fixes its samples."""

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """Makes a sample.

        Args:
            tokenizer: a tokenizer of transformers.
            length: most tokens of context and first question together. It is never exceeded; a sample may be shorter
                by less than one unit of what fills the context (a sentence, a pair, a word, a passage).
            seed: which sample, at least 0.

        Raises:
            ValueError: the task does not fit into the length, or the tokenizer's model cannot do it.
        """


def text_ids(tokenizer: Any, text: str, *, special: bool) -> tuple[int, ...]:
    """Tokens of a text.

    Args:
        tokenizer: a tokenizer of transformers.
        text: the text.
        special: whether the tokenizer adds what it puts in front of a text.
    """
    ids: Sequence[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return tuple(ids)


def check_request(length: int, seed: int) -> None:
    """Raises ValueError for a length or seed that no task can use."""
    if length < 1 or seed < 0:
        raise ValueError(f"length must be at least 1 and seed at least 0; got length={length}, seed={seed}")
