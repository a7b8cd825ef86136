"""A conversation: rows of any lengths in a batch are what they are alone, block after block."""

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kvcompress import Cake, CompressedCache, Full
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.bench.testbed.location import load_testbed


@pytest.fixture(scope="module")
def model() -> Any:
    return load_testbed()[0]


@pytest.mark.parametrize("kind", ["dynamic", "full", "cake"])
def test_rows_are_what_they_are_alone(kind: str, model: Any) -> None:
    def make() -> Any:
        if kind == "dynamic":
            return DynamicCache(config=model.config)
        return CompressedCache(model, Full() if kind == "full" else Cake(cache_size=24, window_size=4))

    lengths = [(40, 61, 33), (5, 3, 9), (1, 1, 1), (4, 4, 4), (2, 3, 2)]  # (alone, one token is a decode step)
    generator = torch.Generator().manual_seed(0)
    blocks = [[torch.randint(259, 500, (n,), generator=generator).tolist() for n in block] for block in lengths]
    together = Conversation(model, make())
    alone = [Conversation(model, make()) for _ in range(3)]
    for block in blocks:
        logits = together.feed(block)
        single = torch.cat([talk.feed([row]) for talk, row in zip(alone, block, strict=True)])
        torch.testing.assert_close(logits, single, atol=2e-4, rtol=1e-4)
    ids = logits.argmax(-1)
    single = torch.cat([talk.step(ids[place : place + 1]) for place, talk in enumerate(alone)])
    torch.testing.assert_close(together.step(ids), single, atol=2e-4, rtol=1e-4)


def test_all_logits_are_those_of_every_token(model: Any) -> None:
    ids = torch.randint(259, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    wanted = model(input_ids=ids, use_cache=False).logits
    talk = Conversation(model, DynamicCache(config=model.config))
    parts = [talk.feed(ids[:, begin : begin + 5].tolist(), all_logits=True) for begin in (0, 5, 10)]
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted, atol=2e-4, rtol=1e-4)


def test_empty_rows_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="rows must have at least one token each"):
        Conversation(model, DynamicCache(config=model.config)).feed([[300], []])
