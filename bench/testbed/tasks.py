"""The testbed's tasks: deterministic examples with an exact length, and how an answer is judged.

An example is fixed by (task, length, seed, index). Answers have several tokens: in a query-aware run the
first one comes from the uncompressed prefill and says nothing about compression.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Final

from kvcompress.bench.testbed.documents import Document, copies, frequent, needles, owners, pairs, variables
from kvcompress.bench.testbed.vocabulary import BOS_ID, ids_text

MIN_LENGTH: Final = 64
MAX_LENGTH: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of example.

    Attributes:
        description: one line on what is asked.
        build: makes a document from (rng, room for the context in ids, number of questions).
        question_length: ids of a question, the same for all of the task's examples.
        is_set: whether the answer is judged as a set, without regard to order.
    """

    description: str
    build: Callable[[Random, int, int], Document]
    question_length: int
    is_set: bool = False


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "needle_1": Task(
            description="one key with a three-word code hidden in filler text",
            build=partial(needles, keys=1),
            question_length=6,
        ),
        "needle_8": Task(
            description="eight keys with three-word codes, one asked",
            build=partial(needles, keys=8),
            question_length=6,
        ),
        "needle_20": Task(
            description="twenty keys with three-word codes, one asked",
            build=partial(needles, keys=20),
            question_length=6,
        ),
        "variables_2": Task(
            description="three chains of two assignments, one followed to its word",
            build=partial(variables, hops=2, chains=3),
            question_length=3,
        ),
        "variables_4": Task(
            description="three chains of four assignments, one followed to its word",
            build=partial(variables, hops=4, chains=3),
            question_length=3,
        ),
        "key_value": Task(
            description="a context full of pairs, two-word keys and values, one asked",
            build=pairs,
            question_length=4,
        ),
        "multi_value": Task(
            description="four keys with four values each, in any order; all values of one asked",
            build=partial(owners, keys=4, values=4),
            question_length=3,
            is_set=True,
        ),
        "copy": Task(
            description="sixteen random words repeated word for word",
            build=partial(copies, size=16),
            question_length=3,
        ),
        "frequent_words": Task(
            description="the three most frequent words of a random text",
            build=frequent,
            question_length=3,
            is_set=True,
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One prompt with its answer.

    Attributes:
        prompt: the text, without `<bos>`; the tokenizer turns it into `prompt_ids`.
        prompt_ids: `length` ids, `<bos>` first, the question last.
        answer: the text expected next.
        answer_ids: its ids, without the `<eos>` that the model writes after it.
        task: name in `TASKS`.
        length: number of prompt ids.
        question_start: index in `prompt_ids` of the question's first id.
    """

    prompt: str
    prompt_ids: list[int]
    answer: str
    answer_ids: list[int]
    task: str
    length: int
    question_start: int

    @property
    def context_ids(self) -> list[int]:
        """The prompt without its question (with `<bos>`), for query-agnostic runs."""
        return self.prompt_ids[: self.question_start]

    @property
    def question_ids(self) -> list[int]:
        """The question alone (without `<bos>`), for query-agnostic runs."""
        return self.prompt_ids[self.question_start :]


def get_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        ValueError: if there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}; see TASKS for what each asks")
    return TASKS[name]


def make_example(task: str, length: int, *, seed: int = 0, index: int = 0) -> Example:
    """Return the example fixed by the arguments.

    Args:
        task: name in `TASKS`.
        length: number of prompt ids wanted, `<bos>` and question included, in [64, 4096]. Where a task's
            facts do not fit (the twenty needles at 128), as many are taken as fit.
        seed: which set of examples; training uses none of these sets.
        index: which example of the set.

    Returns:
        The example.

    Raises:
        ValueError: if the task is unknown or the length out of range.
    """
    spec = get_task(task)
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise ValueError(
            f"length must be in [{MIN_LENGTH}, {MAX_LENGTH}] (room for facts, the model's positions), "
            f"got {length}; choose a length in that range"
        )
    rng = Random(f"example:{task}:{length}:{seed}:{index}")
    document = spec.build(rng, length - 1 - spec.question_length, 1)
    question = document.questions[0]
    prompt_ids = [BOS_ID, *document.context, *question.ids]
    return Example(
        prompt=ids_text(prompt_ids),
        prompt_ids=prompt_ids,
        answer=ids_text(question.answer),
        answer_ids=list(question.answer),
        task=task,
        length=length,
        question_start=len(prompt_ids) - len(question.ids),
    )


def is_correct(example: Example, generated_ids: Sequence[int]) -> bool:
    """Return whether generated ids answer the example.

    The first `len(answer_ids)` ids count, what follows does not. They must equal the answer, as a set where
    the task says so (then each value must come once).

    Args:
        example: the example asked.
        generated_ids: ids generated after the prompt, without it.

    Returns:
        True if the answer is right and complete.
    """
    given = list(generated_ids[: len(example.answer_ids)])
    if get_task(example.task).is_set:
        return sorted(given) == sorted(example.answer_ids)
    return given == example.answer_ids
