"""Masks: whatever form transformers gives them, they say the same."""

from types import SimpleNamespace

import pytest
import torch

from kvcompress.engine.masks import block_mask, last_query_mask, token_mask
from kvcompress.errors import UnsupportedModelError

TOKENS, WINDOW = 7, 4
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def visible(sliding: bool) -> torch.Tensor:
    """bool ``[batch, queries, keys]``, by the definition."""
    index = torch.arange(TOKENS)
    distance = index[:, None] - index
    seen = (distance >= 0) & (distance < (WINDOW if sliding else TOKENS))
    return seen & PADDING[:, None, :]


def forms(sliding: bool) -> dict[str, object]:
    pairs = visible(sliding)
    additive = torch.zeros(2, 1, TOKENS, TOKENS).masked_fill(~pairs[:, None], torch.finfo(torch.float32).min)
    flex = SimpleNamespace(mask_mod=lambda b, h, q, k: pairs[b, q, k], shape=(2, 1, TOKENS, TOKENS))
    return {"bool": pairs[:, None], "additive": additive, "flex": flex} | ({} if sliding else {"padding": PADDING})


@pytest.mark.parametrize(
    ("sliding", "form"), [(s, form) for s in (False, True) for form in forms(s)], ids=lambda value: str(value)
)
def test_every_form_says_the_same(sliding: bool, form: str) -> None:
    mask, pairs = forms(sliding)[form], visible(sliding)
    assert torch.equal(block_mask(mask, 2, TOKENS, torch.device("cpu")), pairs)
    assert torch.equal(last_query_mask(mask, 2, TOKENS, torch.device("cpu")), pairs[:, -1])
    assert torch.equal(token_mask(mask, TOKENS, 2, torch.device("cpu")), PADDING)


def test_no_mask_is_causal() -> None:
    cpu = torch.device("cpu")
    assert torch.equal(block_mask(None, 1, 3, cpu)[0], torch.ones(3, 3).tril().bool())
    assert last_query_mask(None, 1, 3, cpu) is None
    assert token_mask(None, 3, 1, cpu) is None


def test_masks_of_a_block_in_a_longer_sequence() -> None:
    """Only the last columns belong to the new block."""
    pairs = visible(sliding=False)
    wide = torch.cat([torch.zeros(2, 1, 3, 5, dtype=torch.bool), pairs[:, None, -3:, -3:]], dim=-1)
    assert torch.equal(block_mask(wide, 2, 3, torch.device("cpu")), pairs[:, -3:, -3:])


def test_a_mask_for_each_head_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="one attention mask for all heads"):
        last_query_mask(torch.ones(1, 2, 3, 3, dtype=torch.bool), 1, 3, torch.device("cpu"))
