"""ROUGE-L, for summaries."""

from __future__ import annotations

from collections.abc import Sequence

from kvcompress.bench.metrics.words import common_subsequence, f_score


def rouge_l(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Best F1 by the longest common subsequence of words, over the whole text at once.

    LongBench calls the package ``rouge``, which takes the union over pairs of sentences and counts a word once: its
    figures differ by some points. Compare only figures made by the same code.

    Args:
        prediction: what was generated.
        references: texts, each good by itself.
        choices: not used.

    Source: C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), section 3.1, beta 1.
    """
    given = prediction.split()
    texts = [reference.split() for reference in references]
    return max(f_score(common_subsequence(given, wanted), len(given), len(wanted)) for wanted in texts)
