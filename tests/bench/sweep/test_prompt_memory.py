"""Prompts that run once for all cells: the same figures as without, in the room that was given."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kvcompress import CompressedCache, make_policy
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.bench.replay import RecordableCache, _recorded_attention
from kvcompress.bench.sweep.grid import Grid, cells_of
from kvcompress.bench.sweep.policy_text import parse_policy
from kvcompress.bench.sweep.prompt_memory import PromptMemory
from kvcompress.bench.sweep.row import Row
from kvcompress.bench.sweep.runner import Runner
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.engine.log_sum_exp import overhear_log_sum_exp

ROOM = 1 << 30
LENGTH = 128
TEXTS = "kvc:window_size=4,cake_reference"
GRID = Grid(
    policies=[parse_policy(text, shared={"window_size": 8}) for text in TEXTS.split(",")],
    cache_sizes=[24],
    ratios=[],
    tasks=["multi_turn"],
    lengths=[LENGTH],
    modes=["query_aware", "query_agnostic"],
    samples=3,
    fidelity_samples=2,
    seed=0,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def testbed() -> tuple[Any, Any]:
    return load_testbed()


def rows(testbed: tuple[Any, Any], room: int) -> list[Row]:
    runner = Runner(lambda: testbed, batch_size=2, prompt_bytes=room)
    return [runner.run(cell) for cell in cells_of(GRID, "embedded", runner.model, runner.tokenizer)]


def figures(row: Row) -> tuple[object, ...]:
    """All that does not come from a clock."""
    return row.cell, row.scores, row.kl, row.top1, row.kv_bytes, row.layer_tokens


@pytest.fixture(scope="module")
def anew(testbed: tuple[Any, Any]) -> list[Row]:
    return rows(testbed, 0)


@pytest.mark.parametrize("room", [ROOM, 1 << 22], ids=["all kept", "some kept"])
def test_kept_prompts_give_the_same_rows(testbed: tuple[Any, Any], anew: list[Row], room: int) -> None:
    assert [figures(row) for row in rows(testbed, room)] == [figures(row) for row in anew]


def test_second_policy_runs_no_prompt(testbed: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = testbed
    memory = PromptMemory(model, ROOM)
    prompts = [[1 + number + place for place in range(60)] for number in range(2)]
    fed: list[int] = []
    forward = type(model).forward

    def counted(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        fed.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    memory.enter("first")
    for name in ("kvc", "snapkv"):
        talk = memory.converse(model, memory.make_cache(make_policy(name, cache_size=24, window_size=4)))
        talk.step(talk.feed(prompts).argmax(-1))
    assert fed == [60, 1, 1]
    assert 0 < memory.num_bytes < 2 * 60 * 6 * 4096
    memory.enter("second")
    assert memory.num_bytes == 0


@pytest.mark.parametrize(
    "name", ["kvc", "snapkv", "h2o", "expected_attention", "adakv", "layer_defensivekv", "keydiff"]
)
def test_replayed_conversation_is_the_real_one_bit_for_bit(testbed: tuple[Any, Any], name: str) -> None:
    """With padding, a second block and decode steps."""
    model, _ = testbed
    memory = PromptMemory(model, ROOM)
    blocks = [[[5 + row + place % 50 for place in range(70 - 9 * row)] for row in range(3)], [[7, 8, 9], [4, 3], [2]]]
    policy = make_policy(
        name,
        cache_size=20,
        **({"window_size": 4} if name in ("kvc", "snapkv", "h2o", "adakv", "layer_defensivekv") else {}),
    )
    found = []
    for talk in (
        Conversation(model, CompressedCache(model, policy)),
        memory.converse(model, memory.make_cache(policy)),  # records
        memory.converse(model, memory.make_cache(policy)),  # replays
    ):
        logits = [talk.feed(block) for block in blocks]
        for _ in range(3):
            logits.append(talk.step(logits[-1].argmax(-1)))
        found.append((torch.stack(logits), talk.num_bytes))
    assert memory.num_bytes > 0
    for logits_, num_bytes in found[1:]:
        assert torch.equal(logits_, found[0][0])
        assert num_bytes == found[0][1]


def test_log_sum_exp_is_overheard_again_to_the_last_bit() -> None:
    recorded = torch.randn(2, 3, 50) * torch.logspace(-30, 8, 50)
    query = torch.randn(2, 3, 50, 16)
    key = torch.randn(2, 1, 50, 16)

    def attend() -> tuple[torch.Tensor, None]:
        return _recorded_attention(torch.nn.Identity(), query, key, key, None, recorded_log_sum_exp=recorded)

    with torch.inference_mode():
        (output, _), heard = overhear_log_sum_exp(attend, (2, 3, 50))
    assert output.shape == (2, 50, 3, 16)
    assert heard is not None
    assert torch.equal(heard, recorded)


def test_full_cache_and_the_authors_code_are_left_alone(testbed: tuple[Any, Any]) -> None:
    memory = PromptMemory(testbed[0], ROOM)
    for name, parameters in (("full", {}), ("cake_reference", {"cache_size": 48})):
        assert not isinstance(memory.make_cache(make_policy(name, **parameters)), RecordableCache)
