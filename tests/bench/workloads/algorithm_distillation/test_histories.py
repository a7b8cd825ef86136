"""Learning histories: they get better, hold what happened, and never show a held-out goal."""

import numpy as np
import pytest

from kvcompress.bench.workloads.algorithm_distillation.darkroom import (
    CELLS,
    EPISODE_STEPS,
    START,
    Darkroom,
    best_return,
    split_goals,
)
from kvcompress.bench.workloads.algorithm_distillation.histories import make_histories, noise_levels
from kvcompress.bench.workloads.algorithm_distillation.rollout import returns_by_episode
from kvcompress.bench.workloads.algorithm_distillation.training_data import context_tokens, make_batch
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import (
    BOS_ID,
    FIRST_ACTION,
    FIRST_CELL,
    FIRST_REWARD,
    VOCABULARY_SIZE,
    WORDS,
    build_tokenizer,
    encode,
)

GOALS = np.delete(np.arange(CELLS), START)


def test_source_ends_where_nothing_can_be_gained() -> None:
    anneal = np.full(len(GOALS), 6)
    returns = returns_by_episode(make_histories(GOALS, 8, anneal, np.random.default_rng(0)))
    assert (returns[:, -2:] == best_return(GOALS)[:, None]).all()
    by_episode = returns.mean(axis=0)
    assert by_episode[0] < 0.4 * by_episode[-1]
    assert (np.diff(by_episode) > -1.0).all()


def test_noise_falls_from_one_to_zero() -> None:
    anneal = np.array([1, 5])
    assert noise_levels(anneal, 0).tolist() == [1.0, 1.0]
    assert noise_levels(anneal, 10).tolist() == [0.5, 0.9]
    assert noise_levels(anneal, 5 * EPISODE_STEPS).tolist() == [0.0, 0.0]


def test_history_is_what_the_room_does() -> None:
    played = make_histories(GOALS[:5], 3, np.full(5, 2), np.random.default_rng(1))
    room = Darkroom(played.goals)
    for step in range(3 * EPISODE_STEPS):
        if step % EPISODE_STEPS == 0:
            room.reset()
        assert (room.cells == played.cells[:, step]).all()
        assert (room.step(played.actions[:, step]) == played.rewards[:, step]).all()


def test_training_data_has_no_reward_on_a_held_out_goal() -> None:
    _, held_out = split_goals()
    ids = make_batch(6, 64, key="x").numpy()
    rewarded = ids[:, :-1] == FIRST_REWARD + 1
    reached = ids[:, 1:][rewarded & (ids[:, 1:] >= FIRST_CELL) & (ids[:, 1:] < FIRST_ACTION)] - FIRST_CELL
    assert reached.size > 100
    assert not set(reached.tolist()) & (set(held_out.tolist()))


def test_batches_are_fixed_by_their_key() -> None:
    first, second = make_batch(3, 4, key="a"), make_batch(3, 4, key="a")
    assert first.equal(second)
    assert not first.equal(make_batch(3, 4, key="b"))
    assert first.shape == (4, context_tokens(3))


def test_tokens_are_three_a_step_after_the_beginning() -> None:
    ids = encode(np.array([[0, 48]]), np.array([[4, 0]]), np.array([[1, 0]]))
    assert [WORDS[token] for token in ids[0]] == ["<bos>", "cell00", "stay", "reward", "cell66", "up", "nothing"]
    assert ids.max() < VOCABULARY_SIZE


def test_tokenizer_knows_whole_words_only() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer("cell00 up nothing")["input_ids"] == [BOS_ID, FIRST_CELL, FIRST_ACTION, FIRST_REWARD]
    assert tokenizer.decode([FIRST_CELL, FIRST_ACTION]) == "cell00 up"


@pytest.mark.parametrize(("episodes", "anneal"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(episodes: int, anneal: int) -> None:
    with pytest.raises(ValueError, match="episodes and anneal_episodes must be at least 1"):
        make_histories(np.array([1]), episodes, np.array([anneal]), np.random.default_rng(0))
