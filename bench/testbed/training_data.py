"""Training batches: many questions per sequence, random task parameters, positions with gaps.

A batch is fixed by (seed, length, step, rank), so a resumed run sees what an uninterrupted one would have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from kvcompress.bench.testbed.documents import Document, copies, frequent, needles, owners, pairs, variables
from kvcompress.bench.testbed.tokenizer import MAX_POSITIONS
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID, PAD_ID

_GAP_SHARE = 0.5
_MAX_GAPS = 3
_BYTE_COPY_SHARE = 0.2


def _between(rng: Random, low: int, high: int) -> int:
    """Return an integer in [low, max(low, high)]."""
    return low + int(rng.random() * (max(low, high) - low + 1))


def _asked(rng: Random, length: int, cost: int, most: int) -> int:
    """Return how many questions to ask, each costing `cost` ids with its fact; rather many than few."""
    fitting = max(1, min(most, (length - 1) // cost))
    return _between(rng, (fitting + 1) // 2, fitting)


def _needle(rng: Random, length: int) -> Document:
    asked = _asked(rng, length, 9 + 10, 16)
    room = length - 1 - 10 * asked
    return needles(rng, room, asked, keys=_between(rng, asked, min(28, room // 9)))


def _variables(rng: Random, length: int) -> Document:
    hops = _between(rng, 1, 5)
    asked = _asked(rng, length, 6 * hops + 3, 8)
    room = length - 1 - (2 * hops + 3) * asked
    return variables(rng, room, asked, hops=hops, chains=_between(rng, asked, asked + 2))


def _pairs(rng: Random, length: int) -> Document:
    asked = _asked(rng, length, 6 + 7, 24)
    return pairs(rng, length - 1 - 7 * asked, asked)


def _owners(rng: Random, length: int) -> Document:
    values = _between(rng, 2, 5)
    asked = _asked(rng, length, 5 * values + 4, 8)
    room = length - 1 - (values + 4) * asked
    return owners(rng, room, asked, keys=_between(rng, asked, asked + 2), values=values)


def _copy(rng: Random, length: int) -> Document:
    size = _between(rng, 8, min(96, (length - 8) // 2))
    byte_share = rng.random() if rng.random() < _BYTE_COPY_SHARE else 0.0
    return copies(rng, length - 5 - size, 1, size=size, byte_share=byte_share)


def _frequent(rng: Random, length: int) -> Document:
    return frequent(rng, length - 8, 1)


def _filler(rng: Random, length: int) -> Document:
    return needles(rng, length - 1, 0, keys=0)


TRAINING_TASKS: Final[Mapping[str, Callable[[Random, int], Document]]] = MappingProxyType(
    {
        "copy": _copy,
        "needle": _needle,
        "key_value": _pairs,
        "variables": _variables,
        "multi_value": _owners,
        "frequent_words": _frequent,
        "filler": _filler,
    }
)
# Shares of the sequences. Retrieval does not emerge without much copying at first; later little is enough.
EARLY_MIX: Final[Mapping[str, float]] = MappingProxyType(
    {
        "copy": 2.5,
        "needle": 4.0,
        "key_value": 2.0,
        "variables": 1.5,
        "multi_value": 1.5,
        "frequent_words": 0.3,
        "filler": 0.2,
    }
)
LATE_MIX: Final[Mapping[str, float]] = MappingProxyType(
    {
        "copy": 0.7,
        "needle": 2.5,
        "key_value": 3.0,
        "variables": 2.0,
        "multi_value": 3.0,
        "frequent_words": 0.6,
        "filler": 0.2,
    }
)
# Listing several values in order is learned last, and is lost first when sequences grow.
FINAL_MIX: Final[Mapping[str, float]] = MappingProxyType(
    {
        "copy": 0.5,
        "needle": 1.5,
        "key_value": 2.5,
        "variables": 1.5,
        "multi_value": 6.0,
        "frequent_words": 0.3,
        "filler": 0.1,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One process's share of a step.

    Attributes:
        input_ids: int64 [B, S].
        positions: int64 [B, S], ascending, below 4096, with gaps.
        answer_weights: float32 [B, S], at each id the weight of predicting it as part of an answer.
        filler_weights: float32 [B, S], the same for the language-model loss: 1 on filler, else 0.
        tasks: name of each sequence's task.
    """

    input_ids: Tensor
    positions: Tensor
    answer_weights: Tensor
    filler_weights: Tensor
    tasks: list[str]


def _positions(rng: Random, length: int) -> list[int]:
    """Return ascending positions, every other time with gaps (PoSE, arXiv 2309.10400)."""
    if rng.random() >= _GAP_SHARE:
        return list(range(length))
    gaps = [0] * length
    for _ in range(_between(rng, 1, _MAX_GAPS)):
        gaps[_between(rng, 0, length - 1)] += _between(rng, 0, (MAX_POSITIONS - length) // _MAX_GAPS)
    positions, position = [], -1
    for gap in gaps:
        position += 1 + gap
        positions.append(position)
    return positions


def _sequence(document: Document, length: int) -> tuple[list[int], list[float], list[float]]:
    """Return ids, answer weights and filler weights of a document with its questions and answers."""
    ids = [BOS_ID, *document.context]
    filler = [0.0, *map(float, document.is_filler)]
    answers = [0.0] * len(ids)
    # 1 / sqrt: a sequence with many answers counts more than one with few, but not in proportion.
    weight = max(1, len(document.questions)) ** -0.5
    for question in document.questions:
        ids += [*question.ids, *question.answer, EOS_ID]
        answers += [0.0] * len(question.ids) + [weight] * (len(question.answer) + 1)
    padding = length - len(ids)
    ids += [PAD_ID] * padding
    return ids, answers + [0.0] * padding, filler + [0.0] * (length - len(filler))


def _draw(rng: Random, mix: Mapping[str, float]) -> str:
    """Return a task's name, with the probability that its share gives."""
    point = rng.random() * sum(mix.values())
    for name, share in mix.items():
        point -= share
        if point < 0:
            return name
    return list(mix)[-1]  # rounding left the point at the very end


def make_batch(mix: Mapping[str, float], length: int, rows: int, *, key: str) -> Batch:
    """Return a batch of sequences of the same length.

    Args:
        mix: share of each task in `TRAINING_TASKS`; need not add up to 1.
        length: ids of each sequence, at least 64.
        rows: number of sequences.
        key: what the batch is fixed by besides the other arguments.

    Returns:
        The batch.
    """
    rng = Random(f"training:{key}")
    drawn, sequences, positions = [], [], []
    for _ in range(rows):
        drawn.append(_draw(rng, mix))
        sequences.append(_sequence(TRAINING_TASKS[drawn[-1]](rng, length), length))
        positions.append(_positions(rng, length))
    return Batch(
        input_ids=torch.tensor([ids for ids, _, _ in sequences], dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        answer_weights=torch.tensor([answers for _, answers, _ in sequences], dtype=torch.float32),
        filler_weights=torch.tensor([filler for _, _, filler in sequences], dtype=torch.float32),
        tasks=drawn,
    )
