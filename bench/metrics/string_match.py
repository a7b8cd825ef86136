"""String match as RULER defines it: references as substrings, whatever their case.

Source: RULER (arXiv 2404.06654), section 4 ("recall-based accuracy") and the scripts of its repository.
"""

from __future__ import annotations

from collections.abc import Sequence


def string_match_all(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Share of the references that occur in the prediction: all tasks but question answering.

    Args:
        prediction: what was generated.
        references: values, all of which are asked for.
        choices: not used.
    """
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_part(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 if any reference occurs in the prediction, else 0: question answering.

    Args:
        prediction: what was generated.
        references: answers, each right by itself.
        choices: not used.
    """
    text = prediction.lower()
    return float(any(reference.lower() in text for reference in references))
