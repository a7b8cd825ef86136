"""Every policy at equal bytes, and decode rules: what is run, how it resumes, what the tables say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from kvcompress.bench import decode_rules, headline
from kvcompress.bench.decode_rules import CONTENDERS, RULES, YARDSTICK, Bench, policy_of
from kvcompress.bench.decode_scripts import TASKS, make_script
from kvcompress.bench.headline import FIRST, KEEPS, LENGTH, SEEN, UNSEEN, groups_of, parts_of, summarise
from kvcompress.bench.headline_tables import (
    decode_rule_differences,
    decode_rules_arriving,
    headline_agnostic,
    headline_aware,
    headline_by_task,
    headline_bytes,
    headline_goals,
)
from kvcompress.bench.headline_tables import decode_rules as decode_rules_table
from kvcompress.bench.search import halving, judging
from kvcompress.bench.search.contenders import EVERY_POLICY, OURS
from kvcompress.bench.search.trials import FULL, Trial
from kvcompress.bench.tasks.sample import MODES
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.policies.registry import POLICIES


class TestWhatIsRun:
    def test_every_policy_takes_part_at_the_size_asked_and_never_grows(self) -> None:
        made = {name: make(64) for name, make in EVERY_POLICY.items()}
        assert {policy.cache_size for policy in made.values()} == {64}
        assert not [name for name, policy in made.items() if policy.decode_rule.grows]
        assert {policy.name for policy in made.values()} == set(POLICIES) - {"full", "cake_reference"}

    def test_smallest_budget_holds_every_window(self) -> None:
        for make in EVERY_POLICY.values():
            assert make(round(min(KEEPS) * LENGTH)).budget(LENGTH) is not None

    def test_samples_and_unseen_tasks_are_new(self) -> None:
        parts = list(parts_of(200))
        assert sum(part.count for part in parts) == 200 * 2 * len((*UNSEEN, *SEEN))
        assert not set(UNSEEN) & set(halving.TASKS)
        assert set(SEEN) <= set(halving.TASKS)
        judged = max(part.first + part.count for part in judging.parts_of(1000))
        assert judged <= FIRST <= min(part.first for part in parts)
        assert max(part.first + part.count for part in parts) <= halving.FIRST

    def test_more_samples_go_on_from_fewer(self) -> None:
        assert set(parts_of(100)) <= set(parts_of(200))

    def test_unknown_task_is_refused(self, tmp_path: Path) -> None:
        app = typer.Typer()
        app.command()(headline.main)
        result = CliRunner().invoke(app, ["--trials", str(tmp_path / "t"), "--tasks", "needle_8,haystack"])
        assert result.exit_code == 2
        assert "--tasks must be among variables_4" in result.stderr

    def test_means_are_taken_over_what_was_run(self) -> None:
        assert groups_of([*UNSEEN, *SEEN]) == {"unseen": list(UNSEEN), "all": [*UNSEEN, *SEEN]}
        assert groups_of(UNSEEN) == {"unseen": list(UNSEEN)}
        assert groups_of(SEEN) == {"all": list(SEEN)}


def trials(scores: dict[str, float]) -> Iterator[Trial]:
    """The same score of a policy in every cell."""
    for task in UNSEEN:
        for mode in MODES:
            place: dict[str, Any] = {"task": task, "length": LENGTH, "mode": mode, "first": FIRST, "num_bytes": 2048}
            yield Trial(contender=FULL, keep=1.0, scores=(1.0,) * 8, **place)
            for name, score in scores.items():
                for keep in KEEPS:
                    yield Trial(contender=name, keep=keep, scores=(score,) * 8, **place)


def run_of(scores: dict[str, float]) -> dict[str, Any]:
    notes = {"length": LENGTH, "samples": 8, "groups": groups_of(UNSEEN)}
    return {**notes, "cases": summarise(list(trials(scores)))}


class TestTables:
    def test_goals_tell_what_is_reached_and_who_is_better(self) -> None:
        reached = headline_goals(run_of({OURS: 1.0, "kvc, window 8": 0.5, "cake": 0.5, "random": 0.25}))
        line = next(line for line in reached.splitlines() if line.startswith("| unseen, aware, 12 % | 100 ["))
        assert line.endswith(" | 99: yes | `cake` 50 [50, 50] | +50 [+50, +50] |")
        assert "**no**" not in reached
        missed = headline_goals(run_of({OURS: 0.5, "cake": 0.75}))
        assert "| 99: **no** |" in missed
        assert "| -25 [-25, -25] **no** |" in missed

    def test_every_policy_mode_and_budget_is_shown(self) -> None:
        run = run_of({OURS: 1.0, "cake": 0.5})
        for table in (headline_aware(run), headline_agnostic(run)):
            lines = table.splitlines()
            assert lines[0] == "| policy | 50 % | 25 % | 12 % | 6 % | 3 % |"
            assert lines[3] == "| `cake` | 50 [50, 50] | 50 [50, 50] | 50 [50, 50] | 50 [50, 50] | 50 [50, 50] |"
        by_task = headline_by_task(run).splitlines()
        assert [line.split(" | ")[0] for line in by_task[2:5]] == ["| `full`", "| `kvc`", "| `cake`"]
        assert by_task[0].count("aware") == by_task[0].count("agnostic") == len(UNSEEN)
        assert "| 3 % | 2 | 2 |" in headline_bytes(run)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    return load_testbed()[0]


class TestDecodeRules:
    def test_all_hold_the_same_but_for_the_bound(self) -> None:
        made = {(name, rule): policy_of(name, rule, 64) for name, rule in CONTENDERS}
        assert {key for key, policy in made.items() if policy.decode_rule.grows} == {("cake", "off"), ("kvc", "off")}
        for (name, rule), policy in made.items():
            slots = policy.window_size if rule == "keep_prompt" else 0  # of generated tokens' own
            assert policy.cache_size is not None
            assert policy.cache_size + slots == 64, (name, rule)
        for (_, rule), policy in made.items():
            assert policy.decode_rule == policy_of("cake", rule, 64).decode_rule if rule in RULES else True

    @pytest.mark.parametrize("task", TASKS)
    def test_scripts_ask_for_what_is_in_them(self, task: str) -> None:
        script = make_script(task, range(2), room=160)
        whole = torch.cat([script.prompts, script.forced], dim=1)
        for row, document in enumerate(whole.tolist()):
            for answer, (start, end) in enumerate(script.spans):
                words = script.forced[row, start:end].tolist()
                places = [n for n in range(len(document)) if document[n : n + len(words)] == words]
                assert places, "the answer stands somewhere"
                assert bool(script.arrived[row, answer]) <= (TASKS[task].arriving > 0)
        assert script.arrived.any() == (TASKS[task].arriving > 0)

    def test_an_interrupted_run_goes_on_to_the_same(
        self, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode_rules, "CONTENDERS", (("kvc", "accumulate"), ("kvc", "last_query"), ("tova", "-")))
        monkeypatch.setattr(
            decode_rules, "make_script", lambda task, documents: make_script(task, documents, room=160, asked=3)
        )
        whole = list(Bench(model, tmp_path / "whole").run("needles", range(3), (40, 60)))
        lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
        torn = tmp_path / "torn"
        torn.write_bytes(b"".join(lines[:2]) + lines[2][:30])
        assert list(Bench(model, torn).run("needles", range(3), (40, 60))) == whole
        assert torn.read_bytes() == (tmp_path / "whole").read_bytes()
        rows = decode_rules.summarise(whole)
        mine = next(row for row in rows if (row["rule"], row["cache_size"]) == (YARDSTICK, 60))
        assert mine["answers"] == 3 * 5
        assert mine["difference_interval_95"] == [0.0, 0.0]
        assert mine["asked_again"] is not None
        table, gains = decode_rules_table({"cases": rows}), decode_rule_differences({"cases": rows})
        assert table.splitlines()[0] == "| policy | rule | needles, 40 | needles, 60 |"
        assert "`tova`" in table
        assert decode_rules_arriving({"cases": rows}).count("`") == 0, "nothing arrived here"
        row = {**rows[0], "task": "t", "of_prompt": 0.75, "of_arrived": 0.5}
        assert "| `kvc` | `accumulate` | 75 | 50 |" in decode_rules_arriving({"cases": [row]})
        assert "`tova`" not in gains
        assert "| `kvc` | `accumulate` | +0 [+0, +0] | +0 [+0, +0] |" in gains
