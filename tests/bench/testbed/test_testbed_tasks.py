"""The testbed's tasks: fixed by their arguments, exact in length, answerable from the context."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.testbed.tasks import MAX_LENGTH, MIN_LENGTH, TASKS, is_correct, make_example
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID, word_ids

LENGTHS = (64, 65, 100, 127, 128, 333, 1024, 4096)
tasks = st.sampled_from(list(TASKS))


def occurrences(context: list[int], part: list[int]) -> int:
    """Count where `part` starts in `context`."""
    return sum(context[start : start + len(part)] == part for start in range(len(context)))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_prompt_has_exactly_the_length(task: str, length: int) -> None:
    example = make_example(task, length)
    assert len(example.prompt_ids) == example.length == length
    assert example.prompt_ids[0] == BOS_ID
    assert example.prompt_ids.count(BOS_ID) == 1
    assert EOS_ID not in example.prompt_ids + example.answer_ids
    assert len(example.answer_ids) >= 2


@given(task=tasks, length=st.integers(MIN_LENGTH, 700), seed=st.integers(0, 10**6), index=st.integers(0, 10**6))
def test_example_is_fixed_by_its_arguments(task: str, length: int, seed: int, index: int) -> None:
    example = make_example(task, length, seed=seed, index=index)
    assert example == make_example(task, length, seed=seed, index=index)
    assert len(example.prompt_ids) == length
    for other in (
        make_example(task, length, seed=seed + 1, index=index),
        make_example(task, length, seed=seed, index=index + 1),
    ):
        assert other.prompt_ids != example.prompt_ids


def test_examples_stay_the_same_over_versions() -> None:
    # Shipped figures belong to these very examples: a change of a generator needs a new evaluation.
    example = make_example("variables_2", 64)
    assert example.prompt == (
        "x1 = half ; x47 = x63 ; x59 = x1 ; the house listens beside the student . the doctor points beside "
        "the baker . x28 = x19 ; the uncle calls near the farmer . x19 = henry ; x63 = flower ; the sailor "
        "hurries inside the guest . the strong writer works under the river . ? x47 ="
    )
    assert example.answer == "x63 = flower"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [64, 512])
def test_question_is_held_apart(task: str, length: int) -> None:
    example = make_example(task, length, index=3)
    assert example.context_ids + example.question_ids == example.prompt_ids
    assert example.question_ids[0] == word_ids("?")[0]
    assert len(example.question_ids) == TASKS[task].question_length
    assert example.question_ids[0] not in example.context_ids


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize(("task", "needles"), [("needle_1", 1), ("needle_8", 8), ("needle_20", 20)])
def test_needle_is_in_the_context_once(task: str, needles: int, index: int) -> None:
    example = make_example(task, 512, index=index)
    assert occurrences(example.context_ids, list(word_ids("the code of"))) == needles
    statement = example.question_ids[1:] + example.answer_ids + list(word_ids("."))
    assert occurrences(example.context_ids, statement) == 1
    assert occurrences(example.context_ids, example.question_ids[1:]) == 1


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize(("task", "hops"), [("variables_2", 2), ("variables_4", 4)])
def test_chain_leads_to_the_answer(task: str, hops: int, index: int) -> None:
    example = make_example(task, 512, index=index)
    words = example.prompt.split()
    values = {words[at - 1]: words[at + 1] for at, word in enumerate(words[:-1]) if word == "="}
    assert len(values) == 3 * hops
    chain = [words[-2]]
    while chain[-1] in values:
        chain.append(values[chain[-1]])
    assert len(chain) == hops + 1
    assert example.answer == " = ".join(chain[1:])


@pytest.mark.parametrize("length", [64, 512, 1024])
def test_pairs_fill_the_context_and_one_answers(length: int) -> None:
    example = make_example("key_value", length)
    assert example.context_ids.count(word_ids(";")[0]) == (length - 5) // 6
    assert occurrences(example.context_ids, example.question_ids[1:] + example.answer_ids) == 1
    assert occurrences(example.context_ids, example.question_ids[1:]) == 1


@pytest.mark.parametrize("index", range(5))
def test_owner_has_four_values_in_order_of_appearance(index: int) -> None:
    example = make_example("multi_value", 512, index=index)
    words = example.prompt.split()
    owned = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "owns" and words[at - 1] == words[-2]]
    assert owned == example.answer.split()
    assert len(set(owned)) == 4
    assert words[:-3].count("owns") == 16


def test_copied_words_stand_between_brackets() -> None:
    example = make_example("copy", 512)
    assert f"copy [ {example.answer} ]" in example.prompt
    assert len(example.answer_ids) == 16


@pytest.mark.parametrize("index", range(20))
@pytest.mark.parametrize("length", [64, 65, 512])
def test_frequent_words_are_the_most_frequent(length: int, index: int) -> None:
    example = make_example("frequent_words", length, index=index)
    context = example.context_ids[1:]
    ranked = sorted(set(context), key=context.count, reverse=True)
    assert ranked[:3] == example.answer_ids
    assert context.count(ranked[2]) > context.count(ranked[3])


@given(task=tasks, seed=st.integers(0, 1000), data=st.data())
def test_judge_takes_the_answer_and_nothing_else(task: str, seed: int, data: st.DataObject) -> None:
    example = make_example(task, 128, seed=seed)
    answer = example.answer_ids
    assert is_correct(example, answer)
    assert is_correct(example, [*answer, EOS_ID, 0])
    assert not is_correct(example, answer[:-1])
    assert not is_correct(example, [])
    place = data.draw(st.integers(0, len(answer) - 1))
    assert not is_correct(example, [*answer[:place], EOS_ID, *answer[place + 1 :]])
    order = data.draw(st.permutations(answer))
    assert is_correct(example, order) is (TASKS[task].is_set or order == answer)


def test_set_with_a_value_twice_is_wrong() -> None:
    example = make_example("multi_value", 128)
    assert not is_correct(example, [example.answer_ids[0]] * 4)


def test_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"task must be one of needle_1, .*got 'haystack'; see TASKS"):
        make_example("haystack", 128)
    with pytest.raises(ValueError, match="got 'haystack'"):
        is_correct(replace(make_example("copy", 128), task="haystack"), [])


@pytest.mark.parametrize("length", [-1, 0, MIN_LENGTH - 1, MAX_LENGTH + 1])
def test_length_out_of_range_is_named(length: int) -> None:
    with pytest.raises(ValueError, match=rf"length must be in \[64, 4096\].*got {length}; choose"):
        make_example("needle_1", length)
