"""Numbers in an answer: counting, and naming the paragraph that is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence


def numbers_named(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the right one; 0 where there is none.

    Args:
        prediction: what was generated.
        references: texts with one number each, such as ``12`` or ``Paragraph 12``; the best counts.
        choices: not used.

    Raises:
        ValueError: a reference without a number.

    Source: LongBench (arXiv 2308.14508), section 3.3, passage count and passage retrieval.
    """
    given = re.findall(r"\d+", prediction)
    scores = []
    for reference in references:
        right = re.search(r"\d+", reference)
        if right is None:
            raise ValueError(f"references must hold a number for this metric; got {reference!r}. Use another metric.")
        scores.append(given.count(right.group()) / len(given) if given else 0.0)
    return max(scores)
