"""Tasks by name, for the command line and for sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any, Final

from kvcompress.bench.tasks.common_words import CommonWords
from kvcompress.bench.tasks.copying import Copy
from kvcompress.bench.tasks.frequent_words import FrequentWords
from kvcompress.bench.tasks.key_value import KeyValue
from kvcompress.bench.tasks.longbench import SUBSETS, LongBench
from kvcompress.bench.tasks.multi_turn import MultiTurn
from kvcompress.bench.tasks.needles import Needles
from kvcompress.bench.tasks.passage_questions import PassageQuestions
from kvcompress.bench.tasks.passkey import Passkey
from kvcompress.bench.tasks.ruler import RULER_TASKS, Ruler
from kvcompress.bench.tasks.sample import Task
from kvcompress.bench.tasks.variables import Variables

TASKS: Final[Mapping[str, Callable[..., Task]]] = MappingProxyType(
    {
        "needle_1": partial(Needles, name="needle_1", embedded="needle_1"),
        "needle_8": partial(Needles, name="needle_8", hidden_keys=8, embedded="needle_8"),
        "needle_20": partial(Needles, name="needle_20", hidden_keys=20, embedded="needle_20"),
        "multi_value": partial(Needles, name="multi_value", hidden_keys=4, values=4, embedded="multi_value"),
        "multi_query": partial(Needles, name="multi_query", hidden_keys=8, asked_keys=4),
        "variables_2": partial(Variables, name="variables_2", hops=2, embedded="variables_2"),
        "variables_4": partial(Variables, name="variables_4", hops=4, embedded="variables_4"),
        "common_words": CommonWords,
        "frequent_words": partial(FrequentWords, embedded="frequent_words"),
        "passage_questions": PassageQuestions,
        "key_value": partial(KeyValue, embedded="key_value"),
        "copy": partial(Copy, embedded="copy"),
        "passkey": Passkey,
        "multi_turn": MultiTurn,
        "multi_turn_variables": partial(
            MultiTurn, name="multi_turn_variables", turns=3, embedded="variables_2", english=False
        ),
        "multi_turn_key_value": partial(MultiTurn, name="multi_turn_key_value", embedded="key_value", english=False),
        **{f"longbench/{subset}": partial(LongBench, subset=subset) for subset in SUBSETS},
        **{f"ruler/{task}": partial(Ruler, task=task) for task in RULER_TASKS},
    }
)


def make_task(name: str, **parameters: Any) -> Task:
    """Makes a task from its name.

    Args:
        name: a key of :data:`TASKS`.
        **parameters: parameters of that task, in place of the named ones.

    Raises:
        ValueError: unknown name, or a parameter out of range.
        TypeError: a parameter that the task does not have.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {name!r}")
    known = list(signature(TASKS[name]).parameters)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TypeError(f"task {name!r} has no parameter {', '.join(unknown)}; it has: {', '.join(known)}")
    return TASKS[name](**parameters)
