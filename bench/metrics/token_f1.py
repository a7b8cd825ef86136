"""F1 over words, for short free answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvcompress.bench.metrics.words import answer_words, f_score


def token_f1(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Best F1 of the prediction's words with those of a reference, words counted as often as they occur.

    Args:
        prediction: what was generated.
        references: answers, each right by itself.
        choices: not used.

    Source: LongBench (arXiv 2308.14508), section 3.3; SQuAD (arXiv 1606.05250), section 6.1.
    """
    given = answer_words(prediction)
    scores = []
    for reference in references:
        wanted = answer_words(reference)
        common = (Counter(given) & Counter(wanted)).total()
        scores.append(f_score(common, len(given), len(wanted)))
    return max(scores)
