"""Tasks: fixed by their arguments, within the length, answerable from the context, for any tokenizer."""

import hashlib
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.tasks.draft import hidden
from kvcompress.bench.tasks.embedded import is_embedded
from kvcompress.bench.tasks.frequent_words import FrequentWords
from kvcompress.bench.tasks.multi_turn import MultiTurn
from kvcompress.bench.tasks.needles import Needles
from kvcompress.bench.tasks.passage_questions import PassageQuestions
from kvcompress.bench.tasks.registry import TASKS, make_task
from kvcompress.bench.tasks.sample import Sample, Task
from kvcompress.bench.testbed.tasks import make_example
from kvcompress.bench.testbed.vocabulary import EOS_ID
from tests.source_tree import ROOT

BUILT_IN = [name for name in TASKS if "/" not in name]
ENGLISH = [name for name in BUILT_IN if name not in ("multi_turn_variables", "multi_turn_key_value")]
EMBEDDED = [
    "needle_1", "needle_8", "needle_20", "variables_2", "variables_4", "key_value", "multi_value", "copy",
    "frequent_words", "multi_turn", "multi_turn_variables", "multi_turn_key_value",
]  # fmt: skip
MOST_IN_A_UNIT = {"byte_tokenizer": 420, "word_tokenizer": 90}  # tokens of a passage, the longest unit of filler


def found_in(context: str, answer: str) -> bool:
    words = "".join(letter if letter not in ".,:" else " " for letter in context).split()
    return f" {' '.join(answer.split())} " in f" {' '.join(words)} "


@pytest.mark.parametrize("tokenizer", MOST_IN_A_UNIT)
@pytest.mark.parametrize("name", ENGLISH)
@pytest.mark.parametrize("length", [3000, 3001])
def test_length_is_met_and_never_exceeded(
    name: str, length: int, tokenizer: str, request: pytest.FixtureRequest
) -> None:
    sample = make_task(name).sample(request.getfixturevalue(tokenizer), length, 5)
    assert length - MOST_IN_A_UNIT[tokenizer] < sample.prompt_tokens <= length


@pytest.mark.parametrize("name", ENGLISH)
def test_more_room_is_filled(name: str, byte_tokenizer: Any) -> None:
    lengths = [make_task(name).sample(byte_tokenizer, length, 1).prompt_tokens for length in (2000, 2600, 3200)]
    assert all(below < above for below, above in pairwise(lengths))


@pytest.mark.parametrize("name", ENGLISH)
@pytest.mark.parametrize("seed", range(3))
def test_context_answers_every_question(name: str, seed: int, word_tokenizer: Any) -> None:
    sample = make_task(name).sample(word_tokenizer, 800, seed)
    for number, turn in enumerate(sample.turns):
        for answer in turn.answers:
            assert found_in(sample.context, answer), answer
            assert answer not in turn.question
        assert sample.judge(number, " ".join(turn.answers)) == 1
        assert sample.judge(number, "nothing of it") == 0


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_is_asked_in_its_own_format(name: str, embedded: Any) -> None:
    _, tokenizer = embedded
    sample = make_task(name).sample(tokenizer, 256, 3)
    assert sample.prompt_tokens == 256
    assert list(tokenizer(sample.context)["input_ids"]) == list(sample.context_ids)
    for number, turn in enumerate(sample.turns):
        ids = list(turn.question_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == turn.question
        assert (ids[0] == EOS_ID) == (number > 0)
        assert all(word in sample.context.split() for answer in turn.answers for word in answer.split())
        assert sample.judge(number, " ".join(turn.answers)) == 1


@pytest.mark.parametrize("name", ["needle_8", "variables_4", "multi_value"])
def test_embedded_samples_are_those_of_the_evaluation(name: str, embedded: Any) -> None:
    sample = make_task(name).sample(embedded[1], 128, 7)
    example = make_example(name, 128, index=7)
    assert [*sample.context_ids, *sample.turns[0].question_ids] == example.prompt_ids
    assert " ".join(sample.turns[0].answers) == example.answer


@pytest.mark.parametrize("name", ["multi_query", "common_words", "passage_questions", "passkey"])
def test_embedded_model_is_refused_what_it_has_not_learned(name: str, embedded: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*was not trained for it.*needle_1"):
        make_task(name).sample(embedded[1], 256, 0)


def test_embedded_tokenizer_is_recognised(embedded: Any, byte_tokenizer: Any, word_tokenizer: Any) -> None:
    assert is_embedded(embedded[1])
    assert not is_embedded(byte_tokenizer)
    assert not is_embedded(word_tokenizer)


@given(name=st.sampled_from(ENGLISH), seed=st.integers(0, 10**6), length=st.integers(400, 900))
def test_sample_is_fixed_by_its_arguments(word_tokenizer: Any, name: str, seed: int, length: int) -> None:
    sample = make_task(name).sample(word_tokenizer, length, seed)
    other = make_task(name).sample(word_tokenizer, length, seed + 1)
    assert sample == make_task(name).sample(word_tokenizer, length, seed)
    assert (sample.context, sample.turns) != (other.context, other.turns)


def digest(samples: list[Sample]) -> str:
    return repr([(sample.context, sample.turns) for sample in samples])


PROGRAM = """
import sys, hashlib
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.testbed.tokenizer import build_tokenizer
from tests.bench.tasks.test_tasks import ENGLISH, EMBEDDED, digest
from tests.bench.tasks.tokenizers_made import word_tokenizer
samples = [make_task(name).sample(word_tokenizer(), 500, 2) for name in reversed(ENGLISH)][::-1]
samples += [make_task(name).sample(build_tokenizer(), 200, 2) for name in EMBEDDED]
sys.stdout.write(hashlib.sha256(digest(samples).encode()).hexdigest())
"""


def test_other_processes_make_the_same_samples_in_any_order(word_tokenizer: Any, embedded: Any) -> None:
    samples = [make_task(name).sample(word_tokenizer, 500, 2) for name in ENGLISH]
    samples += [make_task(name).sample(embedded[1], 200, 2) for name in EMBEDDED]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == hashlib.sha256(digest(samples).encode()).hexdigest()


@pytest.mark.parametrize("name", ["needle_20", "variables_4", "passage_questions", "copy"])
def test_too_short_a_length_is_refused_with_the_least_one(name: str, byte_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=rf"length must be at least \d+ tokens for this sample of '{name}', got 100"):
        make_task(name).sample(byte_tokenizer, 100, 0)


def test_needles_have_distractors_and_all_values(word_tokenizer: Any) -> None:
    task = Needles(name="needles", hidden_keys=5, values=3, asked_keys=2)
    sample = task.sample(word_tokenizer, 1000, 0)
    assert sample.context.count("A secret number of") == 15
    assert len(set(sample.turns[0].answers)) == 6
    asked = [key for key in sample.turns[0].question.replace(",", " ").split() if "-" in key]
    lines = [line for line in sample.context.split(".") if "secret number of" in line]
    of_asked = {line.split()[-1] for line in lines if any(f" {key} " in line for key in asked)}
    assert of_asked == set(sample.turns[0].answers)


def test_variables_follow_from_the_text(word_tokenizer: Any) -> None:
    sample = make_task("variables_4").sample(word_tokenizer, 700, 4)
    values: dict[str, str] = {}
    for line in sample.context.split("."):
        words = line.split()
        if "VAR" in words:
            at = words.index("VAR")
            source = words[at + 3 :]
            values[words[at + 1]] = values[source[1]] if source[0] == "VAR" else source[0]
    (wanted,) = {word.strip(",") for word in sample.turns[0].question.split() if word.strip(",").isdigit()} - {"4"}
    assert {name for name, value in values.items() if value == wanted} == set(sample.turns[0].answers)
    assert len(values) == 12


def test_common_words_are_the_most_common(word_tokenizer: Any) -> None:
    for name, asked in (("common_words", 5), ("frequent_words", 3)):
        sample = make_task(name).sample(word_tokenizer, 600, 1)
        counts = Counter(sample.context.split("\n\n")[1].strip(".").split())
        (*top, after) = counts.most_common(asked + 1)
        assert {word for word, _ in top} == set(sample.turns[0].answers)
        assert top[-1][1] > after[1]


@given(total=st.integers(40, 5000))
def test_frequent_words_have_three_clear_winners(total: int) -> None:
    counts = FrequentWords().counts(total)
    assert sum(counts) == total
    assert counts[0] > counts[1] > counts[2] > counts[3]
    assert counts == sorted(counts, reverse=True)


@given(units=st.integers(0, 40), statements=st.integers(0, 6), seed=st.integers(0, 99))
def test_hiding_keeps_filler_and_statements_in_order(units: int, statements: int, seed: int) -> None:
    facts = [f"S{number}" for number in range(statements)]
    text = hidden("", facts, lambda count: [f"f{number}" for number in range(count)], Random(seed))(units).split()
    assert [word for word in text if word[0] == "S"] == facts
    assert [word for word in text if word[0] == "f"] == [f"f{number}" for number in range(units)]


def test_turns_ask_for_different_facts(embedded: Any, word_tokenizer: Any) -> None:
    for tokenizer, length in ((embedded[1], 256), (word_tokenizer, 500)):
        sample = MultiTurn(turns=5).sample(tokenizer, length, 0)
        assert len({turn.question for turn in sample.turns}) == 5


def test_more_turns_than_facts_are_refused(embedded: Any) -> None:
    with pytest.raises(ValueError, match="length must have room for 9 facts"):
        MultiTurn(turns=9).sample(embedded[1], 256, 0)


def test_passages_come_from_a_file(tmp_path: Any, word_tokenizer: Any) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text(
        '{"title": "Moss", "text": "Moss is green.", "question": "What colour is moss?", "answers": ["green"]}\n\n'
        '{"title": "Coal", "text": "Coal is black.", "question": "What colour is coal?", "answers": ["black"]}\n'
    )
    sample = PassageQuestions(passages=path).sample(word_tokenizer, 200, 0)
    assert sample.context.count("Moss is green.") + sample.context.count("Coal is black.") > 20
    asked = "Moss" if sample.turns[0].answers == ("green",) else "Coal"
    assert sample.context.count(f"{asked} is") == 1  # distractors repeat, the passage that answers does not


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("{", "line 1 must be a JSON object"), ("[]", "got list"), ('{"title": "x"}', "list of texts")],
)
def test_damaged_passages_are_named(tmp_path: Any, content: str, message: str, word_tokenizer: Any) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        PassageQuestions(passages=path).sample(word_tokenizer, 200, 0)


def test_registry_names_its_tasks() -> None:
    for name in TASKS:
        task = make_task(name)
        assert task.name == name
        assert isinstance(task, Task)


def test_unknown_tasks_and_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task must be one of needle_1, .*; got 'needles'"):
        make_task("needles")
    with pytest.raises(TypeError, match=r"task 'passkey' has no parameter keys; it has: name, digits"):
        make_task("passkey", keys=3)
    with pytest.raises(ValueError, match="digits must be in"):
        make_task("passkey", digits=0)
