"""The testbed's tokenizer: one token a word, and any text comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.testbed.tasks import TASKS, make_example
from kvcompress.bench.testbed.tokenizer import build_tokenizer
from kvcompress.bench.testbed.vocabulary import (
    BOS_ID,
    BYTE_IDS,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    VOCABULARY_SIZE,
    WORD_TO_ID,
    WORDS,
    ids_text,
    word_ids,
)

TOKENIZER = build_tokenizer()

# A surrogate has no UTF-8 form, and the name of a special token stands for that token.
texts = st.text(st.characters(exclude_categories=["Cs"])).filter(
    lambda text: not any(token in text for token in SPECIAL_TOKENS)
)


def encode(text: str) -> list[int]:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


@given(texts)
def test_any_text_comes_back(text: str) -> None:
    ids = encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(BYTE_IDS.start <= token < VOCABULARY_SIZE for token in ids)


@given(st.lists(st.sampled_from(WORDS), min_size=1))
def test_each_word_is_one_token(words: list[str]) -> None:
    ids = encode(" ".join(words))
    assert ids == [WORD_TO_ID[word] for word in words]
    assert TOKENIZER.decode(ids) == " ".join(words)
    assert word_ids(" ".join(words)) == tuple(ids)
    assert ids_text(ids) == " ".join(words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  the  code",
        "the\ncode\t",
        "Ġapple",
        "▁apple",
        "<0x41>",
        "apples, pears.",
        "żółw 乌龟 🐢",
        "e\u0301",
    ],
)
def test_awkward_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(encode(text)) == text


@pytest.mark.parametrize("task", TASKS)
def test_prompt_is_tokenized_to_its_ids(task: str) -> None:
    example = make_example(task, 256)
    assert TOKENIZER(example.prompt)["input_ids"] == example.prompt_ids
    assert TOKENIZER.decode(example.prompt_ids, skip_special_tokens=True) == example.prompt
    assert encode(example.answer) == example.answer_ids
    assert TOKENIZER.decode(example.answer_ids) == example.answer


def test_layout_of_ids() -> None:
    assert len(TOKENIZER) == VOCABULARY_SIZE <= 1024
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (
        PAD_ID,
        BOS_ID,
        EOS_ID,
    )
    assert TOKENIZER.padding_side == "left"
    assert len(set(WORDS)) == len(WORDS)


def test_batch_is_padded_on_the_left() -> None:
    batch = TOKENIZER(["the code", "the code of apple"], padding=True)
    assert batch["input_ids"][0][:3] == [PAD_ID, PAD_ID, BOS_ID]
    assert batch["attention_mask"][0] == [0, 0, 1, 1, 1]


def test_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match=r"vocabulary words, got \['qwerty'\] .*use the tokenizer"):
        word_ids("apple qwerty")


@pytest.mark.parametrize("token", [BYTE_IDS.start, VOCABULARY_SIZE])
def test_id_that_is_no_word_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=rf"word ids in \[259, 929\), got \[{token}\]"):
        ids_text([token])
