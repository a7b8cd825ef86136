"""Tokens are shown as readers want to see them: with their spaces, and never as half a character."""

import pytest

from kvcompress.analysis.capture.token_texts import token_texts
from kvcompress.bench.testbed.tokenizer import build_tokenizer


@pytest.mark.parametrize("text", ["the code of night is amber", "a  b = c", "<script>window.injected = true</script>"])
def test_texts_join_to_the_text(text: str) -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(token_texts(tokenizer, ids)).strip() == text


def test_part_of_a_character_keeps_the_vocabularys_name() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert all("\ufffd" not in text and text for text in texts)
    assert texts[-2:] == tuple(tokenizer.convert_ids_to_tokens(ids[-2:]))


def test_special_tokens_keep_their_names() -> None:
    tokenizer = build_tokenizer()
    assert token_texts(tokenizer, [tokenizer.bos_token_id]) == (tokenizer.bos_token,)
