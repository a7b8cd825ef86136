"""`kvcompress demo`: its rows on the tiny model, and what it shows on the embedded one."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvcompress.bench.testbed import location
from kvcompress.bench.testbed.tasks import make_example
from kvcompress.cli import app
from kvcompress.commands.demonstration import BUDGETS, LENGTH, TASKS

HAS_WEIGHTS = (location.MODEL_DIR / "model.safetensors").is_file()


def run(*arguments: str) -> Result:
    result: Result = CliRunner().invoke(app, ["demo", "--device", "cpu", *arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def stand_in(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny model in the embedded one's place."""
    monkeypatch.setattr(location, "MODEL_DIR", tiny)


@pytest.mark.usefixtures("stand_in")
def test_json_has_a_row_for_each_cache() -> None:
    result = run("--examples", "1", "--json", "--seed", "3")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["schema"] == "kvcompress.demo/1"
    assert (told["model"], told["seed"], told["prompt_tokens"]) == ("embedded", 3, LENGTH)
    rows = [(row["policy"], row["cache_size"]) for row in told["rows"]]
    assert rows == [("full", None), *((name, size) for name in ("cake", "streaming_llm") for size in BUDGETS)]
    for row in told["rows"]:
        assert set(row["tasks"]) == set(TASKS)
        assert all(0 <= task["correct"] <= task["asked"] == 1 for task in row["tasks"].values())
        assert row["decode_tokens_per_s"] > 0
    full, *others = told["rows"]
    # two layers, one head, keys and values of dimension 16 in float32; the answer's last token is not stored
    answers = [len(make_example(task, LENGTH, seed=3).answer_ids) for task in TASKS]
    tokens = [LENGTH + answer - 1 for answer in answers]
    assert full["kv_bytes"] == round(sum(tokens) / len(tokens) * 2 * 2 * 16 * 4)
    for row in others:
        assert row["parameters"]["cache_size"] == row["cache_size"]
        assert row["saved_fraction"] == pytest.approx(1 - row["kv_bytes"] / full["kv_bytes"], abs=1e-4)
        assert row["saved_fraction"] > 0.5
    example = make_example(TASKS[0], LENGTH, seed=3)
    assert told["example"]["right_answer"] == example.answer
    assert example.prompt.endswith(told["example"]["question"])
    assert [(entry["policy"], entry["cache_size"]) for entry in told["example"]["answers"]] == rows


@pytest.mark.usefixtures("stand_in")
def test_table_fits_a_terminal() -> None:
    told = run("--examples", "1").stdout
    assert "right answer" in told
    assert "…" not in told  # nothing is cut off
    assert max(map(len, told.splitlines())) <= 80
    for words in ("full", "cake", "streaming_llm", "0 of 1", "saved", "tokens/s", *TASKS):
        assert words in told


def test_missing_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "MODEL_DIR", tmp_path)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "the embedded model" in result.stderr
    assert str(tmp_path) in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not HAS_WEIGHTS, reason="needs the embedded model's weights")
def test_cake_keeps_the_answers_that_streaming_loses() -> None:
    told = json.loads(run("--examples", "8", "--json").stdout)
    right = {(row["policy"], row["cache_size"]): row["tasks"] for row in told["rows"]}
    assert right["full", None]["needle_8"]["correct"] == 8
    assert right["full", None]["variables_2"]["correct"] >= 7
    for size in BUDGETS:
        assert right["cake", size]["needle_8"]["correct"] >= 6
    smallest = min(BUDGETS)
    assert right["streaming_llm", smallest]["needle_8"]["correct"] <= 1
    for task in TASKS:
        largest = max(BUDGETS)
        assert right["cake", largest][task]["correct"] > right["streaming_llm", largest][task]["correct"]
