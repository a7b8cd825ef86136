"""Recall over a set: which of several values were given, in any order."""

from __future__ import annotations

from collections.abc import Sequence


def recall(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Share of the references that are whole words (runs of words) of the prediction.

    It does not punish what else is said; where no more tokens are generated than the answer has, it is precision too.

    Args:
        prediction: what was generated.
        references: values, all of which are asked for.
        choices: not used.
    """
    spaced = f" {' '.join(prediction.split())} "
    return sum(f" {' '.join(reference.split())} " in spaced for reference in references) / len(references)
