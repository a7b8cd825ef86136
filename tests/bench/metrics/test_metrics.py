"""Metrics: values worked out by hand from their definitions, and laws that all of them keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.metrics.registry import METRICS, get_metric
from kvcompress.bench.metrics.words import common_subsequence

CASES = [
    ("exact_match", " a  b\n", ["a b"], (), 1.0),
    ("exact_match", "a b c", ["a b", "c"], (), 0.0),
    ("recall", "sunday moon", ["sun", "moon"], (), 0.5),
    ("recall", "the red fox runs", ["red fox", "fox red"], (), 0.5),
    ("string_match_all", "It is SUNDAY, 12.", ["sun", "12", "13"], (), 2 / 3),
    ("string_match_part", "in Paris!", ["paris", "London"], (), 1.0),
    ("string_match_part", "in Rome", ["paris", "London"], (), 0.0),
    # {cat, sat} of {cat, sat, down} and {cat, sat}: 2 * 2 / (3 + 2)
    ("token_f1", "The cat sat down.", ["a Cat sat"], (), 0.8),
    ("token_f1", "yes yes", ["yes"], (), 2 / 3),
    ("token_f1", "no", ["yes", "no"], (), 1.0),
    # "police the gunman" against "police killed the gunman" (Lin 2004): 3 of 3 and of 4
    ("rouge_l", "police the gunman", ["police killed the gunman"], (), 6 / 7),
    ("rouge_l", "the gunman kill police", ["police killed the gunman"], (), 0.5),
    ("code_similarity", "```python\n# sum\nx = 1\ny = 2", ["x = 1"], (), 1.0),
    ("code_similarity", "abcd", ["abxd"], (), 0.75),
    ("code_similarity", "", ["x"], (), 0.0),
    ("classification", "City or Country", ["City"], ("City", "Country", "State"), 0.5),
    ("classification", "other location", ["other location"], ("location", "other location"), 1.0),
    ("classification", "location", ["City"], ("location", "City"), 0.0),
    ("numbers_named", "Paragraph 12, not 3", ["Paragraph 12"], (), 0.5),
    ("numbers_named", "none", ["4"], (), 0.0),
]


@pytest.mark.parametrize(("name", "prediction", "references", "choices", "score"), CASES)
def test_score_by_hand(
    name: str, prediction: str, references: list[str], choices: tuple[str, ...], score: float
) -> None:
    assert get_metric(name)(prediction, references, choices) == pytest.approx(score, abs=1e-12)


words = st.text(alphabet="abcd1 ", min_size=1, max_size=12).map(lambda text: f"w{text}7")


@given(name=st.sampled_from(list(METRICS)), prediction=words, references=st.lists(words, min_size=1, max_size=3))
def test_scores_are_shares_and_a_right_answer_scores_one(name: str, prediction: str, references: list[str]) -> None:
    score = METRICS[name](prediction, references, (*references, prediction))
    assert 0 <= score <= 1
    if name not in ("classification", "numbers_named"):  # there other classes or numbers may be named along
        assert METRICS[name](references[0], references[:1], ()) == 1


@given(first=st.text("abc", max_size=9), second=st.text("abc", max_size=9))
def test_common_subsequence_is_the_longest(first: str, second: str) -> None:
    def is_part(part: str, text: str) -> bool:
        left = iter(text)
        return all(letter in left for letter in part)

    parts = {"".join(c for place, c in enumerate(first) if bits >> place & 1) for bits in range(1 << len(first))}
    assert common_subsequence(first, second) == max(len(part) for part in parts if is_part(part, second))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"metric must be one of classification, .*; got 'bleu'"):
        get_metric("bleu")
    with pytest.raises(ValueError, match="choices must name all classes"):
        get_metric("classification")("x", ["x"])
    with pytest.raises(ValueError, match="references must hold a number"):
        get_metric("numbers_named")("1", ["one"])
