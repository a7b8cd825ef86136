"""Throughput: what a row says, turns and ratios, and what happens where memory runs out."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner, Result

import kvcompress.bench.named_shapes as named_shapes
import kvcompress.bench.throughput as throughput
from kvcompress.bench import measure as measuring
from kvcompress.bench.compare_runs import read_run
from kvcompress.bench.comparison_tables import throughput as throughput_table
from kvcompress.bench.named_shapes import SHAPES, free_bytes, random_model, shape_config
from kvcompress.bench.throughput import Plan, describe, full_cache_bytes, is_out_of_memory, measure_throughput
from kvcompress.bench.timed_generation import Generation
from kvcompress.cli import app

CPU = torch.device("cpu")
CASES = ["prefill", "time_to_first_token", "decode_step"]
# Of the checkpoints on the hub, tied embeddings counted once.
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
}


@pytest.fixture(scope="module", autouse=True)
def _no_collection() -> Iterator[None]:
    """Collecting all of torch's objects takes a third of a second for each contender."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.gc, "collect", lambda: 0)
        patch.setattr(throughput, "release", lambda device: None)
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_model("tiny", CPU, torch.float32)


def plan(**changes: Any) -> Plan:
    given = {
        "policies": ("cake",),
        "cache_sizes": (48,),
        "contexts": (96,),
        "batches": (1,),
        "new_tokens": 6,
        "rounds": 2,
    }
    return Plan(**{**given, **changes})


def rows(model: PreTrainedModel, **changes: Any) -> list[dict[str, Any]]:
    return list(measure_throughput(model, "tiny", plan(**changes)))


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_shapes_have_the_parameters_of_their_models(name: str) -> None:
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(shape_config(name), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in made.parameters()) == PARAMETERS[name]


class TestShapes:
    def test_unknown_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"shape must be one of llama-3.1-8b, .*; got 'nonsense'"):
            shape_config("nonsense")

    def test_same_weights_each_time(self, model: PreTrainedModel) -> None:
        again = random_model("tiny", CPU, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))

    def test_what_does_not_fit_is_refused_before_it_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(named_shapes, "free_bytes", lambda device: 10 * 2**30)
        message = "weights of shape 'llama-3.1-8b' need 15.0 GiB in bfloat16, and cpu has 10.0 GiB free"
        with pytest.raises(ValueError, match=message):
            random_model("llama-3.1-8b", CPU, torch.bfloat16)

    def test_free_memory_is_that_of_the_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        listing = tmp_path / "meminfo"
        listing.write_text("MemTotal:  9000 kB\nMemAvailable:   5 kB\n", encoding="utf-8")
        monkeypatch.setattr(named_shapes, "_MEMINFO", listing)
        assert free_bytes(CPU) == 5 * 1024
        listing.unlink()
        assert free_bytes(CPU) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": ()}, "contexts must be numbers of at least 1"),
        ({"batches": (0,)}, "batches must be numbers of at least 1"),
        ({"new_tokens": 5}, "new_tokens must be at least 6"),
        ({"rounds": 0}, "rounds at least 1"),
        ({"policies": ("nonsense",)}, "policy must be one of"),
        ({"cache_sizes": (8,)}, "cache_size must be at least window_size"),
    ],
)
def test_plans_that_cannot_be_measured_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**changes)


class TestRows:
    def test_each_contender_has_three_figures_in_every_cell(self, model: PreTrainedModel) -> None:
        found = rows(model, policies=("cake", "snapkv"), batches=(2, 1), contexts=(128, 96))
        cells = list(dict.fromkeys((row["context"], row["batch"]) for row in found))
        assert cells == [(96, 1), (96, 2), (128, 1), (128, 2)]
        for cell in cells:
            here = [(row["provider"], row["case"]) for row in found if (row["context"], row["batch"]) == cell]
            assert here == [(who, case) for who in ("full", "cake 48", "snapkv 48") for case in CASES]
        assert all(describe(row) for row in found)
        assert all(
            row["ratio"] == row["ratio_q20"] == row["ratio_q80"] == 1 for row in found if row["policy"] == "full"
        )
        assert {row["ratio_to"] for row in found} == {"full"}

    def test_bytes_and_tokens_per_second(self, model: PreTrainedModel) -> None:
        found = rows(model, batches=(2,))
        full, cake = ([row for row in found if row["policy"] == name] for name in ("full", "cake"))
        # Of all tokens but the last one, which is never decoded.
        assert full[0]["held_bytes"] == full_cache_bytes(model, 2 * (96 + 5)) == 2 * 101 * 4 * 2 * 2 * 32 * 4
        assert cake[0]["held_bytes"] < 0.6 * full[0]["held_bytes"]
        assert all(row["peak_memory_bytes"] > row["held_bytes"] for row in found)
        for row in found:
            assert ("tokens_per_second" in row) is (row["case"] == "decode_step")
            if row["case"] == "decode_step":
                assert row["tokens_per_second"] == pytest.approx(2e3 / row["median"])
        prefill, first = full[0], full[1]
        assert prefill["median"] < first["median"], "the first token comes after the prompt"

    def test_a_cache_that_would_hold_everything_is_not_timed(self, model: PreTrainedModel) -> None:
        found = rows(model, cache_sizes=(48, 96))
        (left_out,) = [row for row in found if "reason" in row]
        assert (left_out["provider"], left_out["case"]) == ("cake 96", "generate")
        assert "nothing to evict" in left_out["reason"]

    def test_a_text_that_could_end_does_not(self, model: PreTrainedModel) -> None:
        settings = model.generation_config
        settings.eos_token_id = list(range(model.config.vocab_size))  # any token ends a text
        try:
            found = rows(model)
            assert len(found) == 6
            assert settings.eos_token_id == list(range(model.config.vocab_size)), "the model is as it was"
        finally:
            settings.eos_token_id = None


class Machine:
    """Stands in for a generation: each takes longer than the one before, whoever it is."""

    def __init__(self, fails: Callable[[Any, torch.Tensor], Exception | None] = lambda cache, prompt: None) -> None:
        self.fails = fails
        self.order: list[str] = []
        self.prompts: list[torch.Tensor] = []

    def __call__(
        self, model: Any, prompt: torch.Tensor, cache: Any, new_tokens: int, clock: Callable[[], float] | None = None
    ) -> Generation:
        if (error := self.fails(cache, prompt)) is not None:
            raise error
        if clock is not None:
            self.order.append(type(cache).__name__)
            self.prompts.append(prompt)
            model(input_ids=prompt[:, :1])  # its first call is what counts as prefill
        slow = 1.0 + len(self.order)
        return Generation(
            ids=[], first_seconds=slow, step_seconds=[slow] * (new_tokens - 1), peak_bytes=None, cache_bytes=1
        )


def test_contenders_take_turns_on_one_prompt(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    monkeypatch.setattr(throughput, "generate", machine)
    found = rows(model, rounds=4)
    full, cake = "DynamicCache", "CompressedCache"
    assert machine.order == [full, cake, cake, full, full, cake, cake, full]
    assert all(torch.equal(prompt, machine.prompts[0]) for prompt in machine.prompts)
    (first,) = [row for row in found if row["policy"] == "cake" and row["case"] == "time_to_first_token"]
    # Generations take 2, 3, ..., 9 seconds: within a round, not between medians.
    assert first["ratio"] == pytest.approx(np.median([3 / 2, 4 / 5, 7 / 6, 8 / 9]))
    assert first["median"] == 1e3 * np.median([3, 4, 7, 8])


def test_table_has_a_line_for_every_contender(model: PreTrainedModel) -> None:
    lines = throughput_table({"cases": rows(model, cache_sizes=(48, 96))}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["`cake 96`", "`full`", "`cake 48`"]
    assert "nothing to evict" in lines[2]
    assert lines[3].count("(1.00)") == 2
    assert all(line.count("|") == lines[0].count("|") for line in lines[1:5])


class TestOutOfMemory:
    def test_is_a_row_and_ends_nothing(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(cache: Any, prompt: torch.Tensor) -> Exception | None:
            too_large = type(cache).__name__ == "DynamicCache" and prompt.shape == (2, 96)
            return torch.OutOfMemoryError("no") if too_large else None

        monkeypatch.setattr(throughput, "generate", Machine(fails))
        found = rows(model, batches=(1, 2))
        (lost,) = [row for row in found if "reason" in row]
        assert (lost["provider"], lost["batch"], lost["reason"]) == ("full", 2, "out of memory")
        after = [row for row in found if row["batch"] == 2 and "reason" not in row]
        assert [row["case"] for row in after] == CASES
        assert all("ratio" not in row for row in after), "there is nothing to compare with"
        assert all(describe(row) for row in found)

    def test_a_cache_larger_than_the_machine_is_not_begun(
        self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(throughput, "free_bytes", lambda device: 1000)
        reasons = [row["reason"] for row in rows(model) if "reason" in row]
        assert reasons == ["out of memory: the cache alone needs 0.0 GiB, 0.0 GiB are free"]

    def test_other_errors_are_not_hidden(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(throughput, "generate", Machine(lambda cache, prompt: RuntimeError("shapes differ")))
        with pytest.raises(RuntimeError, match="shapes differ"):
            rows(model)

    def test_what_torch_says_on_the_cpu_is_understood(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60)
        assert is_out_of_memory(caught.value)
        assert is_out_of_memory(MemoryError())
        assert not is_out_of_memory(RuntimeError("shapes differ"))


class TestCommand:
    @staticmethod
    def invoke(*arguments: str) -> Result:
        result: Result = CliRunner().invoke(app, ["bench", "throughput", *arguments])
        return result

    def test_writes_a_run_that_can_be_compared(self, tmp_path: Path) -> None:
        out = tmp_path / "run.json"
        result = self.invoke(
            "--shape", "tiny", "--policies", "snapkv", "--cache-sizes", "48", "--contexts", "96", "--new-tokens", "6",
            "--rounds", "1", "--device", "cpu", "--out", str(out), "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        content = json.loads(out.read_text(encoding="utf-8"))
        assert json.loads(result.stdout) == content
        assert content["clock"] == "wall time"
        assert {key.provider for key in read_run(out).rows} == {"full", "snapkv 48"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--shape", "tiny", "--model", "somewhere"], "--model and --shape exclude each other"),
            (["--shape", "nonsense"], "shape must be one of"),
            (["--shape", "tiny", "--policies", "nonsense"], "policy must be one of"),
            (["--shape", "tiny", "--contexts", "a"], "--contexts must be whole numbers"),
            (["--shape", "tiny", "--new-tokens", "2"], "new_tokens must be at least 6"),
            (["--shape", "tiny", "--device", "cpu", "--cuda-graph"], "--cuda-graph needs a GPU"),
        ],
    )
    def test_bad_input_is_one_line_and_code_2(self, arguments: list[str], message: str) -> None:
        result = self.invoke(*arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.gpu
def test_policies_decode_by_graphs_on_the_gpu() -> None:
    made = random_model("tiny", torch.device("cuda"), torch.bfloat16)
    found = rows(made, cuda_graph=True, contexts=(512,), new_tokens=12)
    assert len(found) == 6
    assert all(row["peak_memory_bytes"] > row["held_bytes"] for row in found)


def test_shapes_on_the_command_line_are_all_of_them() -> None:
    result = CliRunner().invoke(app, ["bench", "throughput", "--help"])
    assert all(name in result.output.replace("\n", " ") for name in SHAPES)
