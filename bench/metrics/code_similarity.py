"""Code similarity: how much of a line of code must be typed anew."""

from __future__ import annotations

from collections.abc import Sequence

from kvcompress.bench.metrics.words import common_subsequence, f_score

_NO_CODE = ("`", "#", "//")  # fences and comments


def code_similarity(prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Similarity by insertions and deletions of the first line of code with the best reference.

    ``1 - edits / (length + length)``, where an edit inserts or deletes one character.

    Args:
        prediction: what was generated; its first line that holds neither a fence nor a comment counts.
        references: lines, each right by itself.
        choices: not used.

    Source: LongBench (arXiv 2308.14508), section 3.3 (edit similarity, arXiv 2002.08653).
    """
    lines = (line for line in prediction.lstrip("\n").split("\n") if not any(mark in line for mark in _NO_CODE))
    line = next(lines, "")
    return max(f_score(common_subsequence(line, wanted), len(line), len(wanted)) for wanted in references)
