"""Agents: all ways to hold a whole history choose alike, and compressed ones hold what they say."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.darkroom import split_goals
from kvcompress.bench.workloads.algorithm_distillation.rollout import Player, play, returns_by_episode
from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy, check_evicts, make_agent
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import MAX_POSITIONS, VOCABULARY_SIZE
from tests.tolerances import TOLERANCES

_, GOALS = split_goals()
EPISODES = 4
SEEN = 60 * EPISODES - 1  # tokens at the last choice


def game(
    model: LlamaForCausalLM, name: str, ratio: float = 1.0, interval: int = 10, episodes: int = EPISODES
) -> Player:
    agent = make_agent(copy.deepcopy(model), Strategy(name=name, ratio=ratio, interval=interval))
    return play(agent, GOALS[:4], episodes, seed=3)


@pytest.mark.parametrize("name", ["full", "fixed_window", "topk", "pooling", "streaming_llm", "h2o", "kvc"])
def test_who_keeps_everything_plays_like_who_reads_everything(untrained: LlamaForCausalLM, name: str) -> None:
    whole, other = game(untrained, "reread", episodes=2), game(untrained, name, episodes=2)
    assert (whole.played().actions == other.played().actions).all()
    assert other.held_tokens == whole.held_tokens


@pytest.mark.parametrize("name", ["full", "topk", "pooling", "h2o"])
def test_logits_are_those_of_the_whole_history(untrained: LlamaForCausalLM, name: str) -> None:
    agents = [make_agent(copy.deepcopy(untrained), Strategy(name=which)) for which in ("reread", name)]
    generator = torch.Generator().manual_seed(0)
    for agent in agents:
        agent.begin(3)
    atol, rtol = TOLERANCES[torch.float32]
    with torch.inference_mode():
        for new in (2, 3, 3, 3):
            ids = torch.randint(1, VOCABULARY_SIZE, (3, new), generator=generator)
            expected, got = (agent.observe(ids) for agent in agents)
            torch.testing.assert_close(got, expected, atol=10 * atol, rtol=10 * rtol)


@pytest.mark.parametrize(
    ("name", "slack"), [("fixed_window", 2), ("topk", 3 * 10), ("pooling", 3 * 10), ("streaming_llm", 0), ("h2o", 0)]
)
def test_compressed_history_stays_within_its_budget(untrained: LlamaForCausalLM, name: str, slack: int) -> None:
    played = game(untrained, name, 0.1)
    budget = Strategy(name=name, ratio=0.1).budget
    assert max(played.held_tokens) <= budget + slack
    assert min(played.held_tokens[60:]) >= budget - 3
    assert budget + slack < SEEN


def test_pooling_again_and_again_reaches_a_small_budget(untrained: LlamaForCausalLM) -> None:
    played = game(untrained, "pooling", 0.03, interval=5)
    assert played.held_tokens[-1] <= Strategy(name="pooling", ratio=0.03).budget + 3 * 5


def test_player_counts_and_repeats(untrained: LlamaForCausalLM) -> None:
    first, second = game(untrained, "full", episodes=2), game(untrained, "full", episodes=2)
    assert first.steps == len(first.held_tokens) == 40
    assert first.held_tokens[0] == 2
    assert first.held_tokens[-1] == 2 + 3 * 39
    assert (first.played().actions == second.played().actions).all()
    returns = returns_by_episode(first.played())
    assert returns.shape == (4, 2)
    assert returns.sum() == first.played().rewards.sum()


@pytest.mark.parametrize("name", ["reread", "full", "topk", "h2o"])
def test_history_longer_than_the_positions_is_refused(untrained: LlamaForCausalLM, name: str) -> None:
    agent = make_agent(copy.deepcopy(untrained), Strategy(name=name, ratio=0.5 if name == "topk" else 1.0))
    agent.begin(1)
    with pytest.raises(ValueError, match=r"must fit the model's 1201 positions, got 1202 tokens; play at most 20"):
        agent.observe(torch.ones(1, MAX_POSITIONS + 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "magic"}, "strategy must be one of reread, full, fixed_window, topk, pooling, adakv"),
        ({"name": "topk", "ratio": 0.0}, r"must lie in \(0, 1\], got 0.0"),
        ({"name": "topk", "ratio": 1.5}, r"must lie in \(0, 1\], got 1.5"),
        ({"name": "topk", "ratio": 0.001}, "must leave at least 8 steps"),
        ({"name": "topk", "interval": 0}, "interval must be at least 1 step, got 0"),
    ],
)
def test_strategies_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy(**values)  # type: ignore[arg-type]


def test_policy_that_never_evicts_while_decoding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'snapkv' compresses prompts only.*streaming_llm"):
        check_evicts(Strategy(name="snapkv", ratio=0.5))


def test_labels_tell_strategies_apart() -> None:
    labels = [Strategy(name=name, ratio=ratio).label for name in ("topk", "h2o") for ratio in (0.5, 0.3)]
    assert labels == ["topk 50 %", "topk 30 %", "h2o 50 %", "h2o 30 %"]
    assert np.unique(labels).size == 4
