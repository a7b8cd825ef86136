"""Exact match: the answer word for word."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 if the prediction is one of the references, but for white space; else 0.

    Args:
        prediction: what was generated.
        references: answers, each right by itself.
        choices: not used.
    """
    return float(any(prediction.split() == reference.split() for reference in references))
