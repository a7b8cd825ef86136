"""Long decodes with questions in them: what the decode rules are measured on.

* asked again: a prompt holds many facts and one question; then come the answer, the next question, its answer and so
  on, and all questions a second time. The first answer, which the prefill was scored for, doesn't count;
* arriving: the prompt is the first part of a text with facts; the rest of it comes while decoding, then the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any, Final

import torch

from kvcompress.bench.replay import next_logits
from kvcompress.bench.testbed.documents import Document, Question, needles, pairs, variables
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID

QUESTIONS: Final = 8
ROOM: Final = 512  # ids of the context


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A kind of document.

    Attributes:
        build: makes one from (rng, room for the context in ids, number of questions).
        passes: how often each question is asked.
        arriving: ids at the context's end that come while decoding; with any, the prompt ends without a question.
    """

    build: Callable[[Random, int, int], Document]
    passes: int = 2
    arriving: int = 0


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "needles": Task(build=partial(needles, keys=QUESTIONS)),
        "variables": Task(build=partial(variables, hops=2, chains=QUESTIONS)),
        "key_value": Task(build=pairs),
        "needles_arriving": Task(build=partial(needles, keys=QUESTIONS), passes=1, arriving=192),
        "key_value_arriving": Task(build=pairs, passes=1, arriving=192),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A batch of long decodes.

    Attributes:
        prompts: int64 ``[documents, tokens]``, context and first question.
        forced: int64 ``[documents, steps]``, what follows.
        spans: of each answer that counts, where it lies in ``forced``: (start, end).
        arrived: bool ``[documents, answers]``, whether the fact asked for came while decoding.
        repeated: of the answers, how many at the end are to questions that were asked before.
    """

    prompts: torch.Tensor
    forced: torch.Tensor
    spans: tuple[tuple[int, int], ...]
    arrived: torch.Tensor
    repeated: int


def make_script(task: str, documents: range, *, room: int = ROOM, asked: int = QUESTIONS) -> Script:
    """The documents of a task, fixed by their numbers; all of one task have the same lengths."""
    spec = TASKS[task]
    prompts, forced, arrived = [], [], []
    spans: list[tuple[int, int]] = []
    for index in documents:
        document = spec.build(Random(f"decode_rules:{task}:{room}:{index}"), room, asked)
        questions = document.questions * spec.passes
        ids = [BOS_ID, *document.context]
        spans = []
        for question in questions:
            ids += question.ids
            spans.append((len(ids), len(ids) + len(question.answer)))
            ids += [*question.answer, EOS_ID]
        start = spans.pop(0)[0] if spec.arriving == 0 else 1 + room - spec.arriving
        spans = [(a - start, b - start) for a, b in spans]
        asked_for = questions[len(questions) - len(spans) :]
        arrived.append([spec.arriving > 0 and _end_of_fact(ids, question) > start for question in asked_for])
        prompts.append(ids[:start])
        forced.append(ids[start:])
    return Script(
        prompts=torch.tensor(prompts),
        forced=torch.tensor(forced),
        spans=tuple(spans),
        arrived=torch.tensor(arrived),
        repeated=asked if spec.passes > 1 else 0,
    )


def _end_of_fact(ids: list[int], question: Question) -> int:
    """Where the fact that answers a question ends; the question and its answer repeat it word for word."""
    fact = [*question.ids[1:], *question.answer]
    return next(n for n in range(len(fact), len(ids) + 1) if ids[n - len(fact) : n] == fact)


def judge(model: Any, cache: Any, script: Script) -> torch.Tensor:
    """Forces the script through a prefilled cache: bool ``[documents, answers]``.

    An answer counts as right if the model's best guess is right for every one of its tokens.
    """
    steps = script.spans[-1][1] - 1
    guesses = [next_logits(model, cache, script.forced[:, step]).argmax(-1) for step in range(steps)]
    guessed = torch.stack(guesses, dim=1)  # the guess after step i is of token i + 1
    hits = [(guessed[:, a - 1 : b - 1] == script.forced[:, a:b]).all(1) for a, b in script.spans]
    return torch.stack(hits, dim=1)
