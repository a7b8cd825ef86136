"""Evaluation side by side: what is compared, what attention is on, and what the shipped figures show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlamaForCausalLM

from kvcompress.bench.results_file import RESULTS
from kvcompress.bench.workloads.algorithm_distillation.animation import save_animation
from kvcompress.bench.workloads.algorithm_distillation.attention_by_kind import (
    KINDS,
    attention_shares,
    episode_ends,
    kinds_of,
)
from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS, split_goals
from kvcompress.bench.workloads.algorithm_distillation.evaluation import Evaluation, play_side_by_side, summarise
from kvcompress.bench.workloads.algorithm_distillation.histories import make_histories
from kvcompress.bench.workloads.algorithm_distillation.learning import measure_learning, random_return
from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy
from kvcompress.bench.workloads.algorithm_distillation.tables import compression, learning
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import encode

_, GOALS = split_goals()
FULL, REREAD = Strategy(name="full"), Strategy(name="reread")


@pytest.fixture(scope="module")
def evaluation(trained: LlamaForCausalLM) -> Evaluation:
    strategies = [FULL, REREAD, Strategy(name="fixed_window", ratio=0.07), Strategy(name="topk", ratio=0.07)]
    games = play_side_by_side(trained, strategies, GOALS, 4, seed=0)
    return Evaluation(episodes=4, games={game.strategy: [game] for game in games})


def test_rows_say_what_the_games_hold(evaluation: Evaluation) -> None:
    rows = {row["strategy"]: row for row in summarise(evaluation, FULL, REREAD)}
    assert rows["reread"]["return_by_episode"] == rows["full"]["return_by_episode"]
    assert (rows["full"]["late_return_lost"], rows["full"]["speedup_over_full"]) == (0.0, 1.0)
    for strategy, games in evaluation.games.items():
        row = rows[strategy.name]
        lost = 1 - games[0].returns[:, -5:].mean() / evaluation.games[FULL][0].returns[:, -5:].mean()
        assert row["late_return_lost"] == pytest.approx(lost, abs=1e-4)
        low, high = row["late_return_lost_interval_95"]
        assert low - 1e-4 <= row["late_return_lost"] <= high + 1e-4
        assert row["final_tokens"] == games[0].held[-1]
    assert rows["full"]["speedup_over_reread"] > 1.5


def test_window_that_follows_the_whole_history_plays_as_it_would_alone(trained: LlamaForCausalLM) -> None:
    window = Strategy(name="fixed_window", ratio=0.07)
    followed = play_side_by_side(trained, [FULL, window], GOALS[:3], 3, seed=1)[1]
    alone = play_side_by_side(trained, [window], GOALS[:3], 3, seed=1)[0]
    assert (followed.histories.actions == alone.histories.actions).all()
    assert (followed.held == alone.held).all()
    assert np.isnan(followed.seconds[: window.budget // 3]).all()
    assert np.isfinite(followed.seconds[window.budget // 3 :]).all()


def test_attention_of_a_choice_is_shared_out_whole(trained: LlamaForCausalLM) -> None:
    played = make_histories(GOALS[:3], 3, np.full(3, 2), np.random.default_rng(0))
    ids = encode(played.cells, played.actions, played.rewards)[:, :-2]
    shares = attention_shares(trained, ids)
    assert shares.shape == (4, len(KINDS))
    assert (shares >= 0).all()
    assert (shares.sum(axis=1) <= 1 + 1e-6).all()
    assert (shares.sum(axis=1) > 0.5).all()


def test_kinds_of_tokens() -> None:
    ids = encode(np.array([[3, 4, 5]]), np.array([[0, 1, 4]]), np.array([[0, 1, 1]]))
    names = [KINDS[kind] for kind in kinds_of(ids)[0]]
    step = ["other cells", "actions", "rewards not got"]
    assert names == [KINDS[0], *step, "other cells", "actions", "rewards got", KINDS[1], "actions", "rewards got"]


def test_episode_ends_are_at_the_cells_of_last_choices() -> None:
    played = make_histories(GOALS[:1], 3, np.array([1]), np.random.default_rng(0))
    ids = encode(played.cells, played.actions, played.rewards)
    for episode, end in enumerate(episode_ends(ids, 3)):
        assert ids[0, end - 1] - 2 == played.cells[0, (episode + 1) * EPISODE_STEPS - 1]


def test_learning_rows(trained: LlamaForCausalLM) -> None:
    rows = measure_learning(trained, 5, 2)
    assert [row["goals"] for row in rows] == [36, 12]
    for row in rows:
        assert all(
            low <= mean <= high
            for low, mean, high in zip(row["lowest_seed"], row["return_by_episode"], row["highest_seed"], strict=True)
        )
        assert 0 <= row["goal_never_found"] <= 1
    assert 0.1 < random_return(GOALS) < 1.0


def test_animation_needs_two_episodes_and_shows_every_step(tmp_path: Path) -> None:
    played = make_histories(GOALS[:1], 2, np.array([1]), np.random.default_rng(0))
    save_animation(played, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert 10 < getattr(animation, "n_frames", 1) <= EPISODE_STEPS + 6
    single = make_histories(GOALS[:1], 1, np.array([1]), np.random.default_rng(0))
    with pytest.raises(ValueError, match="needs two whole episodes or more, got 1"):
        save_animation(single, tmp_path / "b.gif")


def results(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def test_shipped_figures_show_learning_on_held_out_goals() -> None:
    held_out = results("ad_training.json")["cases"][1]
    curve = held_out["return_by_episode"]
    assert curve[0] < 0.15 * held_out["best_possible"]
    assert curve[-1] > 0.75 * held_out["best_possible"]
    assert "held-out goals" in learning(results("ad_training.json"))


def test_shipped_figures_meet_the_goal_of_twice_the_speed_within_five_percent() -> None:
    content = results("ad_compression.json")
    rows = {(row["strategy"], row["keep_percent"]): row for row in content["cases"]}
    assert rows["full", 100]["final_tokens"] >= 1000
    for name in ("fixed_window", "topk", "pooling", "streaming_llm", "h2o"):
        row = rows[name, 30]
        assert row["late_return_lost_interval_95"][1] < 0.05
        assert row["speedup_over_reread"] > 2
    # Beside a full cache it takes a fifth of the tokens.
    assert rows["topk", 20]["speedup_over_full"] > 2
    assert "times caching all" in compression(content)
