"""How texts are taken apart before they are compared."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_words(text: str) -> list[str]:
    """Words of an answer without case, punctuation and English articles.

    Source: SQuAD (arXiv 1606.05250), section 6.1, whose normalisation LongBench takes over.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; time is the product of both lengths, memory the second's."""
    best = [0] * (len(second) + 1)
    for item in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = best[place]
            best[place] = diagonal + 1 if item == other else max(above, best[place - 1])
            diagonal = above
    return best[-1]


def f_score(common: float, predicted: int, expected: int) -> float:
    """Harmonic mean of precision and recall: ``2 common / (predicted + expected)``; 0 where both are empty."""
    return 2 * common / (predicted + expected) if predicted + expected else 0.0
