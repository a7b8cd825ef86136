"""Compares two sides: answers at equal tokens kept, the tokens kept themselves, and times taken in turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.peers.answering import Answer, Request
from kvcompress.bench.peers.kept_sets import compare_kept
from kvcompress.bench.peers.methods import Method, Size
from kvcompress.bench.tasks.sample import QUERY_AWARE
from kvcompress.bench.testbed.tasks import Example, is_correct, make_example

Row = dict[str, Any]
Times = dict[tuple[str, str, str], list[float]]  # milliseconds of each round by method, side and phase
OURS, THEIRS = "kvcompress", "kvpress"
PHASES = ("prefill", "decode_step")


class Asked(Protocol):
    """What a comparison needs of a side; :class:`~kvcompress.bench.peers.side_process.SideProcess` is one."""

    def send(self, request: Request) -> None:
        """Hands a request over."""

    def receive(self) -> Answer:
        """Waits for the answer to the oldest request."""

    def ask(self, request: Request) -> Answer:
        """Both."""


def requests_of(
    method: Method | None,
    size: Size,
    prompts: list[list[int]],
    new_tokens: int,
    *,
    wants_kept: bool = False,
    questions: list[list[int]] | None = None,
) -> dict[str, Request]:
    """The same request for each side that has the method; a method of None is the full cache."""
    setups: dict[str, Any] = {OURS: None, THEIRS: None}
    if method is not None:
        setups = {OURS: method.ours(size)}
        if method.theirs is not None:
            setups[THEIRS] = method.theirs(size)
    return {
        side: Request(prompts=prompts, new_tokens=new_tokens, setup=setup, wants_kept=wants_kept, questions=questions)
        for side, setup in setups.items()
    }


def accuracy(
    sides: Mapping[str, Asked],
    methods: Mapping[str, Method],
    *,
    tasks: Sequence[str],
    length: int,
    kept: Sequence[int],
    samples: int,
    batch: int = 10,
    mode: str = QUERY_AWARE,
) -> Iterator[Row]:
    """Answers the same prompts on both sides, full cache first.

    Args:
        sides: by name; both work at the same time, since nothing is timed.
        methods: what is compared.
        tasks: tasks of the testbed.
        length: tokens of each prompt.
        kept: tokens kept per layer and head on average.
        samples: prompts of each task.
        batch: prompts at a time; the tokens kept are compared for the first batch of each cell.
        mode: ``"query_aware"``: the prompt that is compressed ends with the question; ``"query_agnostic"``: the
            question comes after the compression.

    Yields:
        A row per task, size and method; the full cache's has ``kept`` = ``length``.
    """
    cells: list[tuple[str, int, Method | None]] = [("full", length, None)]
    cells += [(name, size, method) for size in kept for name, method in methods.items()]
    for task in tasks:
        examples = [make_example(task, length, index=index) for index in range(samples)]
        for name, size, method in cells:
            yield _cell(sides, examples, name, size, method, batch, mode)


def _cell(
    sides: Mapping[str, Asked],
    examples: list[Example],
    name: str,
    kept: int,
    method: Method | None,
    batch: int,
    mode: str,
) -> Row:
    asked_first = mode == QUERY_AWARE
    tokens = examples[0].length if asked_first else examples[0].question_start
    size = Size(tokens=tokens, kept=min(kept, tokens - 1))
    found: dict[str, list[Answer]] = {}
    wants_kept = method is not None and method.theirs is not None and not method.draws
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        asked = requests_of(
            method,
            size,
            [example.prompt_ids if asked_first else example.context_ids for example in part],
            len(examples[0].answer_ids),
            wants_kept=wants_kept and start == 0,
            questions=None if asked_first else [example.question_ids for example in part],
        )
        for side, request in asked.items():
            sides[side].send(request)
        for side in asked:
            found.setdefault(side, []).append(sides[side].receive())
    row: Row = {
        "case": "accuracy",
        "task": examples[0].task,
        "tokens": tokens,
        "kept": min(kept, tokens),
        "method": name,
    }
    row |= {side: _score(examples, answers) for side, answers in found.items()}
    if THEIRS in found:
        pairs = zip(_ids(found[OURS]), _ids(found[THEIRS]), strict=True)
        row["same_answers"] = sum(ours == theirs for ours, theirs in pairs)
    if wants_kept:
        row["kept_sets"] = compare_kept([(found[OURS][0], found[THEIRS][0])], tokens)
    return row


def _score(examples: list[Example], answers: list[Answer]) -> Row:
    right = [is_correct(example, ids) for example, ids in zip(examples, _ids(answers), strict=True)]
    low, high = wilson_interval(sum(right), len(right))
    return {
        "samples": len(right),
        "correct": sum(right),
        "exact_match": sum(right) / len(right),
        "interval_95": [round(low, 4), round(high, 4)],
        "num_bytes": round(sum(answer.num_bytes for answer in answers) / len(right)),
        "final_bytes": round(sum(answer.final_bytes for answer in answers) / len(right)),
    }


def _ids(answers: list[Answer]) -> list[list[int]]:
    return [ids for answer in answers for ids in answer.ids]


def speed(
    sides: Mapping[str, Asked],
    methods: Mapping[str, Method],
    *,
    task: str,
    length: int,
    kept: int,
    new_tokens: int,
    rounds: int,
) -> list[Row]:
    """Times prefill and decoding of one prompt: each side waits while the other works, in turns that rotate.

    Args:
        sides: by name.
        methods: what is timed; those that one side alone has are left out. The full cache of both is timed too.
        task: task of the testbed that gives the prompt.
        length: its tokens.
        kept: tokens kept per layer and head on average.
        new_tokens: tokens generated, at least 2.
        rounds: how often, at least 1; a round before them warms everything up.

    Returns:
        Two rows per method, prefill and decode step: milliseconds of both sides, ours divided by theirs, and each
        divided by its own full cache of the same round.

    Raises:
        ValueError: no rounds, or too few tokens.
    """
    if rounds < 1 or new_tokens < 2:
        raise ValueError(f"rounds must be at least 1 and new_tokens at least 2, got {rounds} and {new_tokens}")
    size = Size(tokens=length, kept=kept)
    prompt = make_example(task, length).prompt_ids
    both = {"full": None, **{name: method for name, method in methods.items() if method.theirs is not None}}
    asked = [
        (name, side, request)
        for name, method in both.items()
        for side, request in requests_of(method, size, [prompt], new_tokens).items()
    ]
    times = _take_turns(sides, asked, rounds)
    shape = f"{length} tokens, {kept} kept, {new_tokens} new"
    return [_speed_row(times, name, phase, shape) for name in both for phase in PHASES]


def _take_turns(sides: Mapping[str, Asked], asked: list[tuple[str, str, Request]], rounds: int) -> Times:
    """Asks one after the other; each round begins with another one, and the first, which warms up, is not counted."""
    times: Times = {(name, side, phase): [] for name, side, _ in asked for phase in PHASES}
    for turn in range(rounds + 1):
        for step in range(len(asked)):
            name, side, request = asked[(turn + step) % len(asked)]
            answer = sides[side].ask(request)
            if turn:
                per_step = answer.decode_seconds / (request.new_tokens - 1)
                for phase, seconds in zip(PHASES, (answer.prefill_seconds, per_step), strict=True):
                    times[name, side, phase].append(1e3 * seconds)
    return times


def _speed_row(times: Times, name: str, phase: str, shape: str) -> Row:
    ours, theirs = (np.array(times[name, side, phase]) for side in (OURS, THEIRS))
    row: Row = {"case": "speed", "phase": phase, "method": name, "shape": shape, "unit": "ms", "repeats": len(ours)}
    row |= {OURS: _quantiles(ours), THEIRS: _quantiles(theirs), "ratio": _quantiles(ours / theirs)}
    if name != "full":
        for side, own in ((OURS, ours), (THEIRS, theirs)):
            row[f"{side}_to_full"] = _quantiles(own / np.array(times["full", side, phase]))
    return row


def _quantiles(values: Any) -> dict[str, float]:
    q20, median, q80 = (float(value) for value in np.quantile(values, (0.2, 0.5, 0.8)))
    return {"median": median, "q20": q20, "q80": q80}
