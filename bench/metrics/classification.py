"""Accuracy of choosing a class by naming it."""

from __future__ import annotations

from collections.abc import Sequence


def classification(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 over the number of classes that the prediction names, if the right one is among them; else 0.

    A class whose name is part of the right one's does not count as named.

    Args:
        prediction: what was generated.
        references: right classes; the best counts.
        choices: names of all classes.

    Raises:
        ValueError: no choices.

    Source: LongBench (arXiv 2308.14508), section 3.3, as its code judges TREC.
    """
    if not choices:
        raise ValueError("choices must name all classes for this metric; got none. Give the sample its choices.")
    scores = []
    for right in references:
        named = [choice for choice in choices if choice in prediction and (choice == right or choice not in right)]
        scores.append(1 / len(named) if right in named else 0.0)
    return max(scores)
