"""The shipped testbed model: complete, small, loads offline, and does what its evaluation says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.testbed.accuracy import count_correct
from kvcompress.bench.testbed.evaluate import DEFAULT_LENGTHS, SCHEMA, file_sha256
from kvcompress.bench.testbed.location import EVALUATION_FILE, MODEL_DIR, TRAINING_LOG_FILE, load_testbed
from kvcompress.bench.testbed.tasks import TASKS, is_correct, make_example


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's thread pools make small models many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return load_testbed()[0]


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(EVALUATION_FILE.read_text(encoding="utf-8"))
    return loaded


def test_folder_is_complete_and_small() -> None:
    names = {path.name for path in MODEL_DIR.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8_000_000


def test_model_loads_by_the_automatic_classes() -> None:
    loaded = AutoModelForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True)
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    example = make_example("needle_8", 128)
    assert tokenizer(example.prompt)["input_ids"] == example.prompt_ids
    assert tokenizer.padding_side == "left"
    assert tokenizer.decode(tokenizer("a żółw .", add_special_tokens=False)["input_ids"]) == "a żółw ."


def test_model_is_float32_and_finite_on_loading(model: LlamaForCausalLM) -> None:
    assert model.dtype == torch.float32
    assert not model.training
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert load_testbed(dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_configuration_is_what_the_engine_expects(model: LlamaForCausalLM) -> None:
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 64)
    assert config.max_position_embeddings == 4096
    text = (MODEL_DIR / "config.json").read_text() + (MODEL_DIR / "tokenizer_config.json").read_text()
    assert "_name_or_path" not in json.loads((MODEL_DIR / "config.json").read_text())
    assert '"/' not in text


@pytest.mark.parametrize("task", ["needle_1", "needle_8", "variables_2", "variables_4", "key_value"])
def test_model_answers_at_512(model: LlamaForCausalLM, task: str) -> None:
    # 16 examples on which the shipped model was right all but once at most, whatever the machine's rounding.
    assert count_correct(model, task, 512, samples=16, seed=1) >= 15


def test_model_lists_all_values_at_512(model: LlamaForCausalLM) -> None:
    assert count_correct(model, "multi_value", 512, samples=16, seed=1) >= 12


def decode_greedily(model: LlamaForCausalLM, prompt_ids: list[int], count: int) -> list[int]:
    prompt = torch.tensor([prompt_ids])
    mask = torch.ones_like(prompt)
    generated = cast(Any, model).generate(input_ids=prompt, attention_mask=mask, max_new_tokens=count, do_sample=False)
    ids: list[int] = generated[0, len(prompt_ids) :].tolist()
    return ids


def test_teacher_forcing_counts_what_decoding_does(model: LlamaForCausalLM) -> None:
    # At 2048, longer than in training, some answers may be wrong: both ways must agree on how many.
    right = 0
    for index in range(8):
        example = make_example("key_value", 2048, index=index)
        right += is_correct(example, decode_greedily(model, example.prompt_ids, len(example.answer_ids)))
    assert right == count_correct(model, "key_value", 2048, samples=8)


def test_answer_ends_by_itself(model: LlamaForCausalLM) -> None:
    example = make_example("needle_8", 256)
    assert decode_greedily(model, example.prompt_ids, 16) == [*example.answer_ids, model.config.eos_token_id]


def test_evaluation_belongs_to_the_model(evaluation: dict[str, Any]) -> None:
    assert evaluation["schema"] == SCHEMA
    assert evaluation["model_sha256"] == file_sha256(MODEL_DIR / "model.safetensors")


def test_evaluation_has_every_cell(evaluation: dict[str, Any]) -> None:
    cells = {(cell["task"], cell["length"]): cell for cell in evaluation["cells"]}
    assert set(cells) == {(task, length) for task in TASKS for length in DEFAULT_LENGTHS}
    assert len(cells) == len(evaluation["cells"])
    for cell in cells.values():
        assert cell["samples"] == 200
        assert cell["exact_match"] == cell["correct"] / cell["samples"]
        low, high = wilson_interval(cell["correct"], cell["samples"])
        assert cell["interval_95"] == [round(low, 4), round(high, 4)]


def test_training_log_goes_to_the_end() -> None:
    records = [json.loads(line) for line in TRAINING_LOG_FILE.read_text(encoding="utf-8").splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(steps)
    assert records[-1]["kind"] == "check"
    assert records[-1]["stage"] == 1024
    losses = [record["loss"] for record in records if record["kind"] == "training"]
    assert losses[-1] < 0.2 * losses[0]


def test_folder_without_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold model\.safetensors, got .*train --out DIR"):
        load_testbed(folder=tmp_path)
