"""Rows in order: entries, leaders, what cannot be told together; and two sweeps side by side."""

import json
import math
from dataclasses import replace

import pytest

from kvcompress.bench.sweep.compare_rows import compare_rows
from kvcompress.bench.sweep.summary import Budget, leaders, summarise
from tests.bench.sweep.rows import make_row, sweep_rows

SIZE = Budget(48, None)


class TestSummary:
    def test_entries_hold_means_and_shares_of_the_full_cache(self) -> None:
        summary = summarise(sweep_rows())
        assert (summary.modes, summary.policies) == (["query_aware", "query_agnostic"], ["cake", "random"])
        entry = summary.entries["query_aware", "cake", SIZE]
        assert entry.whole
        assert entry.share == 1000 / 8000
        assert entry.score.mean == pytest.approx(11 / 12)
        assert entry.layer_tokens == [60.0, 36.0]
        assert summary.of_mode("query_aware")[0].is_full

    def test_order_of_the_rows_does_not_matter(self) -> None:
        first, second = summarise(sweep_rows()), summarise(sweep_rows()[::-1])
        assert first.places == second.places
        assert [e.rows for e in first.of_mode("query_agnostic")] == [e.rows for e in second.of_mode("query_agnostic")]

    def test_policy_without_all_its_cells_is_not_whole(self) -> None:
        summary = summarise(sweep_rows()[:-1])
        assert not summary.entries["query_agnostic", "random", SIZE].whole
        assert summary.entries["query_aware", "random", SIZE].whole

    def test_without_the_full_cache_there_is_no_share(self) -> None:
        summary = summarise([row for row in sweep_rows() if row.cell.policy != "full"])
        assert math.isnan(summary.entries["query_aware", "cake", SIZE].share)

    def test_labels_are_names_where_these_are_enough(self) -> None:
        rows = [make_row(), make_row(policy="cake:window_size=16"), make_row(policy="snapkv:window_size=8")]
        assert summarise(rows).policies == ["cake:window_size=16", "cake:window_size=8", "snapkv"]

    def test_budgets_are_sorted_by_what_they_keep(self) -> None:
        budgets = [{"cache_size": None, "ratio": 0.5}, {"cache_size": 96}, {"cache_size": None, "ratio": 0.875}, {}]
        rows = [make_row(**budget) for budget in budgets]
        assert list(map(str, summarise(rows).budgets)) == ["0.875 removed", "50% removed", "48", "96"]

    @pytest.mark.parametrize("change", [{"model_digest": "other"}, {"device": "cuda"}, {"dtype": "bfloat16"}, {"n": 4}])
    def test_rows_that_cannot_be_told_together_are_refused(self, change: dict[str, object]) -> None:
        rows = sweep_rows()[:3]
        with pytest.raises(ValueError, match=r"file(s)? of its own"):
            summarise([*rows, replace(rows[1], cell=replace(rows[1].cell, **change))])


class TestLeaders:
    def test_clear_winner_stands_alone(self) -> None:
        summary = summarise(sweep_rows())
        rivals = [entry for entry in summary.of_mode("query_aware") if not entry.is_full]
        assert leaders(rivals, summary.places["query_aware"]) == ({"cake"}, True)

    def test_one_sample_of_many_makes_no_winner(self) -> None:
        rows = [make_row((1.0,) * 30), make_row((1.0,) * 29 + (0.0,), policy="random")]
        entries = summarise(rows).of_mode("query_aware")
        assert leaders(entries, list(entries[0].rows)) == ({"cake", "random"}, False)

    def test_one_policy_has_nobody_to_beat(self) -> None:
        entries = summarise([make_row()]).of_mode("query_aware")
        assert leaders(entries, list(entries[0].rows)) == ({"cake"}, False)
        assert leaders([], []) == (set(), False)


class TestCompare:
    def test_sweep_equals_itself(self) -> None:
        found = compare_rows(sweep_rows(), sweep_rows(), 0.0)
        assert len(found.changes) == 12
        assert not found.regressions
        assert not any(change.better for change in found.changes)
        assert not found.differences

    def test_fall_beyond_the_interval_is_a_regression_and_less_is_not(self) -> None:
        before = [make_row((1.0,) * 40)]
        fallen = compare_rows(before, [make_row((1.0,) * 30 + (0.0,) * 10)])
        assert [change.worse for change in fallen.regressions] == [True]
        assert not compare_rows(before, [make_row((1.0,) * 39 + (0.0,))]).regressions
        risen = compare_rows([make_row((1.0,) * 30 + (0.0,) * 10)], before)
        assert risen.changes[0].better
        assert not risen.regressions

    @pytest.mark.parametrize(("held", "larger"), [(1049.0, False), (1051.0, True), (500.0, False)])
    def test_more_bytes_are_a_regression_beyond_the_threshold(self, held: float, larger: bool) -> None:
        assert compare_rows([make_row()], [make_row(kv_bytes=held)]).changes[0].larger is larger

    def test_speed_is_told_and_not_judged(self) -> None:
        slower = make_row(tokens_per_second=10.0, tokens_per_second_ci95=(9.0, 11.0))
        found = compare_rows([make_row()], [slower])
        assert found.changes[0].speed_ratio == pytest.approx(0.1)
        assert not found.regressions

    def test_what_only_one_has_and_other_conditions_are_named(self) -> None:
        first = [make_row(), make_row(task="copy")]
        second = [make_row(model_digest="other", cpu="another"), make_row(task="key_value")]
        found = compare_rows(first, second)
        assert [key.task for key in found.only_first] == ["copy"]
        assert [key.task for key in found.only_second] == ["key_value"]
        assert found.differences["cpu"] == ("a processor", "a processor and another")
        assert set(found.differences) == {"model_digest", "cpu"}
        assert json.loads(json.dumps(found.as_json(), allow_nan=False))["regressions"] == 0

    @pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
    def test_threshold_that_says_nothing_is_refused(self, threshold: float) -> None:
        with pytest.raises(ValueError, match="threshold must be"):
            compare_rows([make_row()], [make_row()], threshold)

    def test_sweeps_without_a_common_cell_or_with_a_cell_twice_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no cell in common"):
            compare_rows([make_row()], [make_row(seed=1)])
        with pytest.raises(ValueError, match="two rows of cake"):
            compare_rows([make_row(), make_row(model_digest="other")], [make_row()])
