"""Samples in the formats that the embedded model was trained on."""

from __future__ import annotations

from random import Random
from typing import Any

from kvcompress.bench.tasks.sample import Sample, Turn
from kvcompress.bench.testbed.documents import Question
from kvcompress.bench.testbed.tasks import MAX_LENGTH, MIN_LENGTH, get_task, make_example
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID, VOCABULARY_SIZE, WORDS, ids_text, word_ids

_PROBE = " ".join(WORDS[:3] + WORDS[-3:])


def is_embedded(tokenizer: Any) -> bool:
    """Whether a tokenizer is the embedded model's: same size, same ids of its first and last words."""
    if len(tokenizer) != VOCABULARY_SIZE:
        return False
    return list(tokenizer(_PROBE)["input_ids"]) == [BOS_ID, *word_ids(_PROBE)]


def embedded_sample(task: str, kind: str, length: int, seed: int) -> Sample:
    """A sample with one question: the example ``seed`` of the set on which the model's own figures were measured.

    Args:
        task: name of the task.
        kind: the testbed's task.
        length: tokens of context and question, met exactly.
        seed: index of the example.
    """
    example = make_example(kind, length, index=seed)
    question = Question(ids=example.question_ids, answer=example.answer_ids)
    return Sample(
        task=task,
        seed=seed,
        context=ids_text(example.context_ids),
        context_ids=tuple(example.context_ids),
        turns=_turns([question], is_set=get_task(kind).is_set),
        metric="recall" if get_task(kind).is_set else "exact_match",
        fixed_length=True,
    )


def embedded_turns(task: str, kind: str, length: int, seed: int, turns: int) -> Sample:
    """A sample with several questions on one context, each on another fact.

    Args:
        task: name of the task.
        kind: the testbed's task.
        length: tokens of context and first question, met exactly.
        seed: which sample.
        turns: number of questions.

    Raises:
        ValueError: the length is out of range, or the context has fewer facts than questions.
    """
    spec = get_task(kind)
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise ValueError(f"length must be in [{MIN_LENGTH}, {MAX_LENGTH}] for the embedded model, got {length}")
    rng = Random(f"turns:{task}:{kind}:{length}:{turns}:{seed}")
    document = spec.build(rng, length - 1 - spec.question_length, turns)
    if len(document.questions) < turns:
        raise ValueError(
            f"length must have room for {turns} facts; {length} tokens have {len(document.questions)}. "
            "Take a longer context or fewer turns."
        )
    ids = [BOS_ID, *document.context]
    return Sample(
        task=task,
        seed=seed,
        context=ids_text(ids),
        context_ids=tuple(ids),
        turns=_turns(document.questions, is_set=spec.is_set),
        metric="recall" if spec.is_set else "exact_match",
        fixed_length=True,
    )


def _turns(questions: list[Question], *, is_set: bool) -> tuple[Turn, ...]:
    turns = []
    for number, question in enumerate(questions):
        text = ids_text(question.answer)
        turns.append(
            Turn(
                question=ids_text(question.ids),
                # The model learned that an answer is ended before the next question.
                question_ids=(*([EOS_ID] if number else []), *question.ids),
                answers=tuple(text.split()) if is_set else (text,),
                max_new_tokens=len(question.answer),
            )
        )
    return tuple(turns)
