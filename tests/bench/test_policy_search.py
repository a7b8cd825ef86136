"""The search for a policy: replayed samples are real ones, runs resume, results are what the trials say."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kvcompress import KVC, CompressedCache, Full, KeyDiff, Policy, SnapKV, make_policy
from kvcompress.bench.comparison_tables import policy_judgement_losses
from kvcompress.bench.search import halving, judging
from kvcompress.bench.search.halving import Stage, search
from kvcompress.bench.search.replayed import Batch
from kvcompress.bench.search.scoring import Blend
from kvcompress.bench.search.space import AXES, GUESSES, Point, random_points
from kvcompress.bench.search.trials import FULL, Bench, Part, Trial, read_trials, relative_score
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.tasks.run import run_samples
from kvcompress.bench.tasks.sample import MODES, QUERY_AWARE, Sample
from kvcompress.bench.testbed.location import load_testbed

TINY = (
    Stage(best=3, samples=2, lengths=(128,), keeps=(0.2,)),
    Stage(best=2, around=1, samples=2, lengths=(128,), keeps=(0.3,)),
)


@pytest.fixture(scope="module")
def testbed() -> tuple[Any, Any]:
    return load_testbed()


def samples(tokenizer: Any, task: str, count: int = 3, length: int = 192) -> list[Sample]:
    return [make_task(task).sample(tokenizer, length, 700_000 + number) for number in range(count)]


REPLAYED: dict[str, Policy] = {
    "snapkv": SnapKV(cache_size=24, window_size=4, decode="accumulate"),
    "keydiff": KeyDiff(cache_size=24),
    "kvc": KVC(cache_size=24, window_size=4),
    "h2o": make_policy("h2o", cache_size=24, window_size=4),
    "expected": make_policy("expected_attention", cache_size=24),
    "streaming": make_policy("streaming_llm", cache_size=24),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", ["variables_2", "multi_turn", "multi_value"])
def test_replayed_samples_score_as_real_ones(testbed, task, mode) -> None:
    model, tokenizer = testbed
    asked = samples(tokenizer, task)
    batch = Batch(model, tokenizer, asked, mode)
    for policy in REPLAYED.values():
        real = run_samples(model, tokenizer, lambda policy=policy: CompressedCache(model, policy), asked, mode)
        for _ in range(2):  # the second time scores are remembered
            assert batch.answer(policy) == ([outcome.score for outcome in real], real[0].kv_bytes)
    full = run_samples(model, tokenizer, lambda: CompressedCache(model, Full()), asked, mode)
    assert batch.answer_in_full()[0] == [outcome.score for outcome in full]


def test_kvc_is_a_place_of_the_space(testbed) -> None:
    """The policy that users get is the one that the search found, parameter by parameter."""
    model, tokenizer = testbed
    ours = KVC(cache_size=24, window_size=4)
    same = Blend(
        attention="mean",
        pool_size=ours.pool_size,
        novelty=ours.novelty,
        value=ours.value,
        novelty_pool=ours.pool_size,
        combination="layer",
    )
    point = Point(
        **asdict(same), layers="global", heads="adaptive_half", window_size=4, sink_tokens=0
    )  # fmt: skip
    assert point.policy(24).layer_allocator == ours.layer_allocator
    assert point.policy(24).head_allocator == ours.head_allocator
    for mode in MODES:
        batch = Batch(model, tokenizer, samples(tokenizer, "variables_2"), mode)
        assert batch.answer(point.policy(24)) == batch.answer(ours)
        found, wanted = (
            [batch.memory[scorer, layer, 4].token_scores for layer in range(6)] for scorer in (same, ours.scorer)
        )
        assert all((a - b).abs().max() < 1e-4 for a, b in zip(found, wanted, strict=True))


class TestSpace:
    def test_points_are_different_and_the_same_for_a_seed(self) -> None:
        points = random_points(40, seed=3)
        assert len(set(points)) == 40
        assert random_points(40, seed=3) == points
        assert random_points(20, seed=3) == points[:20]
        assert random_points(40, seed=4) != points

    @pytest.mark.parametrize("point", GUESSES)
    def test_neighbours_differ_in_one_axis_that_matters(self, point) -> None:
        near = point.neighbours()
        assert len(set(near)) == len(near) > 10
        for one in near:
            changed = [name for name in AXES if getattr(one, name) != getattr(point, name)]
            assert changed
            assert [name for name in changed if name != "novelty_pool"] or changed == ["novelty_pool"]
            assert len(changed) == 1 or one.plain() == one

    def test_every_place_is_a_policy(self) -> None:
        for point in random_points(30, seed=0):
            policy = point.policy(64)
            assert (policy.cache_size, policy.window_size) == (64, point.window_size)
            assert not policy.decode_rule.grows


class TestSearch:
    def run(self, testbed: tuple[Any, Any], path: Path) -> list[tuple[Point, float]]:
        ranked = search(Bench(*testbed, path), TINY, 0, lambda number, ranked: None)
        return [(one.point, one.score) for one in ranked]

    def test_an_interrupted_search_goes_on_to_the_same_result(self, testbed, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(halving, "GUESSES", ())
        monkeypatch.setattr(halving, "TASKS", ("key_value",))
        monkeypatch.setattr(Point, "neighbours", lambda self: [replace(self, novelty=5.0)])
        whole = self.run(testbed, tmp_path / "whole.jsonl")
        assert [score for _, score in whole] == sorted((score for _, score in whole), reverse=True)
        lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(b"".join(lines[:5]) + lines[5][:20])
        assert self.run(testbed, torn) == whole
        assert torn.read_bytes().splitlines(keepends=True) == lines
        monkeypatch.setattr(Bench, "_batch", lambda self, part: pytest.fail("everything is finished"))
        assert self.run(testbed, torn) == whole

    def test_an_unreadable_file_is_refused(self, tmp_path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"contender": "full"}\n')
        with pytest.raises(ValueError, match=r"rows.jsonl, line 1 is no trial"):
            list(read_trials(path))

    def test_samples_of_search_and_judge_have_nothing_in_common(self) -> None:
        judged = list(judging.parts_of(1000))
        assert not {part.task for part in judged} & set(halving.TASKS)
        assert max(part.first + part.count for part in judged) <= halving.FIRST
        assert not {part.length for part in judged} & {length for stage in halving.STAGES for length in stage.lengths}


def trial(contender: str, keep: float, scores: tuple[float, ...], task: str = "a", mode: str = QUERY_AWARE) -> Trial:
    return Trial(
        contender=contender, task=task, length=8, mode=mode, first=0, keep=keep, scores=scores, num_bytes=10
    )  # fmt: skip


def test_relative_scores_weigh_cells_the_same() -> None:
    trials = [
        trial(FULL, 1.0, (1.0, 0.0)),
        trial(FULL, 1.0, (1.0, 1.0), task="b"),
        trial(FULL, 1.0, (0.0, 0.0), task="hopeless"),
        trial("x", 0.1, (0.5, 0.0)),
        trial("x", 0.1, (1.0, 0.0), task="b"),
        trial("x", 0.1, (1.0, 0.0), task="hopeless"),
        trial("x", 0.2, (1.0, 0.0)),
    ]
    assert relative_score(trials)["x"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)


def test_the_judge_reports_means_gains_and_cells(monkeypatch) -> None:
    monkeypatch.setattr(judging, "CELLS", (("a", 8), ("b", 8)))
    monkeypatch.setattr(judging, "KEEPS", (0.1,))
    trials = list(_judged())
    rows = judging.summarise(trials)
    means = {(row["policy"], row["mode"]): row for row in rows if row["kind"] == "mean"}
    other = means["x", QUERY_AWARE]
    assert other["of_full"] == pytest.approx((0.5 / 1.0 + 0.25 / 0.5) / 2)
    assert other["kvc_gains"] == pytest.approx((0.25 / 1.0 + 0.25 / 0.5) / 2)
    assert other["of_full_interval_95"][0] < 0.5 < other["of_full_interval_95"][1]
    assert means["kvc", QUERY_AWARE]["kvc_gains_interval_95"] == [0.0, 0.0]
    cell = next(row for row in rows if row["kind"] == "cell" and row["policy"] == "x" and row["task"] == "b")
    assert (cell["score"], cell["samples"], cell["num_bytes"]) == (0.25, 4, 10)


def _judged() -> Iterator[Trial]:
    for mode in MODES:
        yield trial(FULL, 1.0, (1.0, 1.0, 1.0, 1.0), "a", mode)
        yield trial(FULL, 1.0, (1.0, 1.0, 0.0, 0.0), "b", mode)
        yield trial("kvc", 0.1, (1.0, 1.0, 1.0, 0.0), "a", mode)
        yield trial("kvc", 0.1, (1.0, 1.0, 0.0, 0.0), "b", mode)
        yield trial("x", 0.1, (1.0, 1.0, 0.0, 0.0), "a", mode)
        yield trial("x", 0.1, (1.0, 0.0, 0.0, 0.0), "b", mode)


def test_parts_are_dealt_out_batch_by_batch() -> None:
    parts = list(judging.parts_of(50))
    cells = len(judging.CELLS) * len(MODES)
    assert [part.first for part in parts[:cells]] == [0] * cells
    assert sum(part.count for part in parts) == 50 * cells
    shorter = sum(length <= 1024 for _, length in judging.CELLS)
    assert sum(part.count for part in judging.parts_of(120)) == len(MODES) * (
        120 * shorter + 50 * (cells // 2 - shorter)
    )
    assert all(isinstance(part, Part) and part.keeps == judging.KEEPS for part in parts)


def test_tables_name_the_cells_that_others_win() -> None:
    def cell(policy: str, task: str, score: float) -> dict[str, Any]:
        place = {"kind": "cell", "task": task, "length": 8, "mode": QUERY_AWARE, "keep": 0.1}
        return {**place, "policy": policy, "score": score, "score_interval_95": [score, score]}

    lost = [
        cell("kvc", "lost", 0.5),
        cell("x", "lost", 0.6),
        cell("y", "lost", 0.9),
        cell("kvc, window 8", "lost", 1.0),
    ]
    won = [cell("kvc", "won", 0.5), cell("x", "won", 0.5)]
    text = policy_judgement_losses({"cases": [*lost, *won]})
    assert "| lost, 8, aware, 10 % | 50 [50, 50] | y: 90 [90, 90] |" in text
    assert "won" not in text
